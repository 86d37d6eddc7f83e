"""The same agent conversations with messages stored once and with a copy in each span: bytes, rate, read latency.

Written and read in turns, so that a slow minute falls on both. The days are over, maintenance has done its work and
the tables are vacuumed before bytes are counted: messages stored once pay for their text index, copies have none.
"""

from __future__ import annotations

import datetime as dt
import gc
import os
import random
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg
import pytest

from benchmarks.conftest import Report, Size
from benchmarks.conversations import Repeated, generated, recorded
from benchmarks.interleaved import Benchmark
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.conftest import ROOT
from tests.servers import database

ONCE: Final = "messages stored once"
COPIES: Final = "a copy in each span"
_ASKED: Final = 100_000
# What must come out of a run that is long enough to be judged.
MOST_BYTES: Final = 1 / 3
LEAST_RATE: Final = 1.0
MOST_LATENCY: Final = 1.3

# All that the store takes, by table, partitions with their parent: rows, TOAST, indexes, and the text index apart.
_BYTES: Final = """
SELECT coalesce(parent.relname, t.relname)::text AS name, part.kind, sum(part.bytes)::bigint AS bytes
FROM pg_class AS t
LEFT JOIN pg_inherits AS i ON i.inhrelid = t.oid
LEFT JOIN pg_class AS parent ON parent.oid = i.inhparent
CROSS JOIN LATERAL (
    SELECT coalesce(pg_total_relation_size(t.reltoastrelid), 0) AS toast, coalesce((
        SELECT sum(pg_total_relation_size(x.indexrelid)) FROM pg_index AS x
        JOIN pg_class AS xc ON xc.oid = x.indexrelid JOIN pg_am AS a ON a.oid = xc.relam
        WHERE x.indrelid = t.oid AND a.amname = 'gin'
    ), 0) AS text_index
) AS size
CROSS JOIN LATERAL (VALUES
    ('rows', pg_table_size(t.oid) - size.toast),
    ('TOAST', size.toast),
    ('indexes', pg_indexes_size(t.oid) - size.text_index),
    ('text index', size.text_index)
) AS part (kind, bytes)
WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r'
GROUP BY 1, 2
"""
_TEXT_INDEX: Final = ("message_packs", "text index")
# Parts that take less of all bytes are not worth a line.
_SHOWN: Final = 0.004

Parts = dict[tuple[str, str], int]
"""Bytes by table and kind."""


