"""INSERT against COPY, measured on the spot: the same kind of spans by five ways into the same tables."""

from __future__ import annotations

import datetime as dt
import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from sqlalchemy import insert

from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from observatory_storage.writers import CopyWriter, TraceWriter, WriteMethod, WriterConfig

ROWS: Final = 2_000
RUNS: Final = 3
SPANS_PER_TRACE: Final = 20
# One statement holds all columns of its rows as parameters, of which PostgreSQL allows 65,535.
_ROWS_PER_STATEMENT: Final = 1_000
_WARM_UP_ROWS: Final = 200
_FILLER: Final = (
    "the model was asked to summarise what the customer wrote and to list three findings with their sources "
    "the tool returned rain for tomorrow afternoon the order was shipped and the refund takes five days"
)

Write = Callable[[StoragePool, list[SpanRow]], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """The speed of one way of writing: the median of `runs` runs of `rows` rows, each committed."""

    method: str
    rows: int
    runs: int
    rows_per_second: int
    ratio: float
    """How many times as fast as the slowest way."""
    keeps: str
    """What it keeps besides the rows."""


def measure(pool: StoragePool, rows: int = ROWS, runs: int = RUNS) -> list[Rate]:
    """Write spans by each way in turn, in as many rounds as `runs` says, and return the rates, slowest first.

    Each run is one transaction with its COMMIT. A smaller round that is not counted comes first. The rows
    stand in a project of their own and are deleted afterwards. With the defaults it takes about five
    seconds, most of them in `insert().values()`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in _WAYS}
    with _scratch(pool) as scratch:
        for run in range(runs + 1):
            for name, (write, _) in _WAYS.items():
                batch = scratch.spans(rows if run else min(rows, _WARM_UP_ROWS))
                started = time.perf_counter()
                write(pool, batch)
                if run:
                    seconds[name].append(time.perf_counter() - started)
    rates = {name: rows / statistics.median(times) for name, times in seconds.items()}
    slowest = min(rates.values())
    return [
        Rate(name, rows, runs, round(rate), round(rate / slowest, 1), _WAYS[name][1])
        for name, rate in sorted(rates.items(), key=lambda item: item[1])
    ]


class _Scratch:
    """Makes spans of about 1.5 kB, and remembers their traces."""

    def __init__(self) -> None:
        self.project = f"measurement-{uuid.uuid4().hex[:12]}"
        self.traces: list[uuid.UUID] = []
        # All within one day, whose partition the first round makes.
        self.day = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        words = _FILLER.split() * 3
        self._texts = [" ".join(words[place:] + words[:place]) for place in range(SPANS_PER_TRACE + 1)]

    def spans(self, count: int) -> list[SpanRow]:
        """Return new spans, with the columns that a model call has."""
        return [span for first in range(0, count, SPANS_PER_TRACE) for span in self._trace(count - first)]

    def _trace(self, most: int) -> Iterator[SpanRow]:
        trace_id = uuid.UUID(bytes=os.urandom(16))
        self.traces.append(trace_id)
        root = os.urandom(8)
        for number in range(min(SPANS_PER_TRACE, most)):
            start = self.day + dt.timedelta(seconds=len(self.traces) % 80_000, milliseconds=number)
            question, answer = self._texts[number : number + 2]
            yield {
                "trace_id": trace_id,
                "span_id": os.urandom(8) if number else root,
                "parent_span_id": root if number else None,
                "project": self.project,
                "name": "chat gpt-4o",
                "kind": "client",
                "service_name": "measurement",
                "start_time": start,
                "end_time": start + dt.timedelta(milliseconds=800),
                "duration_us": 800_000,
                "status": "ok",
                "operation": "chat",
                "provider": "openai",
                "model": "gpt-4o",
                "response_model": "gpt-4o-2024-08-06",
                "input_tokens": 900 + number,
                "output_tokens": 100,
                "total_tokens": 1_000 + number,
                "counts_usage": True,
                "cost_usd": Decimal("0.00325"),
                "ttft_us": 250_000,
                "finish_reason": "stop",
                "user_id": "user-1",
                "session_id": "session-1",
                "input": [{"role": "user", "content": question}],
                "output": [{"role": "assistant", "content": answer}],
                "attributes": {"gen_ai.request.temperature": 0.2, "gen_ai.response.id": uuid.uuid4().hex},
            }


@contextmanager
def _scratch(pool: StoragePool) -> Iterator[_Scratch]:
    scratch = _Scratch()
    try:
        yield scratch
    finally:
        # Some ways write no row for the trace, by which the deletion finds the spans.
        with TraceWriter(pool, WriterConfig(project=scratch.project)) as writer:
            end = scratch.day + dt.timedelta(days=1)
            writer.write_traces({"id": key, "start_time": scratch.day, "end_time": end} for key in scratch.traces)
        TraceRepository(pool).delete_before(scratch.day + dt.timedelta(days=2), project=scratch.project)


def _by_values(pool: StoragePool, spans: list[SpanRow]) -> None:
    with pool.engine.begin() as connection:
        for first in range(0, len(spans), _ROWS_PER_STATEMENT):
            statement = insert(TraceSpan).values(spans[first : first + _ROWS_PER_STATEMENT])
            connection.execute(statement)


def _by_executemany(pool: StoragePool, spans: list[SpanRow]) -> None:
    with pool.engine.begin() as connection:
        connection.execute(insert(TraceSpan), spans)


def _by_writer(method: WriteMethod) -> Write:
    def write(pool: StoragePool, spans: list[SpanRow]) -> None:
        with TraceWriter(pool, WriterConfig(method=method, batch_size=max(len(spans), 1))) as writer:
            writer.write_spans(spans)

    return write


def _by_copy_writer(pool: StoragePool, spans: list[SpanRow]) -> None:
    with pool.raw_connection() as connection:
        CopyWriter().write_spans(connection, spans)
        connection.commit()


_WAYS: Final[Mapping[str, tuple[Write, str]]] = MappingProxyType(
    {
        # The writer first: its first batch makes the day's partition for all.
        "TraceWriter, INSERT": (_by_writer(WriteMethod.INSERT), "duplicates stored once, summaries"),
        "TraceWriter, COPY": (_by_writer(WriteMethod.COPY), "duplicates stored once, summaries"),
        "CopyWriter": (_by_copy_writer, "rows alone"),
        "Core executemany": (_by_executemany, "rows alone"),
        "insert().values()": (_by_values, "rows alone"),
    }
)
