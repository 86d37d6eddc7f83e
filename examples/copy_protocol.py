"""Spans by COPY, four ways: how fast each is on this machine, and what it does with a replay and with bad text.

Run it without arguments: `python examples/copy_protocol.py`. It writes to the database of DATABASE_URL, whose schema
it brings up to date, in a project of its own that it deletes afterwards; without DATABASE_URL it starts the embedded
server in a temporary directory. It takes about ten seconds.
"""

from __future__ import annotations

import datetime as dt
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from psycopg.types.json import Jsonb

from observatory_storage import CopyWriter, StorageError, StoragePool, TraceWriter, WriteMethod, WriterConfig
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.models.base import table_of

ROWS: Final = 4_000
ROUNDS: Final = 5
SECONDS: Final = 6.0
SPANS_PER_TRACE: Final = 20
PROJECT: Final = f"copy-example-{uuid.uuid4().hex[:12]}"
TEXT: Final = "the customer asks for a refund of the flight that was delayed and wants to keep both seats " * 5

Write = Callable[[StoragePool, Sequence[SpanRow]], None]

# COPY in the binary format converts nothing: the types that are sent must be those of the columns.
COLUMNS: Final = {
    "trace_id": "uuid",
    "span_id": "bytea",
    "parent_span_id": "bytea",
    "start_time": "timestamptz",
    "end_time": "timestamptz",
    "duration_us": "int8",
    "project": "text",
    "name": "text",
    "kind": "text",
    "service_name": "text",
    "status": "text",
    "operation": "text",
    "provider": "text",
    "model": "text",
    "input_tokens": "int8",
    "output_tokens": "int8",
    "total_tokens": "int8",
    "counts_usage": "bool",
    "cost_usd": "numeric",
    "input": "jsonb",
    "output": "jsonb",
    "attributes": "jsonb",
}
JSON_COLUMNS: Final = frozenset(name for name, kind in COLUMNS.items() if kind == "jsonb")


def by_hand(pool: StoragePool, spans: Sequence[SpanRow]) -> None:
    """COPY on a connection of the pool, with nothing of this library in between."""
    copy_into = f"COPY trace_spans ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
    with pool.raw_connection() as connection:
        with connection.cursor() as cursor, cursor.copy(copy_into.encode()) as copy:
            copy.set_types(list(COLUMNS.values()))
            for span in spans:
                values: dict[str, Any] = {**span}
                copy.write_row([Jsonb(values[n]) if n in JSON_COLUMNS else values[n] for n in COLUMNS])
        connection.commit()


def by_copy_writer(pool: StoragePool, spans: Sequence[SpanRow]) -> None:
    """COPY of checked and repaired rows; the caller commits."""
    with pool.raw_connection() as connection:
        CopyWriter().write_spans(connection, spans)
        connection.commit()


def by_trace_writer(method: WriteMethod) -> Write:
    """Rows stored once, traces summed up, partitions made: committed when the block is left."""

    def write(pool: StoragePool, spans: Sequence[SpanRow]) -> None:
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            writer.write_spans(spans)

    return write


WAYS: Final[dict[str, Write]] = {
    "COPY by hand": by_hand,
    "CopyWriter": by_copy_writer,
    "TraceWriter, COPY": by_trace_writer(WriteMethod.COPY),
    "TraceWriter, INSERT": by_trace_writer(WriteMethod.INSERT),
}


def make_spans(count: int, name: str = "chat gpt-4o") -> list[SpanRow]:
    """Make spans of model calls that ended just now, of about 1.4 kB each, with new ids."""
    now = dt.datetime.now(dt.UTC)
    spans: list[SpanRow] = []
    trace_id = uuid.uuid4()
    root = b""
    for number in range(count):
        place = number % SPANS_PER_TRACE
        if place == 0:
            trace_id, root = uuid.UUID(bytes=os.urandom(16)), os.urandom(8)
        start = now - dt.timedelta(seconds=SPANS_PER_TRACE - place)
        spans.append(
            {
                "trace_id": trace_id,
                "span_id": os.urandom(8) if place else root,
                "parent_span_id": root if place else None,
                "start_time": start,
                "end_time": start + dt.timedelta(milliseconds=800),
                "duration_us": 800_000,
                "project": PROJECT,
                "name": name,
                "kind": "client",
                "service_name": "copy-example",
                "status": "ok",
                "operation": "chat",
                "provider": "openai",
                "model": "gpt-4o",
                "input_tokens": 900 + place,
                "output_tokens": 100,
                "total_tokens": 1_000 + place,
                "counts_usage": True,
                "cost_usd": Decimal("0.00325"),
                "input": [{"role": "user", "content": TEXT}],
                "output": [{"role": "assistant", "content": TEXT}],
                "attributes": {"gen_ai.request.temperature": 0.2, "gen_ai.response.id": os.urandom(12).hex()},
            }
        )
    return spans


