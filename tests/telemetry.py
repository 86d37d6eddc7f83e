"""Telemetry for tests: seeded spans, what is stored, and what summaries must say."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
TABLES = ("resources", "traces", "trace_spans", "trace_events")
_KEYS = {
    "resources": "id",
    "traces": "id",
    "trace_spans": "trace_id, span_id, start_time",
    "trace_events": "trace_id, span_id, span_start_time, event_index",
    "metrics": "id",
    "metric_series": "metric_id, id",
    "metric_data_points": "metric_id, series_id, timestamp",
    "logs": "timestamp, route_id, id",
}


def make_spans(traces: int = 10, spans: int = 8, *, seed: int = 1, start: dt.datetime = NOW) -> list[dict[str, Any]]:
    """Traces as clients make them: one root, tool and model calls below it, errors, users, events."""
    dice = random.Random(seed)
    resources = [
        {
            "service_name": f"service-{number}",
            "attributes": {"service.name": f"service-{number}", "host.name": f"host-{number}"},
        }
        for number in range(3)
    ]
    rows: list[dict[str, Any]] = []
    for number in range(traces):
        trace_id = dice.randbytes(16)
        resource = dice.choice(resources)
        ids = [dice.randbytes(8) for _ in range(spans)]
        for place, span_id in enumerate(ids):
            begin = start + dt.timedelta(seconds=number, microseconds=dice.randrange(5) * 1_000 + place)
            calls_model = place % 3 == 1
            row: dict[str, Any] = {
                "trace_id": trace_id,
                "span_id": span_id,
                "parent_span_id": None if place == 0 else ids[dice.randrange(place)],
                "name": f"step {place}",
                "kind": "client" if calls_model else "internal",
                "service_name": resource["service_name"],
                "start_time": begin,
                "end_time": begin + dt.timedelta(microseconds=dice.randrange(100_000)),
                "status": dice.choice(["unset", "ok", "error"]),
                "user_id": dice.choice([None, "user-b", "User-a", "üser"]),
                "session_id": dice.choice([None, f"session-{number}"]),
                "attributes": {"step": place, "note": "x" * dice.randrange(50)},
                "resource": resource,
                "events": [
                    {"timestamp": begin, "name": f"event {at}", "attributes": {"at": at}}
                    for at in range(dice.randrange(3))
                ],
            }
            if calls_model:
                row |= {
                    "operation": "chat",
                    "provider": "openai",
                    "model": dice.choice(["gpt-4o", "gpt-4o-mini"]),
                    "input_tokens": dice.randrange(1_000),
                    "output_tokens": dice.randrange(100),
                    "cost_usd": Decimal(dice.randrange(10**6)).scaleb(-7),
                    "counts_usage": dice.random() < 0.8,
                    "tags": ["a,b", 'q"uote', "\\"],
                    "input": [{"role": "user", "content": "hello"}],
                }
            rows.append(row)
    return rows


_UNSTEADY = ("created_at", "updated_at", "transaction_id")


def stored(url: str, tables: Sequence[str] = TABLES) -> dict[str, list[dict[str, Any]]]:
    """All rows of the trace tables, or of others, but for when they were stored."""
    found = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table} ORDER BY {_KEYS[table]}").fetchall()
            found[table] = [{name: value for name, value in row.items() if name not in _UNSTEADY} for row in rows]
    return found


def count(url: str, table: str) -> int:
    """The number of a table's rows."""
    with psycopg.connect(url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def summaries_from_spans(tables: dict[str, list[dict[str, Any]]]) -> dict[Any, dict[str, Any]]:
    """What each trace's summary must be, by its definition, from the stored spans alone."""
    by_trace: dict[Any, list[dict[str, Any]]] = {}
    for span in tables["trace_spans"]:
        by_trace.setdefault(span["trace_id"], []).append(span)
    expected = {}
    for trace_id, spans in by_trace.items():
        root = min(spans, key=lambda s: (s["parent_span_id"] is not None, s["start_time"], s["span_id"]))
        counted = [span for span in spans if span["counts_usage"]]
        start = min(span["start_time"] for span in spans)
        end = max(max(span["start_time"], span["end_time"] or span["start_time"]) for span in spans)
        expected[trace_id] = {
            "project": root["project"],
            "name": root["name"],
            "service_name": root["service_name"],
            "has_root": root["parent_span_id"] is None,
            "root_span_id": root["span_id"],
            "root_start_time": root["start_time"],
            "start_time": start,
            "end_time": end,
            "duration_us": (end - start) // dt.timedelta(microseconds=1),
            "status": root["status"],
            "status_message": root["status_message"],
            "span_count": len(spans),
            "error_count": sum(span["status"] == "error" for span in spans),
            "input_tokens": sum(span["input_tokens"] or 0 for span in counted),
            "output_tokens": sum(span["output_tokens"] or 0 for span in counted),
            "total_tokens": sum(span["total_tokens"] or 0 for span in counted),
            "cost_usd": sum((span["cost_usd"] or Decimal(0) for span in counted), Decimal(0)),
            "user_id": min((s["user_id"].encode() for s in spans if s["user_id"] is not None), default=None),
            "session_id": min((s["session_id"].encode() for s in spans if s["session_id"] is not None), default=None),
            "resource_id": root["resource_id"],
            "attributes": root["attributes"],
        }
        for name in ("user_id", "session_id"):
            value = expected[trace_id][name]
            expected[trace_id][name] = None if value is None else value.decode()
    return expected


def assert_summaries_exact(url: str) -> None:
    """Compare every stored trace with the definition."""
    tables = stored(url)
    expected = summaries_from_spans(tables)
    assert {trace["id"] for trace in tables["traces"]} >= set(expected)
    for trace in tables["traces"]:
        if trace["id"] in expected:
            assert {name: trace[name] for name in expected[trace["id"]]} == expected[trace["id"]]