@dataclass
class Store:
    """A database with one way of storing messages."""

    url: str
    pool: StoragePool
    config: WriterConfig
    empty: Parts = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)

    def write(self, rows: list[dict[str, object]]) -> None:
        gc.collect()
        started = time.perf_counter()
        self.writer.write_spans(rows)
        self.writer.flush()
        self.seconds.append((time.perf_counter() - started) / len(rows))

    def read(self, trace_id: uuid.UUID) -> dict[str, Any]:
        """Return the content of a trace's spans by their ids."""
        started = time.perf_counter()
        trace = TraceRepository(self.pool).get_trace_by_id(trace_id)
        self.reads.append(time.perf_counter() - started)
        return {span.span_id: [span.input, span.output, span.attributes] for span in trace.spans}

    def settle(self) -> None:
        """Do what a store that is in use has had done once its days are over."""
        report = self.pool.maintain(ahead=dt.timedelta(0))
        assert report.is_complete, report
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    def parts(self) -> Parts:
        """Return the bytes that came since the store was empty."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(_BYTES).fetchall()
        return {(name, kind): size - self.empty.get((name, kind), 0) for name, kind, size in found}

    def __post_init__(self) -> None:
        self.writer = TraceWriter(self.pool, self.config)

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.reads) * 1000

    @property
    def p95_ms(self) -> float:
        return statistics.quantiles(self.reads, n=20)[-1] * 1000


@pytest.fixture(scope="module")
def stores(url: str) -> Iterator[dict[str, Store]]:
    with ExitStack() as stack:
        made = {}
        for name, share in ((ONCE, True), (COPIES, False)):
            where = stack.enter_context(database(url))
            pool = stack.enter_context(StoragePool.from_url(where, min_connections=1, max_connections=1))
            pool.run_migrations()
            store = Store(where, pool, WriterConfig(share_messages=share))
            store.settle()
            store.empty = store.parts()
            stack.enter_context(store.writer)
            made[name] = store
        yield made


@pytest.fixture(scope="module")
def rows(size: Size) -> Repeated:
    given = os.environ.get("OBSERVATORY_SHARED_DATA")
    shared_data = Path(given) if given else ROOT.parent / "shared" / "data"
    found = recorded(shared_data) if size.is_judged else None
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Three days that are over, also in the first minutes of a day.
    return Repeated(found or generated(40 if size.is_judged else 4), today - dt.timedelta(days=4))


def test_storage_size(
    stores: dict[str, Store], rows: Repeated, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    # 100,000 spans but in a quick run; each round has as many as a writer puts into one transaction.
    wanted = _ASKED if size.rows >= 30_000 else size.rows
    copies = max(3, round(wanted / len(rows)))
    at_once = max(1, 5_000 // len(rows))
    # Which copy each trace is of.
    traces: dict[bytes, int] = {}
    assert _only_prompts_are_shared(rows.copy(0), rows.copy(3))

    def write() -> None:
        order = list(stores.values())
        for first in range(0, copies, at_once):
            made = []
            for number in range(first, min(first + at_once, copies)):
                copy = rows.copy(number)
                traces.update((span["trace_id"], number) for span in copy)
                made += copy
            for store in order:
                store.write(made)
            order.reverse()

    benchmark.pedantic(write, rounds=1)
    dice = random.Random(1)
    known = sorted(traces)
    for store in stores.values():
        store.settle()
    for round_number in range(size.pick(20, 100, 400)):
        trace_id = dice.choice(known)
        order = list(stores.values()) if round_number % 2 else [*stores.values()][::-1]
        first, second = (store.read(uuid.UUID(bytes=trace_id)) for store in order)
        assert first == second
        # Making a copy again takes longer than all else here.
        if round_number < 20:
            assert first == _content(rows.copy(traces[trace_id]), trace_id)
    parts = {name: store.parts() for name, store in stores.items()}
    taken = {name: sum(found.values()) for name, found in parts.items()}
    once, each = stores[ONCE], stores[COPIES]
    share = taken[ONCE] / taken[COPIES]
    assert parts[ONCE][_TEXT_INDEX] > 0
    text_index = parts[ONCE][_TEXT_INDEX] / taken[COPIES]
    # Pair by pair; the first of the rounds makes partitions.
    rate = statistics.median(slow / fast for fast, slow in zip(once.seconds, each.seconds, strict=True))
    latency = once.p95_ms / each.p95_ms
    spans = copies * len(rows)
    benchmark.extra_info |= {
        "bytes": taken,
        "share": share,
        "text_index": text_index,
        "rate": rate,
        "latency": latency,
        "spans": spans,
    }
    report.add(
        f"agent conversations, {spans:,} spans, {copies} copies of {len(rows)} on 3 days",
        machine,
        *(
            f"{name:<24} {taken[name]:>13,} bytes {1 / statistics.median(store.seconds):>9,.0f} spans/s   "
            f"get_trace_by_id p50 {store.p50_ms:.2f} ms, p95 {store.p95_ms:.2f} ms"
            for name, store in stores.items()
        ),
        f"once to copies: bytes {share:.3f} (without the text index {share - text_index:.3f}), rate {rate:.2f}, "
        f"p95 {latency:.2f}",
    )
    for name in stores:
        report.table(
            f"Where the bytes are, {name}",
            ["", "bytes", "of all copies"],
            [
                [f"{table}: {kind}", f"{taken_here:,}", f"{taken_here / taken[COPIES]:.3f}"]
                for (table, kind), taken_here in sorted(parts[name].items(), key=lambda part: -part[1])
                if taken_here >= _SHOWN * taken[COPIES]
            ],
        )
    asked = round(_ASKED / len(rows)) * len(rows)
    for key, value in (("storage_bytes", share), ("storage_rate", rate), ("storage_latency", latency)):
        report.measure(key, value, f"at {spans:,} spans", partial=spans < asked)
    # What every partition takes without a row weighs too much in a quick run.
    if spans >= asked:
        assert share <= MOST_BYTES
    if size.is_judged:
        assert rate >= LEAST_RATE
        assert latency <= MOST_LATENCY


def _content(copy: list[dict[str, Any]], trace_id: bytes) -> dict[str, Any]:
    return {
        span["span_id"].hex(): orjson.loads(
            orjson.dumps([span.get("input"), span.get("output"), span.get("attributes") or {}])
        )
        for span in copy
        if span["trace_id"] == trace_id
    }


def _only_prompts_are_shared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Tell whether two copies have no message in common but system prompts."""
    said = [
        {orjson.dumps(message): message["role"] for span in copy for message in _messages(span)}
        for copy in (one, other)
    ]
    return {said[0][text] for text in said[0].keys() & said[1].keys()} <= {"system"}


def _messages(span: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for given in (span.get("input"), span.get("output")):
        if isinstance(given, list):
            yield from (message for message in given if isinstance(message, dict) and "role" in message)
