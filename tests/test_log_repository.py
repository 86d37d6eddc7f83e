"""Records are read by id, by trace and in lists, from as few partitions as hold them."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import inspect
from sqlalchemy.orm.exc import DetachedInstanceError

from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.models import LogRecord
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository, log_windows
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_windows import LIST_PARTITIONS
from tests.logs import EPOCH, Row, at, ids, log, make_hours, newest_first, sent, sent_by, store_logs
from tests.trace_rows import store, trace, trace_id


@pytest.fixture(params=["pool", "session"])
def repository(request: pytest.FixtureRequest, pool: StoragePool) -> Iterator[LogRepository]:
    """A repository on a pool, and one on a session."""
    if request.param == "pool":
        yield LogRepository(pool)
    else:
        with pool.session() as session:
            yield LogRepository(session)


def computed_id(time: dt.datetime) -> uuid.UUID:
    """An id as the writer computes it: milliseconds first."""
    milliseconds = (time - EPOCH) // dt.timedelta(milliseconds=1)
    value = milliseconds << 80 | uuid.uuid4().int & (1 << 80) - 1
    return uuid.UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62)


def test_a_record_is_found_by_its_id(repository: LogRepository, pool: StoragePool) -> None:
    make_hours(pool, 0, 3)
    # One has a time that no partition is for.
    rows = [log(number, attributes={"n": number}, body_json={"n": number}) for number in (1, 3700, 7300, 90_000)]
    store_logs(pool, rows)
    for row in rows:
        for given in (row["id"], str(row["id"]), row["id"].hex):
            found = repository.get_by_id(given)
            assert (found.id, found.timestamp) == (row["id"], row["timestamp"])
            assert (found.attributes, found.body_json) == (row["attributes"], row["body_json"])
            assert inspect(found).detached
        assert repository.get_by_id(row["id"], timestamp=row["timestamp"].replace(tzinfo=None)).id == row["id"]
        with pytest.raises(NotFoundError, match=str(row["id"])):
            repository.get_by_id(row["id"], timestamp=row["timestamp"] + dt.timedelta(microseconds=1))
    absent: Any
    for absent in (uuid.uuid4(), computed_id(at()), "nonsense", "", None, 5, b"0123456789abcdef"):
        with pytest.raises(NotFoundError):
            repository.get_by_id(absent)


def test_an_id_that_the_writer_computed_leads_to_its_partition(pool: StoragePool) -> None:
    make_hours(pool, 0, 5)
    times = [at(0.001), at(3700.5), at(7200.999_999)]
    rows = [log(0, timestamp=time, id=computed_id(time)) for time in times]
    old = log(0, timestamp=EPOCH - dt.timedelta(days=9), id=computed_id(EPOCH))
    store_logs(pool, [*rows, old, *(log(number) for number in range(0, 18_000, 600))])
    repository = LogRepository(pool)
    assert repository.get_by_id(old["id"]).timestamp == old["timestamp"]
    for row in rows:
        with sent(pool) as seen:
            repository.get_by_id(row["id"])
        assert len(seen) == 2
        assert seen.partitions == {f"p{row['timestamp']:%Y%m%d%H}"}


def stored_hours(pool: StoragePool, hours: int, each: int = 10) -> list[Row]:
    """Store records that are spread over some hours with partitions of their own; newest first."""
    make_hours(pool, 0, hours)
    rows = [log(int(number * 3600 / each)) for number in range(hours * each)]
    store_logs(pool, rows)
    return newest_first(rows)


def test_a_list_reads_the_newest_partitions_alone(pool: StoragePool) -> None:
    rows = stored_hours(pool, 30)
    make_hours(pool, 30, 5)  # ahead, and empty
    repository = LogRepository(pool)
    seen = sent_by(pool, lambda: repository.list(LogFilters(limit=9)))
    assert seen.partitions == {"p2026031116", "p2026031117"}
    # Where the first window is not enough the next ones are larger: 2, 8, 32 partitions.
    with sent(pool) as seen:
        assert ids(repository.list(LogFilters(limit=95))) == ids(rows[:95])
    assert len(seen) == 3
    assert len(seen.partitions) == 10
    cursor = repository.list(LogFilters(limit=100)).next_cursor
    with sent(pool) as seen:
        assert ids(repository.list(LogFilters(limit=9, cursor=cursor))) == ids(rows[100:109])
    assert len(seen) == 2
    assert len(seen.partitions) <= 2


def test_a_time_range_prunes_partitions(pool: StoragePool) -> None:
    rows = stored_hours(pool, 10)
    repository = LogRepository(pool)
    start, end = at(hours=3), at(hours=5)
    within = [row for row in rows if start <= row["timestamp"] < end]
    with sent(pool) as seen:
        assert ids(repository.get_logs(start, end)) == ids(within)
    assert seen.partitions == {"p2026031015", "p2026031016"}
    assert len(seen) == 2


@pytest.mark.parametrize("in_default", [False, True])
def test_what_no_partition_is_for_takes_its_place_in_the_order(
    repository: LogRepository, pool: StoragePool, in_default: bool
) -> None:
    # Partitions with a hole between them, and times before, within and after.
    make_hours(pool, 0, 2)
    make_hours(pool, 4, 2)
    make_hours(pool, 8, 2)
    hours = [0, 1, 4, 5, 8] + ([-500, 2, 3, 6, 7, 10, 500] if in_default else [])
    rows = [log(0, timestamp=at(60 * minute, hours=hour)) for hour in hours for minute in range(3)]
    if in_default:
        rows.append(log(0, timestamp=EPOCH))
    store_logs(pool, rows)
    assert ids(repository.list(LogFilters(limit=1000))) == ids(newest_first(rows))
    assert ids(repository.list(LogFilters(limit=5))) == ids(newest_first(rows)[:5])
    assert repository.get_stats().log_count == len(rows)


def test_without_any_partition_but_default_records_are_listed(repository: LogRepository, pool: StoragePool) -> None:
    assert repository.list().items == ()
    rows = [log(number) for number in range(5)]
    store_logs(pool, rows)
    assert ids(repository.list()) == ids(newest_first(rows))


@pytest.mark.every_server
def test_partitions_of_all_bounds_are_read(repository: LogRepository, pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("SET timezone = 'Asia/Kolkata'"))
        for name, bounds in (
            ("old", "FROM (MINVALUE) TO ('2026-03-10 12:00+00')"),
            ("day", "FROM ('2026-03-10 12:00+00') TO ('2026-03-11 12:00+00')"),
            ("new", "FROM ('2026-03-11 12:00+00') TO (MAXVALUE)"),
        ):
            session.execute(sa.text(f"CREATE TABLE logs_{name} PARTITION OF logs FOR VALUES {bounds}"))
        session.commit()
    rows = [log(0, timestamp=at(hours=hours)) for hours in (-9000, -1, 0, 1, 23, 24, 25, 9000)]
    store_logs(pool, rows)
    assert ids(repository.list(LogFilters(limit=3))) == ids(newest_first(rows)[:3])
    assert ids(repository.list()) == ids(newest_first(rows))
    assert ids(repository.get_logs(at(), at(hours=24))) == ids(newest_first(rows[2:5]))


def test_where_partitions_have_no_size_of_their_own_all_are_read(
    pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Citus, where the rows lie in other tables.
    rows = stored_hours(pool, 6)
    monkeypatch.setattr(log_windows, "LIST_PARTITIONS", LIST_PARTITIONS.replace("pg_relation_size(oid)", "0"))
    assert ids(LogRepository(pool).list(LogFilters(limit=1000))) == ids(rows)


def test_content_is_read_when_asked_for(repository: LogRepository, pool: StoragePool) -> None:
    store_logs(pool, [log(1, attributes={"k": 1}, body_json=["a", "b"], body="a\nb", scope_attributes={"s": 1})])
    (light,) = repository.list()
    assert light.body == "a\nb"
    for column in ("attributes", "body_json", "scope_attributes"):
        with pytest.raises(DetachedInstanceError, match=column):
            getattr(light, column)
    (full,) = repository.list(include_content=True)
    assert (full.attributes, full.body_json, full.scope_attributes) == ({"k": 1}, ["a", "b"], {"s": 1})


def test_the_logs_of_a_trace_come_in_time_order_from_around_it(repository: LogRepository, pool: StoragePool) -> None:
    make_hours(pool, -40, 100)
    store(pool, [trace("a", start_time=at(), end_time=at(60)), trace("bare")])
    mine = [
        log(0, timestamp=time, trace_id=trace_id("a"))
        for time in (EPOCH, at(hours=-24), at(-5), at(), at(30), at(30), at(hours=23))
    ]
    far = [log(0, timestamp=at(hours=hours), trace_id=trace_id("a")) for hours in (-39, 50)]
    others = [log(number, trace_id=trace_id("b")) for number in range(3)]
    bare = [log(number, trace_id=trace_id("bare")) for number in (4000, 100, 9000)]
    store_logs(pool, [*mine, *far, *others, *bare])

    def in_order(rows: list[Row]) -> list[uuid.UUID]:
        return ids(reversed(newest_first(rows)))

    assert ids(repository.get_logs_by_trace(trace_id("a"))) == in_order(mine)
    assert ids(repository.get_logs_by_trace(trace_id("a").hex, everywhere=True)) == in_order([*mine, *far])
    assert ids(repository.get_logs_by_trace(trace_id("b"))) == in_order(others)
    assert ids(repository.get_logs_by_trace(trace_id("bare"))) == in_order(bare)
    assert repository.get_logs_by_trace(trace_id("none")) == []
    assert repository.get_logs_by_trace(trace_id("a"))[0].attributes == {}
    assert ids(repository.search_by_trace(str(trace_id("a")), limit=1000)) == ids(newest_first([*mine, *far]))
    with pytest.raises(NotFoundError):
        repository.get_logs_by_trace("")


def test_the_logs_of_a_trace_take_two_statements_and_its_partitions(pool: StoragePool) -> None:
    make_hours(pool, -60, 120)
    store(pool, [trace("a", start_time=at(), end_time=at(60))])
    store_logs(pool, [log(number, trace_id=trace_id("a")) for number in range(5)])
    seen = sent_by(pool, lambda: LogRepository(pool).get_logs_by_trace(trace_id("a")))
    assert len(seen) == 2
    # A day on both sides, and those without any time.
    assert len(seen.partitions) <= 51


def test_totals_are_of_all_records_that_filters_let_through(repository: LogRepository, pool: StoragePool) -> None:
    make_hours(pool, 0, 3)
    levels = [1, 4, 5, 9, 9, 12, 13, 16, 17, 20, 21, 24, None, 0]
    rows = [
        log(number * 700, severity_number=level, service_name=("api", "db", None)[number % 3])
        for number, level in enumerate(levels)
    ]
    store_logs(pool, rows)
    stats = repository.get_stats(LogFilters(limit=1))
    assert stats.log_count == len(rows)
    assert stats.error_count == 4
    assert (stats.first_timestamp, stats.last_timestamp) == (rows[0]["timestamp"], rows[-1]["timestamp"])
    assert stats.by_level == {"TRACE": 2, "DEBUG": 1, "INFO": 3, "WARN": 2, "ERROR": 2, "FATAL": 2, None: 2}
    assert list(stats.by_level) == ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL", None]
    assert stats.by_service == {"api": 5, "db": 5, None: 4}
    assert repository.count_by_level(LogFilters(service_name="api", min_severity="warn")) == {
        **dict.fromkeys(("TRACE", "DEBUG", "INFO", "FATAL", None), 0),
        "WARN": 1,
        "ERROR": 1,
    }
    nothing = repository.get_stats(LogFilters(project="none"))
    assert (nothing.log_count, nothing.first_timestamp, nothing.by_service) == (0, None, {})


def remaining(pool: StoragePool) -> set[uuid.UUID]:
    with pool.session() as session:
        return set(session.execute(sa.select(LogRecord.id)).scalars())


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_old_records_go_in_batches(pool: StoragePool, batch_size: int) -> None:
    make_hours(pool, 0, 4)
    # Many share a time, and some have none of the partitions.
    times = [at(hours=hours) for hours in (-3, 0, 0, 0, 0, 0, 0.5, 1, 1, 2.9, 3)] + [EPOCH]
    mine = [log(0, timestamp=time) for time in times]
    others = [log(0, timestamp=time, project="other") for time in times]
    store_logs(pool, [*mine, *others])
    repository = LogRepository(pool)
    with sent(pool) as seen:
        assert repository.delete_before(at(hours=2.9), project="default", batch_size=batch_size) == 10
    deletions = [statement for statement in seen if statement.startswith("DELETE")]
    assert len(deletions) >= 10 / batch_size
    kept = {row["id"] for row in mine if row["timestamp"] >= at(hours=2.9)}
    assert remaining(pool) == kept | set(ids(others))
    assert repository.delete_before(at(hours=2.9).replace(tzinfo=None), batch_size=batch_size) == 10
    assert repository.delete_before(at(hours=2.9)) == 0
    assert len(remaining(pool)) == 4


def test_a_deletion_on_a_session_is_the_callers_to_commit(pool: StoragePool) -> None:
    store_logs(pool, [log(number) for number in range(5)])
    with pool.session() as session:
        assert LogRepository(session).delete_before(at(3), batch_size=2) == 3
        assert LogRepository(session).get_stats().log_count == 2
    assert LogRepository(pool).get_stats().log_count == 5


@pytest.mark.parametrize("cutoff", ["now", None, dt.date(2026, 3, 10), 1767225600])
def test_what_is_no_datetime_deletes_nothing(pool: StoragePool, cutoff: Any) -> None:
    store_logs(pool, [log(1)])
    repository: Any = LogRepository(pool)
    refusing: Any
    for refusing in (LogRepository(pool).delete_before, TraceRepository(pool).delete_before):
        with sent(pool) as seen, pytest.raises(InvalidFilterError, match=r"^cutoff: it is .* and must be a datetime$"):
            refusing(cutoff)
        assert not seen
    with pytest.raises(InvalidFilterError, match=r"^timestamp: it is"):
        repository.get_by_id(uuid.uuid4(), timestamp="now" if cutoff is None else cutoff)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None])
def test_a_batch_holds_one_record_at_least(pool: StoragePool, batch_size: Any) -> None:
    with pytest.raises(InvalidFilterError, match=r"^batch_size: it is .* and must be 1 or more$"):
        LogRepository(pool).delete_before(at(), batch_size=batch_size)
