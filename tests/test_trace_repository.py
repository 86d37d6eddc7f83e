"""A trace is read by its id in any form, whole or in parts, with few statements and from few partitions."""

from __future__ import annotations

import datetime as dt
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy import inspect
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError

from observatory_storage.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidFilterError,
    NotFoundError,
    StorageError,
)
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import SpanFilters, TraceFilters, TraceRepository
from observatory_storage.repositories.cursor import SpanCursor
from tests.conftest import Statements
from tests.trace_rows import (
    Row,
    at,
    cost,
    make_partitions,
    partitions_in,
    plans_of,
    span,
    span_event,
    span_id,
    store,
    trace,
    trace_id,
)

Recorder = Callable[[], AbstractContextManager[Statements]]


@pytest.fixture(params=["pool", "session"])
def repository(request: pytest.FixtureRequest, pool: StoragePool) -> Iterator[TraceRepository]:
    """A repository on a pool, and one on a session."""
    if request.param == "pool":
        yield TraceRepository(pool)
    else:
        with pool.session() as session:
            yield TraceRepository(session)


def stored_chat(pool: StoragePool) -> Row:
    """Store a trace of four spans, three events and two resources."""
    resources = [{"id": uuid.uuid4(), "service_name": name, "attributes": {"host": name}} for name in ("api", "db")]
    chat = trace("chat", start_time=at(), attributes={"tier": "gold"}, resource_id=resources[0]["id"])
    spans = [
        span(chat, 3, start_time=at(2), resource_id=resources[0]["id"]),
        span(chat, 2, start_time=at(1), resource_id=resources[1]["id"], input={"text": "hi"}),
        span(chat, 1, start_time=at(), resource_id=resources[0]["id"]),
        span(chat, 4, start_time=at(1)),
    ]
    events = [
        span_event(spans[1], 1, name="second", timestamp=at(5)),
        span_event(spans[1], 0, name="first", timestamp=at(6)),
        span_event(spans[2], 0, name="root's"),
    ]
    store(pool, [chat, trace("other", start_time=at())], spans, events, resources)
    return chat


def test_a_trace_is_found_by_its_id_in_any_form(pool: StoragePool) -> None:
    key = uuid.UUID("0123456789abcdef0123456789abcdef")
    store(pool, [{"id": key, "attributes": {"a": 1}}])
    repository = TraceRepository(pool)
    for given in (key.hex, key.hex.upper(), str(key), str(key).upper(), key.bytes, key):
        assert repository.get_by_id(given).id == key
        assert repository.get_by_trace_id(given).attributes == {"a": 1}
        found = repository.find_by_id(given)
        assert found is not None
        assert found.id == key


def test_a_trace_is_found_by_a_text_that_is_no_hexadecimal_id(repository: TraceRepository, pool: StoragePool) -> None:
    store(pool, [{"id": resolve_trace_id("trace_xyz789"), "name": "by text"}])
    assert repository.get_by_trace_id("trace_xyz789").name == "by text"
    assert repository.get_trace_by_id("trace_xyz789").trace.name == "by text"
    with pytest.raises(NotFoundError, match="TRACE_XYZ789"):
        repository.get_by_trace_id("TRACE_XYZ789")


def test_what_is_not_stored_is_not_found(repository: TraceRepository) -> None:
    for given in (uuid.uuid4(), "nothing here", b"\x01" * 16, "", b"short", bytes(16)):
        for call in (
            repository.get_by_id,
            repository.get_by_trace_id,
            repository.get_trace_by_id,
            repository.get_spans,
            repository.get_events,
            repository.get_trace_statistics,
            partial(repository.get_span_by_id, span_id=span_id(1)),
        ):
            with pytest.raises(NotFoundError):
                call(given)
        assert repository.find_by_id(given) is None


def test_a_trace_comes_with_its_spans_in_start_order_their_events_and_resources(
    repository: TraceRepository, pool: StoragePool
) -> None:
    chat = stored_chat(pool)
    detail = repository.get_trace_by_id(chat["id"])
    assert detail.trace.attributes == {"tier": "gold"}
    assert [row.span_id for row in detail.spans] == [span_id(number) for number in (1, 2, 4, 3)]
    assert {key: [event.name for event in found] for key, found in detail.events.items()} == {
        span_id(1): ["root's"],
        span_id(2): ["first", "second"],
        span_id(3): [],
        span_id(4): [],
    }
    assert [event.name for event in detail.events_of(detail.spans[1])] == ["first", "second"]
    assert {row.resource_id for row in detail.spans if row.resource_id} == set(detail.resources)
    assert detail.spans[1].resource_id is not None
    assert detail.resources[detail.spans[1].resource_id].attributes == {"host": "db"}
    assert detail.spans[1].input == {"text": "hi"}


