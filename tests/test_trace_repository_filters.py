"""Each filter, alone and with others, lets through what a plain reading of the rows says it should."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from observatory_storage.errors import InvalidFilterError, StorageError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import SpanFilters, TraceFilters, TraceRepository
from tests.trace_rows import Row, at, plans_of, span, store, trace, trace_id

NAMES = ("chat", "Chat with a_b", "100% sure", "back\\slash", "über", "", None)
ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {},
    {"tier": "gold"},
    {"tier": "gold", "n": 1, "ok": True},
    {"n": 1.0, "tags": ["a", "b"], "user": {"age": 7, "name": "x"}},
    {"n": "1", "tags": ["b"], "user": {"age": 8}},
    {"ok": False, "none": None},
)
SOUGHT_ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {},
    {"tier": "gold"},
    {"n": 1},
    {"n": "1"},
    {"ok": True},
    {"none": None},
    {"tags": ["b"]},
    {"tags": ["b", "a", "a"]},
    {"user": {"age": 7}},
    {"user": {}},
    {"tier": "gold", "n": 1},
    {"absent": 1},
)
MODELS = ("gpt", "claude", None)
PROVIDERS = ("openai", "anthropic", None)


def sample() -> tuple[list[Row], list[Row]]:
    """Return 80 traces and their spans; every value of every filtered column occurs."""
    rng = random.Random(7)
    traces, spans = [], []
    for number in range(80):
        start = rng.choice([None, *(at(seconds) for seconds in range(5))])
        row = trace(
            number,
            project=rng.choice(("default", "other")),
            name=rng.choice(NAMES),
            service_name=rng.choice(("api", "worker", None)),
            status=rng.choice(("unset", "ok", "error")),
            error_count=rng.choice((0, 0, 2)),
            start_time=start,
            end_time=None if start is None else start + dt.timedelta(seconds=rng.choice((0, 1, 2))),
            duration_us=None if start is None else rng.choice((0, 1_000_000, 2_000_000)),
            user_id=rng.choice(("u1", "u2", None)),
            session_id=rng.choice(("s1", "s2", None)),
            attributes=rng.choice(ATTRIBUTES),
        )
        traces.append(row)
        if start is not None:
            spans += [
                span(row, index, model=rng.choice(MODELS), provider=rng.choice(PROVIDERS), start_time=moment)
                for index, moment in enumerate((start, row["end_time"]), start=1)
                if rng.random() < 0.7
            ]
    return traces, spans


TRACES, SPANS = sample()


def contains(stored: Any, sought: Any) -> bool:
    """What jsonb's @> means."""
    if isinstance(sought, Mapping):
        return isinstance(stored, Mapping) and all(
            key in stored and contains(stored[key], value) for key, value in sought.items()
        )
    if isinstance(sought, list):
        return isinstance(stored, list) and all(any(contains(item, value) for item in stored) for value in sought)
    return isinstance(stored, bool) == isinstance(sought, bool) and bool(stored == sought)


def lets_through(filters: TraceFilters, row: Row) -> bool:
    equal = ("project", "service_name", "status", "user_id", "session_id")
    if any(getattr(filters, key) is not None and row[key] != getattr(filters, key) for key in equal):
        return False
    if filters.has_error is not None and filters.has_error != (row["status"] == "error" or row["error_count"] > 0):
        return False
    start, duration = row["start_time"], row["duration_us"]
    if filters.start_time_from is not None and not (start is not None and start >= filters.start_time_from):
        return False
    if filters.start_time_before is not None and not (start is not None and start < filters.start_time_before):
        return False
    if filters.min_duration_us is not None and not (duration is not None and duration >= filters.min_duration_us):
        return False
    if filters.max_duration_us is not None and not (duration is not None and duration <= filters.max_duration_us):
        return False
    if filters.attributes is not None and not contains(row["attributes"], filters.attributes):
        return False
    if filters.name is not None and (row["name"] is None or filters.name.lower() not in row["name"].lower()):
        return False
    return (filters.model is None and filters.provider is None) or any(
        filters.model in (None, found["model"]) and filters.provider in (None, found["provider"])
        for found in SPANS
        if found["trace_id"] == row["id"]
    )


def newest_first(rows: list[Row]) -> list[Row]:
    dated = [row for row in rows if row["start_time"] is not None]
    undated = [row for row in rows if row["start_time"] is None]
    dated.sort(key=lambda row: (row["start_time"], row["id"]), reverse=True)
    return dated + sorted(undated, key=lambda row: row["id"], reverse=True)


