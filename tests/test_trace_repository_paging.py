"""Pages follow each other without a gap and without a repetition, whatever the times."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import SpanFilters, TraceFilters, TraceRepository
from observatory_storage.repositories.cursor import SpanCursor, TraceCursor
from tests.conftest import Statements
from tests.trace_rows import at, plans_of, span, store, trace, trace_id

AWARE = st.datetimes(timezones=st.just(dt.UTC))
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def walk(repository: TraceRepository, limit: int, **filters: object) -> list[uuid.UUID]:
    """Return the ids of all pages in order."""
    seen: list[uuid.UUID] = []
    cursor: str | None = None
    for _ in range(1000):
        page = repository.list(TraceFilters.model_validate({**filters, "limit": limit, "cursor": cursor}))
        assert len(page) == limit or page.next_cursor is None
        seen += [row.id for row in page]
        cursor = page.next_cursor
        if cursor is None:
            return seen
    raise AssertionError("the pages have no end")


@SETTINGS
@given(data=st.data(), limit=st.integers(1, 7))
def test_pages_together_are_the_list(pool: StoragePool, data: st.DataObject, limit: int) -> None:
    # Few different times, so that many are equal; a project of its own keeps the examples apart.
    times = st.one_of(st.none(), st.integers(0, 2).map(at))
    project = uuid.uuid4().hex
    drawn = [(start, uuid.uuid4()) for start in data.draw(st.lists(times, max_size=20))]
    store(pool, [{"id": key, "name": "t", "start_time": start, "project": project} for start, key in drawn])
    with pool.session() as session:
        repository = TraceRepository(session)
        dated = sorted(((start, key) for start, key in drawn if start is not None), reverse=True)
        undated = sorted((key for start, key in drawn if start is None), reverse=True)
        expected = [key for _, key in dated] + undated
        assert walk(repository, limit, project=project) == expected
        assert [row.id for row in repository.list(TraceFilters(project=project, limit=1000))] == expected
        in_range = walk(repository, limit, project=project, start_time_from=at(1))
        assert in_range == [key for start, key in dated if start >= at(1)]
        for offset in (0, 1, limit, len(drawn)):
            page = repository.list(TraceFilters(project=project, limit=limit, offset=offset))
            assert [row.id for row in page] == expected[offset : offset + limit]


def test_a_cursor_leads_on_after_new_traces_came_and_its_own_went(pool: StoragePool) -> None:
    store(pool, [trace(number, start_time=at(number)) for number in range(6)])
    repository = TraceRepository(pool)
    first = repository.list(TraceFilters(limit=2))
    with pool.session() as session:
        session.execute(sa.delete(Trace).where(Trace.id == first.items[-1].id))
        session.commit()
    store(pool, [trace("newer", start_time=at(50)), trace("older", start_time=at(2.5))])
    second = repository.list(TraceFilters(limit=3, cursor=first.next_cursor))
    assert [row.name for row in first] == ["trace 5", "trace 4"]
    assert [row.name for row in second] == ["trace 3", "trace older", "trace 2"]


def test_a_page_that_ends_with_the_list_has_no_cursor(pool: StoragePool) -> None:
    repository = TraceRepository(pool)
    assert repository.list().next_cursor is None
    store(pool, [trace(number, start_time=at(number)) for number in range(2)])
    assert repository.list(TraceFilters(limit=2)).next_cursor is None
    assert repository.list(TraceFilters(limit=1)).next_cursor is not None


def test_a_page_is_50_traces_unless_told_otherwise(pool: StoragePool) -> None:
    store(pool, [trace(number, start_time=at(number)) for number in range(60)])
    page = TraceRepository(pool).list()
    assert len(page) == 50
    assert page.next_cursor is not None


def test_attributes_are_read_when_asked_for(pool: StoragePool) -> None:
    store(pool, [trace("a", start_time=at(), attributes={"k": 1}), trace("b", attributes={"k": 2})])
    repository = TraceRepository(pool)
    assert [row.attributes for row in repository.list(include_content=True)] == [{"k": 1}, {"k": 2}]
    first = repository.list(TraceFilters(limit=1))
    rest = TraceFilters(limit=1, cursor=first.next_cursor)
    assert [row.attributes for row in repository.list(rest, include_content=True)] == [{"k": 2}]


def test_a_page_takes_one_statement_and_the_page_where_the_starts_end_two(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    store(pool, [trace(number, start_time=at(number)) for number in range(6)] + [trace("undated")])
    repository = TraceRepository(pool)
    cursor: str | None = None
    counts = []
    for _ in range(4):
        with recorded_statements() as seen:
            cursor = repository.list(TraceFilters(limit=2, cursor=cursor)).next_cursor
        counts.append(len(seen))
        assert not any("traces.attributes" in statement for statement in seen)
    assert counts == [1, 1, 2, 2]
    assert cursor is None


def test_a_deep_page_begins_within_the_index(pool: StoragePool) -> None:
    store(pool, [trace(number, start_time=at(number)) for number in range(30)])
    repository = TraceRepository(pool)
    cursor = repository.list(TraceFilters(project="default", limit=10)).next_cursor
    filters = TraceFilters(project="default", limit=10, cursor=cursor)
    (plan,) = plans_of(pool, lambda: repository.list(filters))
    assert "Index Cond: ((project = 'default'::text) AND (ROW(start_time, id) < ROW(" in plan
    assert "Sort" not in plan


def test_pages_of_a_rare_model_follow_too(pool: StoragePool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [trace(number, start_time=at(number // 2)) for number in range(9)]
    store(pool, rows, [span(row, 1, model="gpt" if number % 3 else "claude") for number, row in enumerate(rows)])
    expected = [row.id for row in TraceRepository(pool).list(TraceFilters(model="gpt"))]
    assert len(expected) == 6
    assert walk(TraceRepository(pool), 2, model="gpt") == expected
    monkeypatch.setattr("observatory_storage.repositories.trace.FEW_SPANS", 1)
    assert walk(TraceRepository(pool), 2, model="gpt") == expected


@given(start=st.one_of(st.none(), AWARE), key=st.uuids())
def test_cursors_survive_the_way_there_and_back(start: dt.datetime | None, key: uuid.UUID) -> None:
    cursor = TraceCursor(start, key)
    assert TraceCursor.decode(cursor.encode()) == cursor
    assert TraceFilters(cursor=cursor.encode()).after == cursor
    if start is not None:
        place = SpanCursor(start, key, key.hex[:16])
        assert SpanCursor.decode(place.encode()) == place


@given(text=st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_any_other_text_is_refused(text: str) -> None:
    for kind in (TraceFilters, SpanFilters):
        with pytest.raises(InvalidFilterError, match="cursor"):
            kind(cursor=text)


def test_a_cursor_is_good_for_its_own_kind_of_list(pool: StoragePool) -> None:
    cursor = TraceCursor(at(), trace_id("a")).encode()
    for wrong in (
        cursor[:-1],
        cursor + "A",
        cursor + "=",
        f" {cursor}",
        cursor[:-1] + "_",
        cursor.replace("A", "-", 1),
    ):
        with pytest.raises(InvalidFilterError, match="cursor"):
            TraceFilters(cursor=wrong)
    with pytest.raises(InvalidFilterError, match="cursor"):
        SpanFilters(cursor=cursor)
    with pytest.raises(InvalidFilterError, match="cursor"):
        TraceFilters(cursor=SpanCursor(at(), trace_id("a"), "0" * 16).encode())
    with pytest.raises(InvalidFilterError, match="offset"):
        TraceFilters(cursor=cursor, offset=1)