def test_a_whole_trace_takes_four_statements_whatever_its_size(
    pool: StoragePool, recorded_statements: Recorder
) -> None:
    resource = {"id": uuid.uuid4(), "service_name": "api"}
    big = trace("big", start_time=at())
    spans = [span(big, number, start_time=at(number / 100), resource_id=resource["id"]) for number in range(1, 101)]
    store(pool, [big], spans, [span_event(row, 0) for row in spans], [resource])
    with recorded_statements() as seen:
        detail = TraceRepository(pool).get_trace_by_id(big["id"])
    assert len(detail.spans) == sum(len(found) for found in detail.events.values()) == 100
    assert len(seen) == 4


def test_a_trace_without_spans_is_read_too(repository: TraceRepository, pool: StoragePool) -> None:
    store(pool, [trace("empty"), trace("dated", start_time=at())])
    for name in ("empty", "dated"):
        detail = repository.get_trace_by_id(trace_id(name))
        assert (detail.spans, detail.events, detail.resources) == ((), {}, {})
        assert repository.get_spans(trace_id(name)) == []
        assert repository.get_events(trace_id(name)) == []


def test_spans_of_a_trace_whose_times_are_unknown_are_found(repository: TraceRepository, pool: StoragePool) -> None:
    bare, ended = trace("bare"), trace("ended", end_time=at(10))
    store(pool, [bare, ended], [span(bare, 1, start_time=at(days=50)), span(ended, 1, start_time=at(10))])
    assert len(repository.get_spans(bare["id"])) == 1
    assert len(repository.get_trace_by_id(ended["id"]).spans) == 1


def test_spans_that_start_and_end_with_their_trace_belong_to_it(repository: TraceRepository, pool: StoragePool) -> None:
    edge = trace("edge", start_time=at(), end_time=at(10))
    spans = [span(edge, 1), span(edge, 2, start_time=at(10))]
    store(pool, [edge], spans, [span_event(row, 0) for row in spans])
    assert [row.span_id for row in repository.get_spans(edge["id"])] == [span_id(1), span_id(2)]
    assert len(repository.get_events(edge["id"])) == 2


def test_spans_come_in_parts_and_without_their_content(repository: TraceRepository, pool: StoragePool) -> None:
    chat = stored_chat(pool)
    assert [row.span_id for row in repository.get_spans(chat["id"], limit=2, offset=1)] == [span_id(2), span_id(4)]
    light = repository.get_spans(chat["id"], include_content=False)[1]
    assert light.name == "span 2"
    for column in ("input", "output", "attributes"):
        with pytest.raises(DetachedInstanceError, match=column):
            getattr(light, column)
    for limit, offset in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(InvalidFilterError):
            repository.get_spans(chat["id"], limit=limit, offset=offset)


def test_a_span_is_found_by_its_id_in_any_form(repository: TraceRepository, pool: StoragePool) -> None:
    odd = trace("odd", start_time=at())
    store(pool, [odd], [span(odd, 1, span_id="00f067aa0ba902b7"), span(odd, 1, span_id="my span")])
    for given in ("00f067aa0ba902b7", "00F067AA0BA902B7", bytes.fromhex("00f067aa0ba902b7")):
        assert repository.get_span_by_id(odd["id"], given).span_id == "00f067aa0ba902b7"
    assert repository.get_span_by_id(odd["id"], "my span").trace_id == odd["id"]
    for absent in (span_id(9), "", bytes(8), b"short"):
        with pytest.raises(NotFoundError):
            repository.get_span_by_id(odd["id"], absent)


def test_the_earliest_of_several_spans_with_one_id_is_returned(repository: TraceRepository, pool: StoragePool) -> None:
    # The earliest lies in DEFAULT, which is read last.
    make_partitions(pool, 2)
    resent = trace("resent", start_time=at(days=-1), end_time=at(days=1))
    spans = [span(resent, 1, start_time=at(days=day), name=f"day {day}") for day in (1, -1, 0)]
    store(pool, [resent], spans, [span_event(row, 0, name=row["name"]) for row in spans])
    assert repository.get_span_by_id(resent["id"], span_id(1)).name == "day -1"
    detail = repository.get_trace_by_id(resent["id"])
    assert [event.name for event in detail.events[span_id(1)]] == ["day -1", "day 0", "day 1"]
    assert [event.name for event in detail.events_of(detail.spans[1])] == ["day 0"]