ALONE: dict[str, tuple[Any, ...]] = {
    "project": ("default", "other", "absent"),
    "service_name": ("api", "worker", "absent", ""),
    "status": ("unset", "ok", "error"),
    "has_error": (True, False),
    "start_time_from": (at(), at(2), at(5)),
    "start_time_before": (at(), at(2), at(5)),
    "min_duration_us": (0, 1, 1_000_000, 3_000_000),
    "max_duration_us": (0, 999_999, 2_000_000),
    "model": ("gpt", "claude", "absent"),
    "provider": ("openai", "anthropic", "absent"),
    "user_id": ("u1", "absent"),
    "session_id": ("s2", "absent"),
    "attributes": SOUGHT_ATTRIBUTES,
    "name": ("", "CHAT", "a_b", "axb", "0%", "%", "_", "\\", "\\s", "absent"),
}
COMBINED = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in ALONE.items()}).filter(
    lambda given: (
        given.get("start_time_from", at(-1)) <= given.get("start_time_before", at(9))
        and given.get("min_duration_us", 0) <= given.get("max_duration_us", 10**9)
    )
)


@pytest.fixture(params=["few", "many", "newest"])
def repository(
    request: pytest.FixtureRequest, pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TraceRepository]:
    """A repository over the sample; it takes each model for rare or for common, and looks at a few traces first."""
    if request.param != "few":
        monkeypatch.setattr("observatory_storage.repositories.trace.FEW_SPANS", -1)
    if request.param == "newest":
        monkeypatch.setattr("observatory_storage.repositories.trace.NEWEST_TRACES", 16)
    store(pool, TRACES, SPANS)
    with pool.session() as session:
        yield TraceRepository(session)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time is not UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_each_filter_lets_through_what_it_says(repository: TraceRepository) -> None:
    for key, values in ALONE.items():
        for value in values:
            filters = TraceFilters(**{key: value}, limit=1000)
            expected = [row["id"] for row in newest_first(TRACES) if lets_through(filters, row)]
            assert [row.id for row in repository.list(filters)] == expected, (key, value)
            assert repository.get_stats(filters).trace_count == len(expected), (key, value)


@pytest.mark.parametrize("project", [None, "default", "other"])
@pytest.mark.parametrize("provider", [None, "openai"])
@pytest.mark.parametrize("model", [None, "gpt", "absent"])
def test_pages_of_a_model_hold_all_its_traces(
    repository: TraceRepository, model: str | None, provider: str | None, project: str | None
) -> None:
    filters = TraceFilters(model=model, provider=provider, project=project)
    expected = [row["id"] for row in newest_first(TRACES) if lets_through(filters, row)]
    for limit in range(1, 6):
        page = repository.list(filters.model_copy(update={"limit": limit}))
        found = [row.id for row in page]
        while page.next_cursor is not None:
            page = repository.list(filters.model_copy(update={"limit": limit, "cursor": page.next_cursor}))
            found += [row.id for row in page]
        assert found == expected, limit


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters=COMBINED, limit=st.integers(1, 100))
@example(filters={"model": "gpt", "provider": "openai"}, limit=100)
@example(filters={"project": "default", "model": "claude", "start_time_from": at(2)}, limit=100)
def test_filters_hold_together(repository: TraceRepository, filters: dict[str, Any], limit: int) -> None:
    wanted = TraceFilters(**filters, limit=limit)
    expected = [row["id"] for row in newest_first(TRACES) if lets_through(wanted, row)]
    assert [row.id for row in repository.list(wanted)] == expected[:limit]
    assert repository.get_stats(wanted).trace_count == len(expected)


def test_searches_are_lists_by_one_filter(repository: TraceRepository) -> None:
    def expected(**filters: Any) -> list[Any]:
        return [row["id"] for row in newest_first(TRACES) if lets_through(TraceFilters(**filters), row)]

    found = repository.get_traces(at(1), at(3), limit=1000)
    assert [row.id for row in found] == expected(start_time_from=at(1), start_time_before=at(3))
    found = repository.search_by_service("api", project="default", limit=1000)
    assert [row.id for row in found] == expected(service_name="api", project="default")
    found = repository.search_errors(limit=1000)
    assert [row.id for row in found] == expected(has_error=True)
    found = repository.search_traces("chat", start_time_from=at(1), limit=1000)
    assert [row.id for row in found] == expected(name="chat", start_time_from=at(1))
    first = repository.search_errors(limit=3)
    assert [row.id for row in repository.search_errors(limit=1000, cursor=first.next_cursor)] == expected(
        has_error=True
    )[3:]


