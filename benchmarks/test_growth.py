"""The same work at 50,000, 500,000 and (`--full`) 5,000,000 stored spans, 250,000 a day.

One store grows, a second one keeps the smallest size and a third is empty before each batch. Reads of the first take
turns with the same reads of the second, and batches into the first with the same batches into the third, so that what
is compared was measured in the same minute. At the smallest size the two stores are alike: its ratios are the noise.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pytest

from benchmarks import progress
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, TimingsBetween, Way, p95, quartiles
from benchmarks.latency import Latencies, Operation, ms
from benchmarks.machine import cores_apart
from benchmarks.spans import TABLES
from benchmarks.stored import Copy, Template, days_covered, write
from benchmarks.test_query_performance import Store, reads
from benchmarks.ways import checkpoint, pieces
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.filters import TraceFilters
from observatory_storage.repositories.trace import TraceRepository
from tests.servers import database

ASKED: Final = 5_000_000
NEWEST: Final = "newest"
ONE_TRACE: Final = "one trace with spans and events"
NAME: Final = "a word in names, frequent"
NO_NAME: Final = "a word in names, of no trace"
WRITER: Final = "TraceWriter, COPY"
LIMIT: Final = "server limit"
_EMPTY: Final = f"TRUNCATE {TABLES}".encode()
# The rows of the rounds lie after those that are stored.
_FORGET: Final = (
    "DELETE FROM trace_events WHERE span_start_time >= %s",
    "DELETE FROM trace_spans WHERE start_time >= %s",
    "DELETE FROM traces WHERE start_time >= %s",
)
_SIZES: Final = (
    "SELECT sum(pg_total_relation_size(relid)) / 1e9, count(*) FILTER (WHERE isleaf AND level > 0) "
    "FROM (SELECT * FROM pg_partition_tree('trace_spans') UNION ALL SELECT * FROM pg_partition_tree('traces')) AS tree"
)
# Writes spans as an application does, hour after hour, and prints the megabytes it holds after every 50,000. Tables
# are emptied in between: it is the writer that is looked at.
_LONG_RUN: Final = """
import gc, sys
import psutil
from benchmarks.stored import Template, write
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
url, total, step, spans = sys.argv[1], *map(int, sys.argv[2:])
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    template = Template(pool, spans)
    config = WriterConfig(method=WriteMethod.COPY, flush_interval_seconds=60)
    with TraceWriter(pool, config) as writer:
        written = place = 0
        while written < total:
            writer.write_spans(template.fresh(min(spans, step), place))
            written, place = written + min(spans, step), place + 1
            if written % step == 0:
                writer.flush()
                gc.collect()
                print(written, psutil.Process().memory_info().rss / 1e6, flush=True)
                with pool.raw_connection() as connection:
                    connection.execute("TRUNCATE trace_spans, trace_events, traces")
                    connection.commit()