def test_events_are_those_of_a_trace_or_of_one_span(repository: TraceRepository, pool: StoragePool) -> None:
    chat = stored_chat(pool)
    assert [event.name for event in repository.get_events(chat["id"])] == ["root's", "first", "second"]
    assert [event.name for event in repository.get_events(chat["id"], span_id(2))] == ["first", "second"]
    assert repository.get_events(chat["id"], span_id(9)) == []


def test_only_the_days_of_a_trace_are_read(pool: StoragePool) -> None:
    make_partitions(pool, 5)
    short = trace("short", start_time=at(days=1))
    overnight = trace("overnight", start_time=at(days=2), end_time=at(days=3))
    store(pool, [short, overnight], [span(short, 1), span(overnight, 1)])
    repository = TraceRepository(pool)
    calls: list[Callable[[uuid.UUID], object]] = [
        repository.get_trace_by_id,
        repository.get_spans,
        repository.get_events,
        repository.get_trace_statistics,
        lambda key: repository.get_span_by_id(key, span_id(1)),
        lambda key: repository.get_events(key, span_id(1)),
    ]
    for row, days in ((short, {"20260311"}), (overnight, {"20260312", "20260313"})):
        for call in calls:
            plans = plans_of(pool, partial(call, row["id"]))
            read = {name for plan in plans for name in partitions_in(plan)}
            assert {name.rsplit("_p")[-1] for name in read} == days


def test_a_session_sees_its_own_pending_rows_and_commits_nothing(pool: StoragePool) -> None:
    with pool.session() as session:
        session.add(Trace(id=trace_id("pending"), name="pending"))
        assert TraceRepository(session).get_by_id(trace_id("pending")).name == "pending"
        assert session.in_transaction()
    assert TraceRepository(pool).find_by_id(trace_id("pending")) is None


def test_without_autoflush_pending_rows_stay_pending(pool: StoragePool) -> None:
    with pool.session() as session, session.no_autoflush:
        session.add(Trace(id=trace_id("pending")))
        assert TraceRepository(session).find_by_id(trace_id("pending")) is None
        assert session.new


def test_what_is_returned_is_a_snapshot_beside_the_session(pool: StoragePool) -> None:
    store(pool, [trace("a", attributes={"k": 1})])
    with pool.session() as session:
        repository = TraceRepository(session)
        mine = session.get_one(Trace, trace_id("a"))
        first = repository.get_by_id(trace_id("a"))
        store_again = sa.update(Trace).where(Trace.id == trace_id("a")).values(name="new")
        with pool.session() as other:
            other.execute(store_again)
            other.commit()
        assert repository.get_by_id(trace_id("a")).name == "new"
        assert (first.name, mine.name) == ("trace a", "trace a")
        assert inspect(first).detached
        repository.list()
        assert mine.attributes == first.attributes == {"k": 1}
        mine.name = "changed"
        session.commit()
    assert TraceRepository(pool).get_by_id(trace_id("a")).name == "changed"


def test_what_is_returned_outlives_the_session_and_can_be_pickled(
    repository: TraceRepository, pool: StoragePool
) -> None:
    chat = stored_chat(pool)
    detail = repository.get_trace_by_id(chat["id"])
    page = repository.list()
    copied = pickle.loads(pickle.dumps(detail))
    assert copied.spans[1].input == {"text": "hi"}
    assert pickle.loads(pickle.dumps(page)).items[0].name == page[0].name
    assert all(inspect(row).detached for row in (detail.trace, *detail.spans, *page))


class RollingBack:
    """A source of sessions that ends each by a rollback, which expires what the session holds."""

    def __init__(self, pool: StoragePool) -> None:
        self._pool = pool

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self._pool.session() as session:
            yield session
            session.rollback()


def test_what_is_returned_outlives_the_rollback_of_any_source_of_sessions(pool: StoragePool) -> None:
    chat = stored_chat(pool)
    repository = TraceRepository(RollingBack(pool))
    assert repository.get_by_id(chat["id"]).name == "trace chat"
    assert repository.get_trace_by_id(chat["id"]).spans[0].name == "span 1"


def test_a_repository_on_a_session_goes_on_after_something_was_not_found(pool: StoragePool) -> None:
    with pool.session() as session:
        repository = TraceRepository(session)
        with pytest.raises(NotFoundError):
            repository.get_by_id(trace_id("absent"))
        session.add(Trace(id=trace_id("later")))
        session.commit()
        assert repository.get_by_id(trace_id("later")).span_count == 0


