"""An experiment: what if the hot partition had its primary key alone, and its other indexes were built when it closes?

Three databases: one with all indexes, one with the primary key of `trace_spans` alone, one with no index on it at all.
What is written, what reads cost until the indexes are there, and what building them costs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import psycopg
import pytest

from benchmarks import spans as span_ways
from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings, TimingsBetween, Way, quartiles
from benchmarks.latency import Latencies, Operation
from benchmarks.machine import cores_apart
from benchmarks.spans import SpanWays
from benchmarks.stored import SPANS_A_DAY, Copy, Template
from observatory_storage.lifecycle.indexes import create_index, index_name
from observatory_storage.models import TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.trace import TraceRepository
from observatory_storage.writers import WriteMethod
from tests.servers import database

ALL, KEY, NONE = "all indexes", "primary key alone", "no index"
BASE: Final = f"{ways.LIMIT}, {NONE}"
_JUDGED: Final = (ways.LIMIT, span_ways.TRACE_WRITER_COPY)
_PARTITIONS: Final = "SELECT relid::regclass::text FROM pg_partition_tree('trace_spans') WHERE isleaf ORDER BY 1"
_DEFINITION: Final = "SELECT pg_get_indexdef(%s::regclass)"


@pytest.fixture
def pools(url: str, template: str) -> Iterator[dict[str, StoragePool]]:
    with ExitStack() as stack:
        urls = {ALL: url, **{name: stack.enter_context(database(url, template)) for name in (KEY, NONE)}}
        stack.enter_context(cores_apart(url))
        yield {
            name: stack.enter_context(StoragePool.from_url(one, min_connections=1, max_connections=1))
            for name, one in urls.items()
        }


def test_late_indexes(
    pools: dict[str, StoragePool], size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    made = {name: SpanWays(pool, size.pick(200, 3_000, 20_000), blobs_only=True) for name, pool in pools.items()}
    for name in (KEY, NONE):
        _drop_indexes(pools[name], and_key=name == NONE)
    timings = Timings([way for name, one in made.items() for way in _ways(name, one)])
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.pick(1, 1, 5, 9))
    records = timings.summary({"of the limit without index": BASE})
    benchmark.extra_info.update(machine=machine, ways=records)
    report.ways("Ingest by the indexes of trace_spans; those of traces are there in all", records)
    late = f"{span_ways.TRACE_WRITER_COPY}, {KEY}"
    gain = timings.ratio(late, f"{span_ways.TRACE_WRITER_COPY}, {ALL}")
    for one in made.values():
        one.close()
    near = _near_the_limit(pools, size, report)
    worst, slower = _report_reads(pools, size, report)
    lower, median, upper = quartiles(near.ratios(late, BASE))
    report.measure(
        "late_indexes",
        median,
        f"{gain:.2f} × TraceWriter with all indexes, in turns; until they are built {worst} takes {slower:.0f} × as "
        "long: reads do not keep their bounds",
        spread=(lower, upper),
    )


def _near_the_limit(pools: dict[str, StoragePool], size: Size, report: Report) -> TimingsBetween:
    """What is asked of late indexes once more, by the dozen batches and between two runs of the limit."""
    made = {name: SpanWays(pools[name], size.many_rows, blobs_only=True) for name in (NONE, KEY)}
    base = Way(BASE, size.many_rows, made[NONE].send_blobs, made[NONE].empty)
    timings = TimingsBetween(base, [way for way in _ways(KEY, made[KEY]) if way.name.startswith(_JUDGED)])
    timings.run_round(keep=False)
    rounds = size.many_rounds
    for _ in range(rounds):
        timings.run_round()
    title = f"The same, each between two runs of the limit without index, {rounds} rounds"
    report.ways(title, timings.summary({"of the limit without index": BASE}))
    for one in made.values():
        one.close()
    return timings


def _ways(name: str, made: SpanWays) -> list[Way]:
    found = [made.way(f"{ways.LIMIT}, {name}", made.send_blobs), made.way(f"{ways.COPY_WRITER}, {name}", made.copy)]
    if name != NONE:
        # Without a key nothing is exact under replay.
        writer = f"{span_ways.TRACE_WRITER_COPY}, {name}"
        found.append(made.way(writer, lambda: made.write(WriteMethod.COPY)))
    return found


def _report_reads(pools: dict[str, StoragePool], size: Size, report: Report) -> tuple[str, float]:
    """Report what reads cost; return which suffers most until the indexes are there, and how many times it takes."""
    spans = size.pick(400, 5_000, 100_000, SPANS_A_DAY)
    template = Template(pools[ALL], size.pick(400, 5_000, 10_000))
    copies = template.load(pools[ALL], spans)
    template.load(pools[KEY], spans)
    before = _reads(pools, template, [*copies], size)
    built = _build(pools[KEY], _definitions(pools[ALL]))
    after = _reads(pools, template, [*copies], size)
    names = [name.removesuffix(f", {ALL}") for name in before.seconds if name.endswith(f", {ALL}")]
    stored = len(copies) * len(template.rows)
    report.table(
        f"Reads of a hot partition of {stored:,} spans, against all indexes",
        ["", "until they are built, ×", "p50 ms", "when they are built, ×", "with all from the start, p50 ms"],
        [
            [
                name,
                f"{before.ratio(f'{name}, {KEY}', f'{name}, {ALL}'):.2f}",
                f"{before.records()[f'{name}, {KEY}']['median'] * 1000:.2f}",
                f"{after.ratio(f'{name}, {KEY}', f'{name}, {ALL}'):.2f}",
                f"{before.records()[f'{name}, {ALL}']['median'] * 1000:.2f}",
            ]
            for name in names
        ],
    )
    report.table(
        f"Building the indexes of {stored:,} spans afterwards, CREATE INDEX CONCURRENTLY",
        ["index", "seconds", "µs a span"],
        [[name, f"{seconds:.2f}", f"{seconds / stored * 1e6:.2f}"] for name, seconds in built.items()],
    )
    report.data.setdefault("records", {})["built, seconds"] = built | {"spans": stored}
    slower = {name: before.ratio(f"{name}, {KEY}", f"{name}, {ALL}") for name in names}
    worst = max(names, key=slower.__getitem__)
    return worst, slower[worst]


def _reads(pools: dict[str, StoragePool], template: Template, copies: list[Copy], size: Size) -> Latencies:
    operations: dict[str, Operation] = {}
    for name in (ALL, KEY):
        repository = TraceRepository(pools[name])
        dice = random.Random(4)
        operations |= {
            f"spans: newest 50, {name}": _spans(repository, SpanFilters(project="default")),
            f"spans: newest 50 of a model, {name}": _spans(repository, SpanFilters(model="mistral-large-latest")),
            f"spans: newest 50 of a user, {name}": _spans(repository, SpanFilters(user_id="user_00001")),
            f"traces: newest 50, {name}": _traces(repository, TraceFilters(project="default")),
            f"traces: newest 50 of a model, {name}": _traces(repository, TraceFilters(model="mistral-large-latest")),
            f"traces: of a model that nobody uses, {name}": _traces(repository, TraceFilters(model="absent")),
            f"one trace with spans and events, {name}": _one(repository, template, copies, dice),
        }
    timings = Latencies(operations)
    timings.run(size.pick(2, 10, 20))
    return timings


def _spans(repository: TraceRepository, filters: SpanFilters) -> Callable[[], object]:
    return lambda: repository.list_spans(filters)


def _traces(repository: TraceRepository, filters: TraceFilters) -> Callable[[], object]:
    return lambda: repository.list(filters)


def _one(
    repository: TraceRepository, template: Template, copies: list[Copy], dice: random.Random
) -> Callable[[], object]:
    return lambda: repository.get_trace_by_id(template.trace_id(copies, dice))


def _drop_indexes(pool: StoragePool, *, and_key: bool) -> None:
    with pool.raw_connection() as connection:
        for name in _names():
            connection.execute(f"DROP INDEX {name}".encode())
        if and_key:
            connection.execute("ALTER TABLE trace_spans DROP CONSTRAINT trace_spans_pkey")
        connection.commit()


def _names() -> list[str]:
    return [str(index.name) for index in TraceSpan.metadata.tables["trace_spans"].indexes]


def _definitions(pool: StoragePool) -> dict[str, str]:
    """What each secondary index is of, as the server spells it."""
    with pool.raw_connection() as connection:
        found: dict[str, Any] = {name: connection.execute(_DEFINITION, [name]).fetchone() for name in _names()}
    return {name: f"USING {row[0].partition(' USING ')[2]}" for name, row in found.items()}


def _build(pool: StoragePool, definitions: dict[str, str]) -> dict[str, float]:
    """Build the indexes on each partition beside whoever writes; return what each took."""
    seconds: dict[str, float] = {}
    with psycopg.connect(pool.config.postgres.conninfo(), autocommit=True) as connection:
        partitions = [row[0] for row in connection.execute(_PARTITIONS)]
        for name, definition in definitions.items():
            started = time.perf_counter()
            for partition in partitions:
                create_index(connection, partition, index_name(partition, name.removeprefix("trace_spans")), definition)
            seconds[name] = round(time.perf_counter() - started, 3)
        connection.execute("VACUUM ANALYZE trace_spans")
    return seconds
