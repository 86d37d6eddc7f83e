"""Retention of a month of two projects' traces while four writers write: what goes, what stays, what it costs them.

Of the older days all rows go, with their partitions. Of those in the middle one project's rows go and the other's stay:
they are deleted in batches. The rows of the writers are a third project's, without a policy.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import pytest

from benchmarks import progress
from benchmarks.conftest import Report, Size
from benchmarks.data import SPANS_PER_TRACE, SpanSource
from benchmarks.interleaved import Benchmark
from benchmarks.live_writers import PROJECT, LiveWriters, Written, longest_batch, spans_a_second
from benchmarks.maintainer import Maintainer, Run
from benchmarks.stored import Copy, Template, settle, write
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import SpanRow, TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.models.message import MESSAGE_TABLES
from observatory_storage.pool import StoragePool

SHORT, LONG = "short", "long"
TABLES: Final = ("traces", "trace_spans", "trace_events")
# What is left by others' use of a table, the next run removes; so many are enough, or something is wrong.
_MOST_RUNS: Final = 5
# A trace that ended in the hour before its project's cutoff would stay; none takes so long.
_SETTLE: Final = dt.timedelta(hours=1)
_DAY: Final = dt.timedelta(days=1)
_DAY_US: Final = 86_400_000_000

Rows: TypeAlias = dict[str, Counter[str]]
"""How many rows, by project and table."""


class Plan(NamedTuple):
    """What is loaded: `days` before today, of each project; so many are kept; so many spans are in one copy."""

    days: int
    keep: Mapping[str, int]
    copies_a_day: int
    template_spans: int
    talk_spans: int
    writers: int
    batch_rows: int
    warm_up_seconds: float
    window_seconds: float

    @property
    def retention(self) -> str:
        """The policies, as settings have them."""
        return ", ".join(f"traces:{project}={days}d" for project, days in self.keep.items())

    def border(self, project: str) -> dt.datetime:
        """Return before which time a trace must have started to be gone now."""
        cutoff = dt.datetime.now(dt.UTC) - self.keep[project] * _DAY - _SETTLE
        return cutoff.replace(hour=0, minute=0, second=0, microsecond=0)


class Loaded:
    """The spans that retention is let loose on, and how many of them are to be left."""

    def __init__(self, pool: StoragePool, plan: Plan) -> None:
        self._plan = plan
        self._templates = {project: Template(pool, plan.template_spans, project=project) for project in plan.keep}
        step_us = _DAY_US // plan.copies_a_day
        self._copies = {
            project: [Copy.number(place, seed, step_us, -step_us) for place in range(plan.days * plan.copies_a_day)]
            for seed, project in enumerate(plan.keep)
        }
        # Conversations, whose messages are stored once: few, and by TraceWriter, which knows how.
        self._talks: list[tuple[str, list[SpanRow]]] = []
        for seed, project in enumerate(plan.keep, 60):
            rows = SpanSource(seed, whole=True, events=True).spans(plan.talk_spans)
            self._talks += [(project, Copy.number(day, seed, _DAY_US).of(rows)) for day in range(plan.days, 0, -1)]
        started = time.perf_counter()
        for project, template in self._templates.items():
            progress.say(f"retention: loading {len(self._copies[project]) * plan.template_spans:,} spans of {project}")
            template.add(pool, self._copies[project][::-1])
        spans = sum(len(copies) for copies in self._copies.values()) * plan.template_spans
        self.rate = spans / (time.perf_counter() - started)
        for project, rows in self._talks:
            write(pool, rows, project)
        settle(pool)

    def all(self) -> Rows:
        """Return what was loaded."""
        return self._since(dict.fromkeys(self._plan.keep, dt.datetime(2000, 1, 1, tzinfo=dt.UTC)))

    def to_be_left(self) -> Rows:
        """Return what is to be left when retention runs now."""
        return self._since({project: self._plan.border(project) for project in self._plan.keep})

    def _since(self, moments: Mapping[str, dt.datetime]) -> Rows:
        found = {
            project: self._templates[project].started_from(moment, self._copies[project])
            for project, moment in moments.items()
        }
        for project, rows in self._talks:
            found[project] += _started_from(moments[project], rows)
        return found


def _started_from(moment: dt.datetime, rows: Sequence[SpanRow]) -> Counter[str]:
    traces: dict[object, list[SpanRow]] = defaultdict(list)
    for row in rows:
        traces[row["trace_id"]].append(row)
    left = [spans for spans in traces.values() if min(_start(row) for row in spans) >= moment]
    events = sum(len(row.get("events") or ()) for spans in left for row in spans)
    return Counter(traces=len(left), trace_spans=sum(map(len, left)), trace_events=events)


def _start(row: SpanRow) -> dt.datetime:
    start = row["start_time"]
    assert start is not None
    return start


@pytest.fixture(scope="module")
def plan(size: Size) -> Plan:
    # Of 30 days 9 go with their partitions, of 14 more the rows of one project do; of 9 days 3 and 3.
    days, short, long = {"smoke": (6, 2, 4), "quick": (9, 3, 6)}.get(size.name, (30, 7, 21))
    copies_a_day = size.pick(1, 2, 4, 10)
    spans = size.pick(480, 10_000, 500_000, 5_000_000)
    traces = -(-spans // (2 * days * copies_a_day * SPANS_PER_TRACE))
    return Plan(
        days,
        {SHORT: short, LONG: long},
        copies_a_day,
        traces * SPANS_PER_TRACE,
        talk_spans=size.pick(5, 10, 60, 200),
        writers=size.pick(1, 4, 4),
        batch_rows=size.pick(40, 500, 1_500),
        warm_up_seconds=size.pick(0, 1, 5, 10),
        window_seconds=0.1 if size.name == "smoke" else size.pick(0, 2, 20, 120),
    )


def test_retention_beside_writers(
    url: str, plan: Plan, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
        loaded = Loaded(pool, plan)
        before, messages_before = _stored(pool), _messages(pool)
        assert before == loaded.all()
        described = _described(pool, plan, before, loaded.rate)
        to_be_left = [loaded.to_be_left()]
        runs: list[Run] = []
        with (
            LiveWriters(url, plan.writers, plan.batch_rows) as writers,
            Maintainer(url, plan.retention) as maintainer,
        ):
            writers.start()
            progress.say("retention: writers alone")
            time.sleep(plan.warm_up_seconds)
            since = time.monotonic()
            time.sleep(plan.window_seconds)

            def maintain() -> None:
                while not runs or not runs[-1].report.is_complete:
                    assert len(runs) < _MOST_RUNS, runs[-1].report
                    progress.say(f"retention: run {len(runs) + 1} beside writers")
                    runs.append(maintainer.run())

            benchmark.pedantic(maintain, rounds=1)
            to_be_left.append(loaded.to_be_left())
            progress.say("retention: writers alone again")
            time.sleep(plan.window_seconds)
            until = time.monotonic()
            written = writers.stop()
        progress.say("retention: counting what is left")
        left = _stored(pool)
        live = left.pop(PROJECT)
        assert live == Counter(
            traces=sum(one.traces for one in written),
            trace_spans=sum(one.spans for one in written),
            trace_events=sum(one.events for one in written),
        )
        # The second one where the border moved meanwhile.
        assert left in to_be_left
        _assert_partitions_are_gone(pool, plan)
        kept = {key: rows for key, rows in messages_before.items() if key[1] >= plan.border(LONG)}
        assert 0 < len(kept) < len(messages_before)
        assert _messages(pool) == kept
    benchmark.extra_info.update(machine=machine)
    report.table(
        "What is loaded",
        ["spans", "days", "partitions of spans", "GB with indexes", "loaded, spans/s"],
        [described],
        f"{plan.retention}; some of each day are conversations, with {sum(messages_before.values()):,} rows of "
        "messages.",
    )
    report.table(
        "Rows before and after, as many as were to be left",
        ["", *(f"{table}, {when}" for table in TABLES for when in ("before", "after"))],
        [
            [project, *(f"{rows[project][table]:,}" for table in TABLES for rows in (before, left))]
            for project in plan.keep
        ]
        + [["live, acknowledged and stored", *_pairs(live)]],
    )
    _report_runs(report, runs, written)
    _report_writers(report, plan, runs, written, since, until, size)
    growth = f"{maintainer.base_mb:.0f} MB when connected, {maintainer.peak_mb:.0f} MB at most"
    server = "" if maintainer.server_mb is None else f"; its server session had {maintainer.server_mb:.0f} MB to itself"
    report.measure("maintainer_memory", maintainer.growth_mb, f"{growth}{server}", partial=size.name != "full")


def _report_runs(report: Report, runs: Sequence[Run], written: Sequence[Written]) -> None:
    steps: dict[str, list[float]] = {}
    for step in (step for run in runs for step in run.steps):
        seconds, spans = steps.get(step.what, [0.0, 0.0])
        taken = step.ended - step.began
        steps[step.what] = [seconds + taken, spans + spans_a_second(written, step.began, step.ended) * taken]
    dropped = sum(len(run.report.retention.partitions_dropped) for run in runs)
    freed = sum(run.report.retention.bytes_freed for run in runs)
    deleted: Counter[str] = Counter()
    for run in runs:
        deleted.update(run.report.retention.rows_deleted)
    rows = ", ".join(f"{number:,} {table}" for table, number in sorted(deleted.items()))
    report.table(
        "Maintenance beside writers, by what it said it was at",
        ["", "seconds", "writers, spans/s"],
        [
            [what, f"{seconds:.1f}", f"{spans / seconds:,.0f}" if seconds else "–"]
            for what, (seconds, spans) in sorted(steps.items(), key=lambda item: -item[1][0])
        ],
        f"{len(runs)} runs; dropped {dropped} partitions with {freed / 1e9:.2f} GB; deleted {rows}.",
    )


def _report_writers(
    report: Report,
    plan: Plan,
    runs: Sequence[Run],
    written: Sequence[Written],
    since: float,
    until: float,
    size: Size,
) -> None:
    began, ended = runs[0].began, runs[-1].ended
    windows = {
        "before": (began - plan.window_seconds, began),
        "during maintenance": (began, ended),
        "after": (ended, until),
    }
    assert since <= windows["before"][0]
    rates = {when: spans_a_second(written, *window) for when, window in windows.items()}
    autovacuum = report.data["machine"]["settings"]["autovacuum"]
    report.table(
        f"Writers, of whom there are {plan.writers}: {plan.batch_rows:,} rows a transaction, without a pause",
        ["", "seconds", "spans/s", "of before", "longest batch, ms"],
        [
            [
                when,
                f"{window[1] - window[0]:.1f}",
                f"{rates[when]:,.0f}",
                f"{rates[when] / rates['before']:.2f}",
                f"{longest_batch(written, *window) * 1e3:,.0f}",
            ]
            for when, window in windows.items()
        ],
        f"The same rows under new ids; autovacuum {autovacuum}. What they wrote was stored to the row.",
    )
    report.measure(
        "retention_writers",
        rates["during maintenance"] / rates["before"],
        f"{rates['during maintenance']:,.0f} of {rates['before']:,.0f} spans/s over {ended - began:,.0f} s; after it "
        f"{rates['after'] / rates['before']:.2f}; autovacuum {autovacuum}",
        partial=size.name != "full",
    )


def _stored(pool: StoragePool) -> Rows:
    found: Rows = defaultdict(Counter)
    with pool.raw_connection() as connection:
        for table in TABLES:
            for project, rows in connection.execute(f"SELECT project, count(*) FROM {table} GROUP BY 1".encode()):
                found[project][table] = rows
    return dict(found)


def _messages(pool: StoragePool) -> dict[tuple[str, dt.datetime], int]:
    """Count what is stored of messages, by table and period."""
    found: dict[tuple[str, dt.datetime], int] = {}
    with pool.raw_connection() as connection:
        for table in MESSAGE_TABLES:
            for period, rows in connection.execute(f"SELECT period, count(*) FROM {table} GROUP BY 1".encode()):
                found[table, period] = rows
    return found


def _assert_partitions_are_gone(pool: StoragePool, plan: Plan) -> None:
    manager = PartitionManager(pool)
    for model in (TraceSpan, TraceEvent):
        lowers = [partition.lower for partition in manager.list(table_of(model)) if partition.lower is not None]
        assert min(lowers) >= plan.border(LONG)


def _described(pool: StoragePool, plan: Plan, rows: Rows, rate: float) -> list[str]:
    manager = PartitionManager(pool)
    sizes = [size for model in (TraceSpan, TraceEvent) for size in manager.sizes(table_of(model))]
    return [
        f"{sum(of_project['trace_spans'] for of_project in rows.values()):,}",
        str(plan.days),
        str(sum(size.partition.name.startswith("trace_spans") for size in sizes) - 1),
        f"{sum(size.total_bytes for size in sizes) / 1e9:.2f}",
        f"{rate:,.0f}",
    ]


def _pairs(rows: Counter[str]) -> list[str]:
    return [cell for table in TABLES for cell in ("0", f"{rows[table]:,}")]