def test_errors_of_the_database_are_errors_of_the_package(pool: StoragePool) -> None:
    with pool.session() as session:
        session.add(Trace(id=trace_id("bad"), status="nonsense"))
        with pytest.raises(IntegrityError):
            TraceRepository(session).list()
    with pool.session() as session:
        session.execute(sa.text("DROP TABLE trace_events"))
        session.commit()
    store(pool, [trace("a")])
    with pytest.raises(StorageError, match="trace_events"):
        TraceRepository(pool).get_trace_by_id(trace_id("a"))


def test_a_session_of_another_driver_is_refused() -> None:
    with Session(sa.create_engine("sqlite://")) as session, pytest.raises(ConfigurationError, match="psycopg"):
        TraceRepository(session).list()


def test_spans_of_any_trace_are_listed_newest_first(repository: TraceRepository, pool: StoragePool) -> None:
    chat, other = trace("chat", start_time=at()), trace("other", start_time=at())
    spans = [
        span(chat, 1, model="gpt", operation="chat", environment="prod", name="50% of_it"),
        span(chat, 2, start_time=at(1), model="gpt", provider="openai", input_tokens=5, cost_usd=cost(1)),
        span(other, 1, start_time=at(2), model="claude", operation="chat", attributes={"k": [1, 2]}),
        span(other, 2, start_time=at(2), operation="execute_tool"),
    ]
    store(pool, [chat, other], spans)

    def found(filters: SpanFilters) -> set[tuple[uuid.UUID, str]]:
        return {(row.trace_id, row.span_id) for row in repository.list_spans(filters)}

    keys = [(row["trace_id"], row["span_id"]) for row in spans]
    assert found(SpanFilters(model="gpt")) == {keys[0], keys[1]}
    assert found(SpanFilters(model="gpt", provider="openai")) == {keys[1]}
    assert found(SpanFilters(operation="chat", environment="prod")) == {keys[0]}
    assert found(SpanFilters(operation="execute_tool")) == {keys[3]}
    assert found(SpanFilters(attributes={"k": [2]})) == {keys[2]}
    assert found(SpanFilters(name="0% OF_")) == {keys[0]}
    assert found(SpanFilters(start_time_from=at(1), start_time_before=at(2))) == {keys[1]}
    ordered = sorted(spans, key=lambda row: (row["start_time"], row["trace_id"], row["span_id"]), reverse=True)
    filters, seen = SpanFilters(limit=1), []
    while True:
        page = repository.list_spans(filters)
        seen += [(row.trace_id, row.span_id) for row in page]
        if page.next_cursor is None:
            break
        filters = SpanFilters(limit=1, cursor=page.next_cursor)
    assert seen == [(row["trace_id"], row["span_id"]) for row in ordered]
    with pytest.raises(DetachedInstanceError, match="attributes"):
        _ = repository.list_spans()[0].attributes
    assert repository.list_spans(include_content=True)[0].attributes in ({}, {"k": [1, 2]})


def test_listing_spans_reads_the_days_that_are_left(pool: StoragePool) -> None:
    make_partitions(pool, 5)
    repository = TraceRepository(pool)
    filters = SpanFilters(start_time_from=at(days=1), start_time_before=at(days=2), model="gpt")
    (plan,) = plans_of(pool, lambda: repository.list_spans(filters))
    assert partitions_in(plan) == {"trace_spans_p20260311", "trace_spans_p20260312"}
    assert "model_start_time" in plan
    cursor = SpanCursor(at(days=1), trace_id("a"), span_id(1)).encode()
    (plan,) = plans_of(pool, lambda: repository.list_spans(SpanFilters(cursor=cursor)))
    assert partitions_in(plan) == {"trace_spans_p20260310", "trace_spans_p20260311", "trace_spans_default"}


def test_times_leave_in_utc(pool: StoragePool) -> None:
    store(pool, [trace("zoned", start_time=at().astimezone(dt.timezone(dt.timedelta(hours=5))))])
    assert TraceRepository(pool).get_by_id(trace_id("zoned")).start_time == at()


def test_a_page_is_a_sequence(pool: StoragePool) -> None:
    store(pool, [trace(number, start_time=at(number)) for number in range(3)])
    page = TraceRepository(pool).list(TraceFilters(limit=2))
    assert len(page) == 2
    assert [row.name for row in page] == ["trace 2", "trace 1"]
    assert page[0].name == "trace 2"
    assert page[1:] == page.items[1:]
    assert page.items[0] in page