def measure(pool: StoragePool) -> dict[str, float]:
    """Return the median of each way's rows a second, taken in turns for a few seconds."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for write in WAYS.values():
        write(pool, make_spans(SPANS_PER_TRACE))  # a first use pays for what later ones find
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for way, write in WAYS.items():
            spans = make_spans(ROWS)
            before = time.perf_counter()
            write(pool, spans)
            rates[way].append(ROWS / (time.perf_counter() - before))
        if time.perf_counter() - started > SECONDS:
            break
    return {way: statistics.median(found) for way, found in rates.items()}


def count(pool: StoragePool, table: str, trace_id: object) -> int:
    """Count a trace's rows in a table."""
    key = "id" if table == "traces" else "trace_id"
    with pool.raw_connection() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table} WHERE {key} = %s", [trace_id]).fetchone()
    return row[0] if row is not None else 0


def sent_again(pool: StoragePool, write: Write) -> str:
    """Deliver the same spans twice and say what became of the second delivery."""
    spans = make_spans(SPANS_PER_TRACE)
    write(pool, spans)
    try:
        write(pool, spans)
    except StorageError as error:
        return f"refused ({error.sqlstate})"
    stored = count(pool, "trace_spans", spans[0]["trace_id"])
    return "stored once" if stored == SPANS_PER_TRACE else f"{stored} rows of {SPANS_PER_TRACE}"


def with_a_nul(pool: StoragePool, write: Write) -> str:
    """Write a text that PostgreSQL does not take, and say what became of it."""
    try:
        write(pool, make_spans(1, name="chat\x00gpt-4o"))
    except StorageError as error:
        return f"refused ({error.sqlstate})"
    return "repaired"


def summary(pool: StoragePool, write: Write) -> str:
    """Say whether the trace of new spans can be found in `traces`."""
    spans = make_spans(SPANS_PER_TRACE)
    write(pool, spans)
    return "exact" if count(pool, "traces", spans[0]["trace_id"]) else "none"


@contextmanager
def opened_pool() -> Iterator[StoragePool]:
    """Open the database, with the day's partition and without what this program leaves in it."""
    with ExitStack() as stack:
        url = os.environ.get("DATABASE_URL")
        if url:
            pool = stack.enter_context(StoragePool.from_url(url, min_connections=1, max_connections=4))
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="copy-", ignore_cleanup_errors=True))
            pool = stack.enter_context(StoragePool.embedded(Path(directory) / "data"))
        pool.run_migrations()
        # COPY makes no partitions: without this its rows would lie in DEFAULT until the day gets one.
        today = dt.datetime.now(dt.UTC).date()
        PartitionManager(pool).ensure(table_of(TraceSpan), [today])
        stack.callback(delete_rows, pool)
        yield pool


def delete_rows(pool: StoragePool) -> None:
    """Delete this run's rows; those of CopyWriter have no trace by which the repository would find them."""
    with pool.raw_connection() as connection:
        for table in ("trace_spans", "traces"):
            connection.execute(f"DELETE FROM {table} WHERE project = %s", [PROJECT])
        connection.commit()


def main() -> None:
    """Measure and print the table."""
    with opened_pool() as pool:
        rates = measure(pool)
        slowest = min(rates.values())
        print(f"{ROWS:,} spans a run, {SPANS_PER_TRACE} spans a trace, one transaction a run, median of the runs")
        print()
        print(f"{'':<20} {'rows/s':>8} {'':>6}  {'sent again':<16} {'a NUL in text':<16} trace summary")
        for way, write in WAYS.items():
            promises = f"{sent_again(pool, write):<16} {with_a_nul(pool, write):<16} {summary(pool, write)}"
            print(f"{way:<20} {rates[way]:>8,.0f} {rates[way] / slowest:>5.1f}x  {promises}")
        print()
        print("By hand psycopg and the json module convert each value; CopyWriter converts a column at a time.")
        print("docs/copy.md says which to take when.")


if __name__ == "__main__":
    main()
