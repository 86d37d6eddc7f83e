"""What waits to be published holds no more than events show, however large the rows were."""

from __future__ import annotations

import datetime as dt
import sys
import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.realtime import LogEvent, PointEvent, SpanEvent, TailFilters
from observatory_storage.realtime.landed import Landed
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter
from tests.telemetry import NOW

ROWS = 100
LARGE = 50_000


def span(number: int) -> dict[str, Any]:
    texts = {name: f"{number} {name} " + "x" * LARGE for name in ("name", "service_name", "operation", "model")}
    return {"trace_id": (number + 1).to_bytes(16), "span_id": b"12345678", "start_time": NOW, **texts}


def log(number: int) -> dict[str, Any]:
    texts = {
        name: f"{number} {name} " + "x" * LARGE for name in ("severity_text", "service_name", "event_name", "body")
    }
    return {"timestamp": NOW, "trace_id": (number + 1).to_bytes(16), "span_id": b"12345678", **texts}


def point(number: int) -> dict[str, Any]:
    metric = {"name": "n" * LARGE, "unit": "u" * LARGE, "service_name": "s" * LARGE, "metric_type": "gauge"}
    attributes = {"few": number} if number % 2 else {"text": f"{number}" + "x" * LARGE}
    return {"metric": metric, "attributes": attributes, "timestamp": NOW + dt.timedelta(seconds=number), "value": 0.5}


def bytes_of(value: Any, seen: set[int]) -> int:
    """The memory of a value and of all that it refers to, each object once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, orjson.Fragment):
        return size + len(orjson.dumps(value))
    if isinstance(value, dict):
        return size + sum(bytes_of(item, seen) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return size + sum(bytes_of(item, seen) for item in value)
    return size


CASES: dict[str, tuple[Any, Any, Callable[[int], dict[str, Any]]]] = {
    "traces": (TraceWriter, TraceWriter.write_spans, span),
    "logs": (LogWriter, LogWriter.write_logs, log),
    "metrics": (MetricWriter, MetricWriter.write_data_points, point),
}


@pytest.mark.parametrize("signal", CASES)
def test_a_row_that_waits_takes_two_kilobytes(
    redis_pool: StoragePool, monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    writer_type, write, make = CASES[signal]
    publisher = redis_pool.stream._publisher
    publish, go_on = publisher._publish, threading.Event()
    held: list[Landed] = []

    def slowly(landed: Landed, dropped: int) -> int:
        held.append(landed)
        assert go_on.wait(30)
        return publish(landed, dropped)

    monkeypatch.setattr(publisher, "_publish", slowly)
    events = redis_pool.stream.tail(TailFilters(), idle_timeout_seconds=3)
    with writer_type(redis_pool) as writer:
        write(writer, [make(number) for number in range(ROWS)])
    assert redis_pool.stream.stats().waiting == ROWS
    with publisher._changed:
        waiting = {id(landed): landed for landed in (*held, *publisher._waiting)}
    seen: set[int] = set()
    size = sum(bytes_of([landed.rows, landed.metrics, landed.series], seen) for landed in waiting.values())
    go_on.set()
    assert size < 2_000 * ROWS
    found = list(events)
    assert len(found) == ROWS
    for event in found:
        if isinstance(event, SpanEvent):
            assert (len(event.name), len(event.operation or "")) == (300, 300)
        elif isinstance(event, LogEvent):
            assert (len(event.body or ""), len(event.event_name or "")) == (300, 300)
        else:
            assert len(event.unit or "") == 300
    points = [event for event in found if isinstance(event, PointEvent)]
    few = sorted(event.attributes["few"] for event in points if event.attributes)
    assert few == (list(range(1, ROWS, 2)) if points else [])
