"""Reads of a settled store: each beside the same by hand, and one trace beside one primary-key SELECT."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.conftest import Report, Size
from benchmarks.figures import Value
from benchmarks.interleaved import Benchmark, quartiles
from benchmarks.latency import Latencies, Operation
from benchmarks.stored import Copy, Template, days_covered
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.trace import TraceRepository

_LIST: Final = (
    "SELECT id, project, name, service_name, start_time, end_time, duration_us, status, span_count, error_count, "
    "input_tokens, output_tokens, total_tokens, cost_usd, user_id, session_id FROM traces {} "
    "ORDER BY start_time DESC NULLS LAST, id DESC LIMIT 51"
)
_SPANS: Final = (
    "SELECT * FROM trace_spans WHERE trace_id = %s AND start_time >= %s AND start_time <= %s "
    "ORDER BY start_time, span_id"
)
_EVENTS: Final = "SELECT * FROM trace_events WHERE trace_id = %s AND span_start_time >= %s AND span_start_time <= %s"
KEY_SELECT: Final = "one primary-key SELECT (psycopg)"
KEY_SELECT_ORM: Final = "one primary-key SELECT (SQLAlchemy ORM)"
ONE_TRACE: Final = "one trace with spans and events"
ONE_TRACE_BY_HAND: Final = f"{ONE_TRACE}, by hand"


@dataclass(frozen=True)
class Store:
    """What is stored, and how to choose from it."""

    template: Template
    copies: list[Copy]
    spans: int


@pytest.fixture(scope="module")
def store(pool: StoragePool, size: Size) -> Store:
    template = Template(pool, size.pick(400, 5_000, 10_000))
    spans = size.pick(400, 10_000, 100_000)
    return Store(template, [*template.load(pool, spans)], spans)


@pytest.fixture
def session(pool: StoragePool) -> Iterator[Session]:
    with pool.session() as session:
        yield session


def reads(store: Store, repository: TraceRepository) -> dict[str, TraceFilters]:
    """The lists that people look at, each with a filter that has an index or needs none."""
    newest = repository.list(TraceFilters(limit=1)).items[0]
    assert newest.start_time is not None
    return {
        "newest 50": TraceFilters(),
        "newest 50 of a service": TraceFilters(project="default", service_name=newest.service_name),
        "newest 50 with an error": TraceFilters(project="default", has_error=True),
        "newest 50 of a user": TraceFilters(user_id=newest.user_id),
        "newest 50 of a session": TraceFilters(session_id=newest.session_id),
        "newest 50 of a model": TraceFilters(model="gpt-4o"),
        "newest 50 of an hour": TraceFilters(
            start_time_from=newest.start_time - dt.timedelta(hours=1), start_time_before=newest.start_time
        ),
        "newest 50 longer than 15 s": TraceFilters(min_duration_us=15_000_000),
    }


def test_reads(store: Store, session: Session, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    connection = driver(session)
    repository = TraceRepository(session)
    bases: dict[str, str] = {}
    operations: dict[str, Operation] = {}
    by_hand = _by_hand(reads(store, repository))
    for name, filters in reads(store, repository).items():
        operations[name] = _list(repository, filters)
        if name in by_hand:
            where, parameters = by_hand[name]
            operations[f"{name}, by hand"] = _query(connection, _LIST.format(where), parameters)
            bases[name] = f"{name}, by hand"
    spans = repository.list_spans(SpanFilters(limit=1)).items[0]
    operations |= {
        "spans: newest 50": lambda: repository.list_spans(SpanFilters()),
        "spans: newest 50 of a model": lambda: repository.list_spans(SpanFilters(model="gpt-4o")),
        "statistics of one trace": lambda: repository.get_trace_statistics(spans.trace_id),
        "totals of an hour": lambda: repository.get_stats(
            TraceFilters(start_time_from=spans.start_time - dt.timedelta(hours=1))
        ),
    }
    timings = Latencies(operations)
    benchmark.pedantic(lambda: timings.run(size.pick(2, 40, 200)), rounds=1)
    benchmark.extra_info.update(machine=machine, reads=timings.records())
    title = f"{store.spans:,} spans, 20 a trace, over {days_covered(store.spans):.1f} days, ms"
    report.table(title, ["", "× by hand", "median", "quartiles", "p95"], timings.rows(bases), _NOTE)
    report.data.setdefault("records", {})["reads"] = timings.records()
    slowest = max(bases, key=lambda name: timings.ratio(name, bases[name]))
    report.slower(
        f"A list of traces costs up to {timings.ratio(slowest, bases[slowest]):.1f} × the same SQL by hand "
        f"({slowest}): 50 ORM objects are made, which can be used like any other."
    )


_NOTE: Final = (
    "By hand: the same rows by SQL in psycopg on the same connection, as tuples and with fewer columns; what is left "
    "is the price of ORM objects and typed filters."
)


def test_one_trace(
    store: Store, session: Session, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    connection = driver(session)
    repository = TraceRepository(session)
    dice = random.Random(3)

    def any_id() -> bytes:
        return store.template.trace_id(store.copies, dice)

    def orm() -> None:
        session.expunge_all()
        session.execute(select(Trace).where(Trace.id == resolve_trace_id(any_id()))).scalar_one()

    def by_hand() -> None:
        key = any_id()
        (found,) = connection.execute("SELECT * FROM traces WHERE id = %s", [resolve_trace_id(key)]).fetchall()
        bounds = [found[0], _start(found), _end(found)]
        connection.execute(_SPANS, bounds).fetchall()
        connection.execute(_EVENTS, bounds).fetchall()

    def _start(row: tuple[Any, ...]) -> Any:
        return row[starts]

    def _end(row: tuple[Any, ...]) -> Any:
        return row[ends]

    columns = [column.name for column in connection.execute("SELECT * FROM traces LIMIT 0").description or ()]
    starts, ends = columns.index("start_time"), columns.index("end_time")

    def whole() -> None:
        session.expunge_all()
        assert len(repository.get_trace_by_id(any_id()).spans) == 20

    timings = Latencies(
        {
            KEY_SELECT: lambda: connection.execute(
                "SELECT * FROM traces WHERE id = %s", [resolve_trace_id(any_id())]
            ).fetchall(),
            KEY_SELECT_ORM: orm,
            ONE_TRACE_BY_HAND: by_hand,
            ONE_TRACE: whole,
        }
    )
    benchmark.pedantic(lambda: timings.run(size.pick(2, 100, 500)), rounds=1)
    benchmark.extra_info.update(machine=machine, reads=timings.records())
    rows = [
        [*line[:1], f"{timings.ratio(line[0], KEY_SELECT_ORM):.2f}", *line[1:]] for line in timings.rows(KEY_SELECT)
    ]
    report.table(
        "One trace: 20 spans with prompts and answers, events and resource, on one connection, ms",
        ["", "× SELECT by SQLAlchemy", "× SELECT by psycopg", "median", "quartiles", "p95"],
        rows,
    )
    report.bars(
        "one_trace", "Milliseconds for one trace", {name: _quartiles(timings, name) for name in timings.seconds}
    )
    ratio = timings.ratio(ONE_TRACE, KEY_SELECT_ORM)
    bare = timings.ratio(ONE_TRACE, KEY_SELECT)
    report.measure("one_trace", ratio, f"the SELECT by SQLAlchemy; {bare:.1f} × the same by bare psycopg")
    report.slower(
        f"One trace with its 20 spans costs {bare:.1f} × a bare psycopg SELECT of one row, and "
        f"{timings.ratio(ONE_TRACE, ONE_TRACE_BY_HAND):.1f} × the same three SELECTs by hand without objects."
    )


def driver(session: Session) -> psycopg.Connection[Any]:
    """The session's own connection."""
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


