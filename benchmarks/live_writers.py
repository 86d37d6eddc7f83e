"""Writers in processes of their own, which write without a pause until they are told to stop."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self, TypeAlias

from benchmarks.data import SpanSource
from benchmarks.interleaved import freeze
from benchmarks.stored import Copy
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

PROJECT: Final = "live"
Line: TypeAlias = "Connection[Any, Any]"


class Batch(NamedTuple):
    """A transaction that was acknowledged, by the clock that all processes share, and its rows' making."""

    began: float
    ended: float
    spans: int


class Written(NamedTuple):
    """What one writer was told is committed."""

    batches: Sequence[Batch]
    spans: int
    events: int
    traces: int


class LiveWriters:
    """So many writers; they have made their rows, and wait, when this returns."""

    def __init__(self, url: str, writers: int, batch_rows: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: list[Line] = []
        self._processes = []
        for place in range(writers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_write, args=(url, place, batch_rows, theirs), daemon=True)
            process.start()
            # Else nobody would notice that a writer is gone.
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)
        for line in self._lines:
            assert line.recv() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            # Ended already, unless something failed.
            process.terminate()
            process.join()

    def start(self) -> None:
        for line in self._lines:
            line.send("write")

    def stop(self) -> list[Written]:
        """Let each finish the batch that it is at, and return what they wrote."""
        for line in self._lines:
            line.send("stop")
        return [line.recv() for line in self._lines]


def spans_a_second(written: Sequence[Written], began: float, ended: float) -> float:
    """Return the rate of all writers between two times; of a batch that reaches over one, its share counts."""
    spans = 0.0
    for batch in (batch for one in written for batch in one.batches):
        inside = min(batch.ended, ended) - max(batch.began, began)
        if inside > 0:
            spans += batch.spans * inside / (batch.ended - batch.began)
    return spans / (ended - began)


def longest_batch(written: Sequence[Written], began: float, ended: float) -> float:
    """Return for how many seconds a writer waited at most for a batch that it had open between two times."""
    times = [
        batch.ended - batch.began
        for one in written
        for batch in one.batches
        if batch.ended > began and batch.began < ended
    ]
    return max(times, default=0.0)


def _write(url: str, place: int, batch_rows: int, line: Line) -> None:
    rows = SpanSource(seed=300 + place, events=True).spans(batch_rows)
    config = WriterConfig(method=WriteMethod.COPY, batch_size=batch_rows, flush_interval_seconds=60, project=PROJECT)
    batches: list[Batch] = []
    trace_ids = len({row["trace_id"] for row in rows})
    with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool, TraceWriter(pool, config) as writer:
        freeze()
        line.send("ready")
        line.recv()
        while not line.poll():
            began = time.monotonic()
            writer.write_spans(Copy.number(len(batches), 300 + place, 0).of(rows))
            writer.flush()
            batches.append(Batch(began, time.monotonic(), batch_rows))
        stats = writer.write_stats()
        assert (stats.spans_written, stats.rows_rejected) == (batch_rows * len(batches), 0)
        line.send(Written(batches, stats.spans_written, stats.events_written, trace_ids * len(batches)))