"""


@dataclass
class Stores:
    """The growing store, the one that stays small, and the empty one."""

    template: Template
    large: StoragePool
    small: StoragePool
    empty: StoragePool
    small_copies: Sequence[Copy]
    large_copies: Sequence[Copy] = ()
    stored: int = 0

    def grow(self, spans: int) -> float:
        """Fill the growing store up; return how many spans a second came in, indexes, summaries and vacuum and all."""
        started = time.perf_counter()
        copies = self.template.load(self.large, spans, already=self.stored)
        self.large_copies = [*self.large_copies, *copies]
        self.stored = len(self.large_copies) * len(self.template.rows)
        return len(copies) * len(self.template.rows) / (time.perf_counter() - started)


@pytest.fixture(scope="module")
def sizes(size: Size) -> tuple[int, ...]:
    if size.name == "smoke":
        return (400, 800)
    if size.name == "quick":
        return (2_500, 12_500)
    return (50_000, 500_000) if size.name == "default" else (50_000, 500_000, 5_000_000)


@pytest.fixture(scope="module")
def stores(url: str, template: str, size: Size, sizes: tuple[int, ...]) -> Iterator[Stores]:
    with ExitStack() as stack:
        urls = [url, stack.enter_context(database(url, template)), stack.enter_context(database(url, template))]
        stack.enter_context(cores_apart(url))
        large, small, empty = (
            stack.enter_context(StoragePool.from_url(one, min_connections=1, max_connections=1)) for one in urls
        )
        # Encoded in the small store, whose resources are those that the rows name.
        spans = Template(small, size.pick(400, 2_500, 10_000))
        write(empty, spans.rows)
        yield Stores(spans, large, small, empty, spans.load(small, sizes[0]))


def test_growth(
    stores: Stores, sizes: tuple[int, ...], size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    stored: list[list[str]] = []
    read: dict[int, Latencies] = {}
    written: dict[int, Written] = {}
    reads_a_size = size.pick(2, 20, 100)

    def work() -> None:
        for spans in sizes:
            progress.say(f"growth: loading up to {spans:,} spans")
            rate = stores.grow(spans)
            stored.append(_described(stores, rate))
            progress.say(f"growth: reading at {spans:,} spans")
            read[spans] = _reads(stores)
            read[spans].run(reads_a_size)
            progress.say(f"growth: writing at {spans:,} spans")
            written[spans] = _writes(stores, size, spans)

    benchmark.pedantic(work, rounds=1)
    benchmark.extra_info.update(
        machine=machine,
        reads={spans: latencies.records() for spans, latencies in read.items()},
        writes={
            spans: [ways.timings.summary({"× empty": f"{ways.name}, empty"}) for ways in both]
            for spans, both in written.items()
        },
    )
    report.table(
        "What is stored",
        ["spans", "days", "partitions", "GB with indexes", "loaded, spans/s"],
        stored,
        "Loaded as encoded blobs of spans, events and traces, with VACUUM ANALYZE and CHECKPOINT in the time; "
        f"shared_buffers {report.data['machine']['settings']['shared_buffers']}.",
    )
    _report_writes(report, written)
    _report_reads(report, read)


def _report_writes(report: Report, written: dict[int, Written]) -> None:
    rows = []
    rounds = 0
    for spans, both in written.items():
        cells = [f"{spans:,}"]
        for ways in both:
            lower, median, upper = quartiles(ways.ratios)
            cells.append(f"{median:.2f} ({lower:.2f}–{upper:.2f})")
            rounds = len(ways.ratios)
        rates = [quartiles(ways.timings.rates(f"{ways.name}, stored"))[1] for ways in both]
        cells.append(f"{rates[0] / rates[1]:.2f}")
        cells += [f"{rate:,.0f}" for rate in rates]
        rows.append(cells)
    report.table(
        f"Ingest against the same batches into empty tables, each between two of those, {rounds} rounds",
        ["spans stored", WRITER, LIMIT, "TraceWriter of the limit", "TraceWriter, spans/s", "limit, spans/s"],
        rows,
        "The limit is one COPY without events, the writer's batches have 5,000 spans each with their events.",
    )
    largest = max(written)
    writer, limit = written[largest]
    lower, median, upper = quartiles(writer.ratios)
    note = (
        f"at {largest:,} spans, with one CHECKPOINT before all rounds; the limit has {quartiles(limit.ratios)[1]:.2f}"
    )
    report.measure("ingest_when_large", median, note, spread=(lower, upper), partial=largest < ASKED)


def _report_reads(report: Report, read: dict[int, Latencies]) -> None:
    sizes = [*read]
    names = [name.removesuffix(", large") for name in read[sizes[0]].seconds if name.endswith(", large")]
    ratios = {
        name: {spans: read[spans].p95_ratio(f"{name}, large", f"{name}, small") for spans in sizes} for name in names
    }
    report.table(
        f"Reads: p95 against a store of {sizes[0]:,} spans, and in ms",
        ["", *(f"× at {spans:,}" for spans in sizes), *(f"ms at {spans:,}" for spans in sizes)],
        [
            [
                name,
                *(f"{ratios[name][spans]:.2f}" for spans in sizes),
                *(ms(p95(read[spans].seconds[f"{name}, large"])) for spans in sizes),
            ]
            for name in names
        ],
        f"At {sizes[0]:,} both stores are alike: that column is the noise.",
    )
    report.lines(
        "growth_reads",
        f"Reads: p95 against {sizes[0]:,} spans",
        [f"{spans:,}" for spans in sizes],
        {name: [round(ratios[name][spans], 3) for spans in sizes] for name in names},
        x_title="spans stored",
        logarithmic=True,
    )
    report.data.setdefault("records", {})["p95 ratios"] = {
        name: {str(spans): round(ratio, 3) for spans, ratio in found.items()} for name, found in ratios.items()
    }
    largest = sizes[-1]
    for key, chosen in (
        ("newest_when_large", [name for name in names if name.startswith(NEWEST)]),
        ("one_trace_when_large", [ONE_TRACE]),
        ("name_search_when_large", [NAME, NO_NAME]),
    ):
        worst = max(chosen, key=lambda name: ratios[name][largest])
        note = f"at {largest:,} spans against {sizes[0]:,}; the worst: {worst}"
        spread = read[largest].p95_spread(f"{worst}, large", f"{worst}, small")
        report.measure(key, ratios[worst][largest], note, spread=spread, partial=largest < ASKED)


def test_memory_of_a_long_run(
    url: str, template: str, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    total = size.pick(1_000, 20_000, 500_000, 5_000_000)
    step = size.pick(400, 10_000, 50_000)
    found: list[tuple[int, float]] = []

    def run() -> None:
        with database(url, template) as own:
            command = [sys.executable, "-c", _LONG_RUN, own, str(total), str(step), str(size.pick(400, 2_500, 10_000))]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    spans, megabytes = line.split()
                    found.append((int(spans), float(megabytes)))
                    progress.say(f"growth: {int(spans):,} of {total:,} spans by one writer")
            assert process.returncode == 0

    benchmark.pedantic(run, rounds=1)
    # What the first 100,000 took: caches of ids and statements, the allocator's arenas.
    base = next((megabytes for spans, megabytes in found if spans >= 100_000), found[0][1])
    after = [megabytes for spans, megabytes in found if spans >= min(100_000, found[-1][0])]
    note = f"over {found[-1][0]:,} spans by one writer"
    report.measure("writer_memory", max(after) - base, note, partial=found[-1][0] < ASKED)
    shown = found if len(found) <= 20 else found[:: len(found) // 20]
    report.lines(
        "growth_memory",
        "Memory of the writer's process, MB",
        [f"{spans // 1000}k" for spans, _ in shown],
        {"resident": [round(megabytes, 1) for _, megabytes in shown]},
        x_title="spans written",
    )
    report.table(
        "Memory of a process that writes spans, MB",
        ["", "MB"],
        [
            ["after 100,000 spans", f"{base:.0f}"],
            ["most, afterwards", f"{max(after):.0f}"],
            [f"after {found[-1][0]:,} spans", f"{found[-1][1]:.0f}"],
        ],
        "The rows that it writes again and again, about 40 MB, are part of it.",
    )


def _reads(stores: Stores) -> Latencies:
    repositories = {"small": TraceRepository(stores.small), "large": TraceRepository(stores.large)}
    copies = {"small": stores.small_copies, "large": stores.large_copies}
    # The newest trace, and so the filters, are the same in both.
    filters = reads(Store(stores.template, [*stores.small_copies], 0), repositories["small"])
    # What the small store has too little of for a page, a session, fills no more of the other's.
    pages = {name: len(repositories["small"].list(chosen)) for name, chosen in filters.items()}
    operations: dict[str, Operation] = {}
    for which, repository in repositories.items():
        for name, chosen in filters.items():
            shown = name.replace("50", str(pages[name]))
            operations[f"{shown}, {which}"] = _list(repository, chosen.model_copy(update={"limit": pages[name]}))
        operations[f"{ONE_TRACE}, {which}"] = _one(repository, stores.template, copies[which])
        operations[f"{NAME}, {which}"] = _list(repository, TraceFilters(name="airline"))
        operations[f"{NO_NAME}, {which}"] = _list(repository, TraceFilters(name="zeppelin"))
    return Latencies(operations)


def _list(repository: TraceRepository, filters: TraceFilters) -> Callable[[], object]:
    return lambda: repository.list(filters)


def _one(repository: TraceRepository, template: Template, copies: Sequence[Copy]) -> Callable[[], object]:
    dice = random.Random(4)
    return lambda: repository.get_trace_by_id(template.trace_id(copies, dice))


class _Growing(NamedTuple):
    """One way of writing batches into the growing store, each between two runs of the same into the empty one."""

    name: str
    timings: TimingsBetween

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as into the empty one."""
        return self.timings.ratios(f"{self.name}, stored", f"{self.name}, empty")