def _by_hand(filters: dict[str, TraceFilters]) -> dict[str, tuple[str, list[Any]]]:
    service = filters["newest 50 of a service"]
    hour = filters["newest 50 of an hour"]
    return {
        "newest 50": ("", []),
        "newest 50 of a service": ("WHERE project = %s AND service_name = %s", ["default", service.service_name]),
        "newest 50 with an error": (
            "WHERE project = %s AND (status = 'error' OR error_count > 0)",
            ["default"],
        ),
        "newest 50 of a user": ("WHERE user_id = %s", [filters["newest 50 of a user"].user_id]),
        "newest 50 of a session": ("WHERE session_id = %s", [filters["newest 50 of a session"].session_id]),
        "newest 50 of an hour": (
            "WHERE start_time >= %s AND start_time < %s",
            [hour.start_time_from, hour.start_time_before],
        ),
        "newest 50 longer than 15 s": ("WHERE duration_us >= %s", [15_000_000]),
    }


def _list(repository: TraceRepository, filters: TraceFilters) -> Callable[[], object]:
    return lambda: repository.list(filters)


def _query(connection: psycopg.Connection[Any], query: str, parameters: list[Any]) -> Callable[[], object]:
    return lambda: connection.execute(query.encode(), parameters).fetchall()


def _quartiles(timings: Latencies, name: str) -> Value:
    lower, median, upper = quartiles([seconds * 1000 for seconds in timings.seconds[name]])
    return lower, median, upper