def test_naive_times_are_utc_and_zones_are_understood(pool: StoragePool, elsewhere: None) -> None:
    store(pool, [trace("noon", start_time=at())])
    repository = TraceRepository(pool)
    naive = at().replace(tzinfo=None)
    assert len(repository.list(TraceFilters(start_time_from=naive))) == 1
    assert len(repository.list(TraceFilters(start_time_before=naive))) == 0
    there = at().astimezone(dt.timezone(dt.timedelta(hours=-8)))
    assert len(repository.get_traces(there, there + dt.timedelta(microseconds=1))) == 1


def test_text_is_sought_as_it_is_stored(pool: StoragePool) -> None:
    # Writers store U+FFFD in the place of a NUL, which PostgreSQL refuses.
    store(pool, [trace("nul", service_name="a\ufffdb", name="c\ufffd", attributes={"k\ufffd": "v\ufffd"})])
    repository = TraceRepository(pool)
    for filters in (
        TraceFilters(service_name="a\0b"),
        TraceFilters(name="\0"),
        TraceFilters(attributes={"k\0": "v\ud800"}),
    ):
        assert [row.id for row in repository.list(filters)] == [trace_id("nul")]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"limit": 0}, "limit: "),
        ({"limit": 1001}, "limit: .*1000"),
        ({"offset": -1}, "offset: "),
        ({"offset": 2**63}, "offset: "),
        ({"min_duration_us": -1}, "min_duration_us: "),
        ({"max_duration_us": 2**63}, "max_duration_us: "),
        ({"min_duration_us": 2, "max_duration_us": 1}, "min_duration_us is more than max_duration_us"),
        ({"start_time_from": at(1), "start_time_before": at()}, "start_time_from is later"),
        ({"status": "failed"}, "status: "),
        ({"servicename": "api"}, "servicename: "),
        ({"start_time_from": "soon"}, "start_time_from: "),
        ({"start_time_from": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5)))}, "start_time_from: "),
        ({"cursor": "nonsense"}, "cursor"),
        ({"attributes": ["a"]}, "attributes: "),
    ],
)
def test_filters_that_cannot_hold_are_refused_by_name(filters: dict[str, Any], message: str) -> None:
    for kind in (TraceFilters, SpanFilters):
        with pytest.raises(InvalidFilterError, match=message) as caught:
            kind(**filters)
        assert isinstance(caught.value, StorageError)
        assert len(caught.value.problems) == 1


def test_all_that_is_wrong_with_filters_is_said_at_once() -> None:
    with pytest.raises(InvalidFilterError) as caught:
        TraceFilters(limit=0, offset=-1)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["limit", "offset"]


def test_a_reversed_time_range_is_refused_by_searches_too(pool: StoragePool) -> None:
    with pytest.raises(InvalidFilterError):
        TraceRepository(pool).get_traces(at(1), at(0))


def test_filters_do_not_change() -> None:
    filters = TraceFilters(project="default")
    with pytest.raises(ValidationError):
        filters.project = "other"


def test_lists_are_read_by_index_in_its_order(pool: StoragePool) -> None:
    # Most traces are another project's: an index that does not begin with the project is no match.
    projects = ["default" if n % 10 == 0 else "other" for n in range(500)]
    services = [f"s{n % 50 // 10}" for n in range(500)]
    store(
        pool,
        [
            trace(n, start_time=at(n), project=projects[n], service_name=services[n], session_id=f"s{n}")
            for n in range(500)
        ],
    )
    with pool.session() as session:
        session.execute(sa.text("ANALYZE traces"))
        session.commit()
    day = {"start_time_from": at(), "start_time_before": at(9)}
    by_index: list[tuple[dict[str, Any], str]] = [
        ({"project": "default"}, "traces_project_start_time_idx"),
        ({"project": "default", **day}, "traces_project_start_time_idx"),
        ({"project": "default", "service_name": "s3"}, "traces_project_service_name_start_time_idx"),
        ({"project": "default", "has_error": True}, "traces_errors_idx"),
        ({"project": "default", "status": "error"}, "traces_errors_idx"),
        ({"session_id": "s1"}, "traces_session_id_idx"),
        ({"user_id": "u1"}, "traces_user_id_idx"),
    ]
    for filters, index in by_index:
        (plan,) = plans_of(pool, partial(TraceRepository(pool).list, TraceFilters(**filters)))
        assert index in plan
        # Few traces share a user or a session, and their indexes do not hold the id: those are sorted.
        assert ("Sort" in plan) == (index in ("traces_session_id_idx", "traces_user_id_idx"))


def test_a_rare_model_is_found_by_the_index_on_models(pool: StoragePool) -> None:
    store(pool, TRACES, SPANS)
    count, listing = plans_of(pool, lambda: TraceRepository(pool).list(TraceFilters(model="gpt")))
    assert "model_start_time" in count
    assert "model_start_time" in listing