Written = tuple[_Growing, _Growing]
"""TraceWriter, and the server's limit."""


def _writes(stores: Stores, size: Size, stored: int) -> Written:
    """Batches into the growing store, each between two runs of the same into the empty one.

    One CHECKPOINT before all rounds, and a round that is not kept. A CHECKPOINT before each would have every page of
    the growing store that a round touches, hundreds of them in each index, logged as a whole once more, and none of the
    empty one, whose pages are new: 0.85 at 5,000,000 spans. A server that is written to does that once in
    `checkpoint_timeout`.
    """
    count = size.pick(100, 2_500, 10_000)
    rows: list[SpanRow] = []
    blobs: list[bytes] = []

    def send(pool: StoragePool) -> None:
        with pool.raw_connection() as connection:
            names = ", ".join(stores.template.spans.columns)
            statement = f"COPY trace_spans ({names}) FROM STDIN (FORMAT BINARY)".encode()
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                for piece in blobs:
                    copy.write(piece)
            connection.commit()

    def settle() -> None:
        """Leave the store as it is."""

    def empty() -> None:
        with stores.empty.raw_connection() as connection:
            connection.execute(_EMPTY)
            connection.commit()

    sent = len(stores.template.rows)
    writer = TimingsBetween(
        Way(f"{WRITER}, empty", count, lambda: write(stores.empty, rows), empty),
        [Way(f"{WRITER}, stored", count, lambda: write(stores.large, rows), settle)],
    )
    limit = TimingsBetween(
        Way(f"{LIMIT}, empty", sent, lambda: send(stores.empty), empty),
        [Way(f"{LIMIT}, stored", sent, lambda: send(stores.large), settle)],
    )
    # Numbers that no other size has, so that no row is there already.
    first = stored // 100
    with stores.large.raw_connection() as connection:
        checkpoint(connection)
    rounds = size.pick(1, 1, 15)
    for number in range(rounds + 1):
        rows[:] = stores.template.fresh(count, first + number)
        later = Copy.number(first + number, 7, 0, int(23.2 * 3600e6))
        blobs[:] = [*pieces(b"".join(stores.template.spans.stream([later])))]
        for timings in (writer, limit):
            timings.run_round(keep=number > 0)
    with stores.large.raw_connection() as connection:
        for statement in _FORGET:
            connection.execute(statement.encode(), [min(row["start_time"] for row in rows)])
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE trace_spans")
        connection.autocommit = False
    return _Growing(WRITER, writer), _Growing(LIMIT, limit)


def _described(stores: Stores, rate: float) -> list[str]:
    with stores.large.raw_connection() as connection:
        found: Any = connection.execute(_SIZES).fetchone()
    return [
        f"{stores.stored:,}",
        f"{days_covered(stores.stored):.1f}",
        str(found[1] - 1),
        f"{found[0]:.2f}",
        f"{rate:,.0f}",
    ]
