"""Filters let through what a plain reading of them does, and refuse what cannot hold; pages follow each other."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError
from observatory_storage.models.severity import LEVELS, Severity, level_of, severity_range
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters
from observatory_storage.repositories.cursor import TraceCursor
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_cursor import LogCursor, RankCursor
from observatory_storage.repositories.log_filters import LogFilters
from tests.logs import Row, at, ids, log, make_hours, newest_first, store_logs
from tests.trace_rows import span_id, trace_id

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SERVICES, PROJECTS, EVENTS = ("api", "db", None), ("default", "other"), ("gen_ai.choice", None)
NUMBERS = (None, 0, *range(1, 25))


def many() -> list[Row]:
    """Records with all combinations of a few values, some in no partition."""
    return [
        log(
            number * 97 % 9000 - 500,
            project=PROJECTS[number % 2],
            service_name=SERVICES[number % 3],
            severity_number=NUMBERS[number % len(NUMBERS)],
            event_name=EVENTS[number % 5 % 2],
            scope_name=("lib", None)[number % 7 % 2],
            trace_id=(trace_id("a"), trace_id("b"), None)[number % 11 % 3],
            span_id=(span_id(1), None)[number % 13 % 2],
            attributes={"k": number % 3, "nested": {"list": [number % 2, "x"]}},
        )
        for number in range(160)
    ]


ROWS = many()


def lets_through(row: Row, given: dict[str, Any]) -> bool:
    """Read filters as people do."""
    checks: dict[str, bool] = {
        name: row[name] == given.get(name)
        for name in ("project", "service_name", "event_name", "scope_name", "trace_id", "span_id")
    }
    number = row["severity_number"] or 0
    checks["min_severity"] = bool(number) and number >= given.get("min_severity", 0)
    checks["max_severity"] = bool(number) and number <= given.get("max_severity", 0)
    checks["severity"] = given.get("severity") in (number, level_of(number or None))
    checks["timestamp_from"] = row["timestamp"] >= given.get("timestamp_from", at())
    checks["timestamp_before"] = row["timestamp"] < given.get("timestamp_before", at())
    wanted = given.get("attributes", {})
    checks["attributes"] = all(
        row["attributes"][key] == value if key == "k" else value["list"][0] in row["attributes"][key]["list"]
        for key, value in wanted.items()
    )
    return all(checks[name] for name in given)


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "project": st.sampled_from(PROJECTS),
        "service_name": st.sampled_from(("api", "db")),
        "event_name": st.just("gen_ai.choice"),
        "scope_name": st.just("lib"),
        "trace_id": st.sampled_from((trace_id("a"), trace_id("b"))),
        "span_id": st.just(span_id(1)),
        "severity": st.sampled_from((*LEVELS, *range(1, 25))),
        "min_severity": st.integers(1, 12),
        "max_severity": st.integers(12, 24),
        "timestamp_from": st.sampled_from((-500, 0, 1000, 3600)).map(at),
        "timestamp_before": st.sampled_from((3600, 7000, 9000)).map(at),
        "attributes": st.sampled_from(({"k": 1}, {"nested": {"list": ["x"]}}, {"nested": {"list": [1]}, "k": 2})),
    },
)


@pytest.fixture
def stored(pool: StoragePool) -> StoragePool:
    """A pool on a database with all records, in partitions with a hole between them, and in none."""
    make_hours(pool, 0, 1)
    make_hours(pool, 2, 2)
    store_logs(pool, ROWS)
    return pool


@SETTINGS
@given(filters=FILTERS)
def test_filters_let_through_what_they_say(stored: StoragePool, filters: dict[str, Any]) -> None:
    try:
        asked = LogFilters(**filters, limit=1000)
    except InvalidFilterError:
        assert not any(lets_through(row, filters) for row in ROWS)
        return
    expected = [row for row in newest_first(ROWS) if lets_through(row, filters)]
    with stored.session() as session:
        repository = LogRepository(session)
        assert ids(repository.list(asked)) == ids(expected)
        assert repository.get_stats(asked).log_count == len(expected)


def test_searches_are_lists_by_one_filter(stored: StoragePool) -> None:
    repository = LogRepository(stored)

    def expected(**given: Any) -> list[uuid.UUID]:
        return ids(row for row in newest_first(ROWS) if lets_through(row, given))

    assert ids(repository.search_by_service("db", project="other", limit=1000)) == expected(
        service_name="db", project="other"
    )
    assert ids(repository.search_by_trace(trace_id("a").hex, limit=1000)) == expected(trace_id=trace_id("a"))
    assert ids(repository.get_errors(limit=1000)) == expected(min_severity=17)
    assert ids(repository.get_logs(at(10), at(5000), project="other", limit=1000)) == expected(
        timestamp_from=at(10), timestamp_before=at(5000), project="other"
    )
    for level in ("warn", "Warning", "WARN", " warning "):
        assert ids(repository.search_by_level(level, limit=1000)) == expected(severity="WARN")
    assert ids(repository.search_by_level("warn2", limit=1000)) == expected(severity=14)
    assert ids(repository.search_by_level(14, limit=1000)) == expected(severity=14)
    assert ids(repository.search_by_level(("info", "warn"), limit=1000)) == expected(min_severity=9, max_severity=16)
    assert ids(repository.search_by_level((10, "error"), limit=1000)) == expected(min_severity=10, max_severity=20)
    assert len(repository.search_by_level("error", min_severity=19, limit=1000)) == len(
        expected(min_severity=19, max_severity=20)
    )


@SETTINGS
@given(data=st.data(), limit=st.integers(1, 6))
def test_pages_together_are_the_list(pool: StoragePool, data: st.DataObject, limit: int) -> None:
    # Few different times, so that many are equal; a project of its own keeps the examples apart.
    project = uuid.uuid4().hex
    seconds = data.draw(st.lists(st.sampled_from((0, 1, 3600, 3601, 7300, 10**8)), max_size=20))
    rows = [log(second, project=project) for second in seconds]
    # Before any record is stored: no partition can be made of what lies in DEFAULT.
    with pool.session() as session:
        if not session.connection().exec_driver_sql("SELECT to_regclass('logs_p2026031012')").scalar():
            make_hours(pool, 0, 3)
    store_logs(pool, rows)
    expected = ids(newest_first(rows))
    repository = LogRepository(pool)
    seen: list[uuid.UUID] = []
    cursor: str | None = None
    for _ in range(100):
        page = repository.list(LogFilters(project=project, limit=limit, cursor=cursor))
        assert len(page) == limit or page.next_cursor is None
        seen += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == expected
    for offset in (0, 1, limit, 7, len(rows)):
        page = repository.list(LogFilters(project=project, limit=limit, offset=offset))
        assert ids(page) == expected[offset : offset + limit]


def test_a_cursor_leads_on_after_new_records_came(pool: StoragePool) -> None:
    rows = [log(number) for number in range(6)]
    store_logs(pool, rows)
    repository = LogRepository(pool)
    first = repository.list(LogFilters(limit=2))
    older = log(2.5)
    store_logs(pool, [log(50), older])
    second = repository.list(LogFilters(limit=3, cursor=first.next_cursor))
    assert ids(second) == [rows[3]["id"], older["id"], rows[2]["id"]]


@given(
    time=st.datetimes(timezones=st.just(dt.UTC)), key=st.uuids(), rank=st.floats(allow_nan=False, allow_infinity=False)
)
def test_cursors_survive_the_way_there_and_back(time: dt.datetime, key: uuid.UUID, rank: float) -> None:
    cursor = LogCursor(time, key)
    assert LogFilters(cursor=cursor.encode()).after == cursor
    assert LogFilters(cursor=RankCursor(rank, cursor).encode()).after == RankCursor(rank, cursor)


@given(text=st.text())
def test_any_other_text_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidFilterError, match="cursor"):
        LogFilters(cursor=text)


def test_a_cursor_is_good_for_its_own_kind_of_list(pool: StoragePool) -> None:
    place = LogCursor(at(), uuid.uuid4())
    time, rank = place.encode(), RankCursor(0.5, place).encode()
    wrong = (time[:-1], time + "A", f" {time}", f"{time}.", rank[:-1], rank.upper(), f"{time}.7ff8000000000000")
    for text in (*wrong, TraceCursor(at(), uuid.uuid4()).encode(), TraceCursor(None, uuid.uuid4()).encode()):
        with pytest.raises(InvalidFilterError, match="cursor"):
            LogFilters(cursor=text)
    with pytest.raises(InvalidFilterError, match="cursor"):
        TraceFilters(cursor=time)
    repository = LogRepository(pool)
    with pytest.raises(InvalidFilterError, match="ranked"):
        repository.list(LogFilters(cursor=rank))
    with pytest.raises(InvalidFilterError, match="ranked"):
        repository.search_logs(LogFilters(cursor=time, search="a"), ranked=True)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"limit": 0}, "limit: "),
        ({"limit": 1001}, "limit: .*1000"),
        ({"offset": -1}, "offset: "),
        ({"severity": 0}, "severity: .*1 to 24"),
        ({"severity": 25}, "severity: .*1 to 24"),
        ({"severity": "loud"}, "severity: .*'loud' is no severity"),
        ({"severity": "WARN5"}, "severity: "),
        ({"severity": ("error", "info")}, "more severe"),
        ({"min_severity": -1}, "min_severity: "),
        ({"min_severity": "error", "max_severity": "info"}, "severity"),
        ({"severity": "info", "min_severity": "error"}, "severity"),
        ({"timestamp_from": at(1), "timestamp_before": at()}, "timestamp_from is later"),
        ({"timestamp_from": "soon"}, "timestamp_from: "),
        ({"trace_id": b"short"}, "trace_id: "),
        ({"trace_id": ""}, "trace_id: "),
        ({"span_id": bytes(8)}, "span_id: "),
        ({"servicename": "api"}, "servicename: "),
        ({"attributes": ["a"]}, "attributes: "),
        ({"search": "a" * 2001}, "search: "),
        ({"cursor": LogCursor(at(), uuid.UUID(int=1)).encode(), "offset": 1}, "offset"),
    ],
)
def test_filters_that_cannot_hold_are_refused_by_name(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFilterError, match=message) as caught:
        LogFilters(**filters)
    assert len(caught.value.problems) >= 1


def test_severities_have_the_numbers_of_opentelemetry() -> None:
    assert [severity_range(name) for name in LEVELS] == [(n, n + 3) for n in (1, 5, 9, 13, 17, 21)]
    assert [severity_range(severity.name.lower()) for severity in Severity if severity.name[-1].isdigit()] == [
        (n, n) for n in range(1, 25) if n % 4 != 1
    ]
    assert [severity_range(n) for n in range(1, 25)] == [severity_range(str(n)) for n in range(1, 25)]
    assert [level_of(n) for n in (None, 0, 1, 4, 5, 24)] == [None, None, "TRACE", "TRACE", "DEBUG", "FATAL"]
    assert severity_range("warning") == severity_range("Warn")
    assert severity_range("critical") == severity_range("FATAL")
    assert severity_range("err") == severity_range("error")
    for wrong in (0, 25, "", "FATAL5", "TRACE1", "-1", "٣٣", "1.5"):
        with pytest.raises(ValueError, match="1 to 24"):
            severity_range(wrong)


def test_every_search_takes_the_other_filters(pool: StoragePool) -> None:
    # The types as well: they say what may be given.
    store_logs(pool, [log(n, body="x", service_name="a", severity_number=17, trace_id=trace_id("t")) for n in range(3)])
    store_logs(pool, [log(9, body="x y", service_name="b", severity_number=9, span_id=span_id(1), scope_name="lib")])
    repository = LogRepository(pool)
    assert len(repository.search_text("x", service_name="a")) == 3
    assert len(repository.search_text("x", severity="error", max_severity=20)) == 3
    assert len(repository.search_text("x", trace_id=trace_id("t"), limit=2)) == 2
    assert len(repository.search_text("x", severity=("trace", "info"), span_id=span_id(1), scope_name="lib")) == 1
    assert len(repository.get_errors(service_name="a", trace_id=trace_id("t").hex)) == 3
    assert len(repository.get_errors(service_name="b", search="x")) == 0
    assert len(repository.search_by_service("b", severity="info", search="y")) == 1
    assert len(repository.search_by_service("a", trace_id=trace_id("t"), event_name=None)) == 3
    assert len(repository.search_by_trace(trace_id("t"), service_name="a", severity=17, search="x")) == 3
    assert len(repository.search_by_level("info", service_name="b", search="y", timestamp_from=at())) == 1
    page = repository.get_logs(at(), at(60), service_name="a", severity="error", trace_id=trace_id("t"), search="x")
    assert len(page) == 3


@pytest.mark.parametrize("time", ["2026", "now", "", "1767225600", 1767225600, 1.5e9, True])
def test_what_is_no_time_is_refused(pool: StoragePool, time: Any) -> None:
    for filters in (LogFilters, TraceFilters):
        name = "timestamp_from" if filters is LogFilters else "start_time_from"
        with pytest.raises(InvalidFilterError, match=name) as refused:
            filters.model_validate({name: time})
        (problem,) = refused.value.problems
        assert "Value error" not in problem
        assert "time" in problem
    with pytest.raises(InvalidFilterError, match="timestamp_before"):
        LogRepository(pool).get_logs(at(), time)


def test_iso_times_are_taken() -> None:
    for text in ("2026-03-10T12:00Z", "2026-03-10 13:00+01:00", "2026-03-10T12:00:00", "20260310T120000Z"):
        assert LogFilters.model_validate({"timestamp_from": text}).timestamp_from == at()


def test_problems_are_sentences_of_ours() -> None:
    with pytest.raises(InvalidFilterError) as refused:
        LogFilters.model_validate({"min_severity": "loud", "cursor": "nonsense", "trace_id": ""})
    assert len(refused.value.problems) == 3
    assert "Value error" not in str(refused.value)
