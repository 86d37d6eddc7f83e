"""Old traces go with all that is theirs, in batches, and nothing else goes."""

from __future__ import annotations

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from observatory_storage.errors import InvalidFilterError, UnavailableError
from observatory_storage.models import Resource, Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import DeletedCounts, TraceRepository
from tests.trace_rows import Row, at, count, make_partitions, partitions_in, plans_of, span, span_event, store, trace


def store_days(pool: StoragePool, days: int, **columns: object) -> list[Row]:
    """Store a trace a day, each with two spans and an event."""
    rows = [trace((day, *columns.values()), start_time=at(days=day), **columns) for day in range(days)]
    spans = [span(row, number, start_time=row["start_time"]) for row in rows for number in (1, 2)]
    store(pool, rows, spans, [span_event(row, 0) for row in spans[::2]])
    return rows


def remaining(pool: StoragePool) -> set[uuid.UUID]:
    with pool.session() as session:
        return set(session.execute(sa.select(Trace.id)).scalars())


def test_old_traces_go_with_spans_and_events(pool: StoragePool) -> None:
    make_partitions(pool, 3)
    for batch_size in (1, 2, 3, 1000):
        rows = store_days(pool, 6, project=f"p{batch_size}")
        deleted = TraceRepository(pool).delete_before(at(days=4), batch_size=batch_size)
        assert deleted == DeletedCounts(traces=4, spans=8, events=4, skipped=0)
        assert remaining(pool) == {row["id"] for row in rows[4:]}
        assert (count(pool, TraceSpan), count(pool, TraceEvent)) == (4, 2)
        assert TraceRepository(pool).delete_before(at(days=4)) == DeletedCounts()
        assert TraceRepository(pool).delete_before(at(days=9)).traces == 2


def test_many_traces_that_start_together_all_go(pool: StoragePool) -> None:
    store(pool, [trace(number, start_time=at()) for number in range(25)] + [trace("new", start_time=at(days=1))])
    assert TraceRepository(pool).delete_before(at(days=1), batch_size=4).traces == 25
    assert len(remaining(pool)) == 1


def test_a_trace_goes_by_its_end_its_start_or_its_storing(pool: StoragePool) -> None:
    day = dt.timedelta(days=1)
    rows = {
        "ended at the cutoff": trace("at", start_time=at(-9), end_time=at()),
        "ended just before": trace("before", start_time=at(-9), end_time=at() - dt.timedelta(microseconds=1)),
        "has no end": trace("no end", start_time=at(-9), end_time=None),
        "began after": trace("after", start_time=at(1)),
        "has no start": trace("no start", end_time=at(-9), created_at=at() + day),
        "has no times, stored before": trace("stored before", created_at=at() - day),
        "has no times, stored after": trace("stored after", created_at=at() + day),
    }
    store(pool, rows.values())
    assert TraceRepository(pool).delete_before(at()).traces == 4
    kept = remaining(pool)
    assert {name for name, row in rows.items() if row["id"] in kept} == {
        "ended at the cutoff",
        "began after",
        "has no times, stored after",
    }


def test_a_naive_cutoff_is_utc(pool: StoragePool) -> None:
    store_days(pool, 2)
    assert TraceRepository(pool).delete_before(at(days=1).replace(tzinfo=None)).traces == 1


def test_other_projects_and_resources_stay(pool: StoragePool) -> None:
    mine, others = store_days(pool, 2, project="a"), store_days(pool, 2, project="b")
    store(pool, resources=[{"id": uuid.uuid4(), "project": "a"}])
    assert TraceRepository(pool).delete_before(at(days=9), project="a").spans == 2 * len(mine)
    assert remaining(pool) == {row["id"] for row in others}
    assert (count(pool, TraceSpan), count(pool, TraceEvent), count(pool, Resource)) == (4, 2, 1)


def test_on_a_session_the_caller_commits(pool: StoragePool) -> None:
    store_days(pool, 3)
    with pool.unit_of_work() as uow:
        assert uow.traces.delete_before(at(days=9), batch_size=1).traces == 3
        assert uow.traces.list().items == ()
    assert len(remaining(pool)) == 3
    with pool.unit_of_work() as uow:
        uow.traces.delete_before(at(days=9))
        uow.commit()
    assert remaining(pool) == set()


def test_traces_that_another_transaction_holds_are_skipped_and_counted(pool: StoragePool) -> None:
    for batch_size in (1, 2, 1000):
        rows = store_days(pool, 5, project=f"p{batch_size}")
        held = [rows[0]["id"], rows[1]["id"], rows[3]["id"]]
        with pool.session() as writer:
            writer.execute(sa.update(Trace).where(Trace.id.in_(held)).values(name="busy"))
            deleted = TraceRepository(pool).delete_before(at(days=9), batch_size=batch_size)
            assert deleted == DeletedCounts(traces=2, spans=4, events=2, skipped=3)
            writer.commit()
        assert remaining(pool) == set(held)
        assert TraceRepository(pool).delete_before(at(days=9), batch_size=batch_size).traces == 3


def test_deletions_at_the_same_time_share_the_work(pool: StoragePool) -> None:
    rows = [trace(number, start_time=at(number)) for number in range(200)]
    spans = [span(row, 1) for row in rows]
    store(pool, rows, spans, [span_event(row, 0) for row in spans])
    with ThreadPoolExecutor(4) as threads:
        counts = list(
            threads.map(lambda size: TraceRepository(pool).delete_before(at(days=1), batch_size=size), (3, 7, 20, 50))
        )
    # What all of them skipped, because another one held it and then deleted it, is gone all the same.
    assert remaining(pool) == set()
    assert sum(done.traces for done in counts) == sum(done.spans for done in counts) == 200
    assert (count(pool, TraceSpan), count(pool, TraceEvent)) == (0, 0)


def test_with_a_pool_each_batch_is_committed(pool: StoragePool) -> None:
    rows = store_days(pool, 4)
    with pool.session() as session:
        # The third trace's spans cannot be deleted.
        session.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '55P03'; END $$"
            )
        )
        session.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE DELETE ON trace_spans FOR EACH ROW "
                f"WHEN (OLD.trace_id = '{rows[2]['id']}') EXECUTE FUNCTION refuse()"
            )
        )
        session.commit()
    with pytest.raises(UnavailableError):
        TraceRepository(pool).delete_before(at(days=9), batch_size=1)
    assert remaining(pool) == {row["id"] for row in rows[2:]}
    assert count(pool, TraceSpan) == 4


def test_only_the_days_of_a_batch_are_looked_at_and_traces_come_by_index(pool: StoragePool) -> None:
    make_partitions(pool, 5)
    store_days(pool, 5)
    repository = TraceRepository(pool)
    plans = plans_of(pool, lambda: repository.delete_before(at(days=1), project="default"))
    read = {name for plan in plans for name in partitions_in(plan)}
    assert read == {"trace_spans_p20260310", "trace_events_p20260310"}
    assert "Index Scan Backward using traces_project_start_time_idx" in plans[0]
    assert "Sort" not in plans[0]
    assert all("pkey" in plan for plan in plans[1:] if "trace_" in plan)


def test_a_batch_holds_a_trace_at_least(pool: StoragePool) -> None:
    for batch_size in (0, -1):
        with pytest.raises(InvalidFilterError):
            TraceRepository(pool).delete_before(at(), batch_size=batch_size)
