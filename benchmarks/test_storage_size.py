"""The same agent conversations with messages stored once and with a copy in each span: bytes, rate, read latency.

Written and read in turns, so that a slow minute falls on both.
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
from typing import Final

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

# All that the store takes, whichever table it is in.
_BYTES: Final = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
"""


@dataclass
class Store:
    """A database with one way of storing messages."""

    url: str
    pool: StoragePool
    config: WriterConfig
    empty_bytes: int
    seconds: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)

    def write(self, rows: list[dict[str, object]]) -> None:
        gc.collect()
        started = time.perf_counter()
        self.writer.write_spans(rows)
        self.writer.flush()
        self.seconds.append((time.perf_counter() - started) / len(rows))

    def read(self, trace_id: uuid.UUID) -> int:
        started = time.perf_counter()
        trace = TraceRepository(self.pool).get_trace_by_id(trace_id)
        self.reads.append(time.perf_counter() - started)
        return sum(len(span.input) for span in trace.spans if isinstance(span.input, list))

    def bytes(self) -> int:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            row = connection.execute(_BYTES).fetchone()
        assert row is not None
        return int(row[0]) - self.empty_bytes

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
            store = Store(where, pool, WriterConfig(share_messages=share), 0)
            store.empty_bytes = store.bytes()
            stack.enter_context(store.writer)
            made[name] = store
        yield made


@pytest.fixture(scope="module")
def rows(size: Size) -> Repeated:
    given = os.environ.get("OBSERVATORY_SHARED_DATA")
    shared_data = Path(given) if given else ROOT.parent / "shared" / "data"
    found = recorded(shared_data) if size.is_judged else None
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Repeated(found or generated(40 if size.is_judged else 4), today - dt.timedelta(days=2))


def test_storage_size(
    stores: dict[str, Store], rows: Repeated, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    # 100,000 spans in a full run; each round has as many as a writer puts into one transaction.
    wanted = _ASKED if size.rows >= 30_000 else size.rows * 2
    copies = max(3, round(wanted / len(rows)))
    at_once = max(1, 5_000 // len(rows))
    trace_ids: set[bytes] = set()

    def write() -> None:
        order = list(stores.values())
        for first in range(0, copies, at_once):
            made = [span for number in range(first, min(first + at_once, copies)) for span in rows.copy(number)]
            trace_ids.update(span["trace_id"] for span in made)
            for store in order:
                store.write(made)
            order.reverse()

    benchmark.pedantic(write, rounds=1)
    dice = random.Random(1)
    known = sorted(trace_ids)
    for round_number in range(400 if size.is_judged else 20):
        trace_id = uuid.UUID(bytes=dice.choice(known))
        order = list(stores.values()) if round_number % 2 else [*stores.values()][::-1]
        assert len({store.read(trace_id) for store in order}) == 1
    taken = {name: store.bytes() for name, store in stores.items()}
    once, each = stores[ONCE], stores[COPIES]
    share = taken[ONCE] / taken[COPIES]
    # Pair by pair; the first of the rounds makes partitions.
    rate = statistics.median(slow / fast for fast, slow in zip(once.seconds, each.seconds, strict=True))
    latency = once.p95_ms / each.p95_ms
    spans = copies * len(rows)
    benchmark.extra_info |= {"bytes": taken, "share": share, "rate": rate, "latency": latency, "spans": spans}
    report.add(
        f"agent conversations, {spans:,} spans, {copies} copies of {len(rows)} on 3 days",
        machine,
        *(
            f"{name:<24} {taken[name]:>13,} bytes {1 / statistics.median(store.seconds):>9,.0f} spans/s   "
            f"get_trace_by_id p50 {store.p50_ms:.2f} ms, p95 {store.p95_ms:.2f} ms"
            for name, store in stores.items()
        ),
        f"once to copies: bytes {share:.3f}, rate {rate:.2f}, p95 {latency:.2f}",
    )
    asked = round(_ASKED / len(rows)) * len(rows)
    for key, value in (("storage_bytes", share), ("storage_rate", rate), ("storage_latency", latency)):
        report.measure(key, value, f"at {spans:,} spans", partial=spans < asked)
