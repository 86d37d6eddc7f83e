"""A unit of work stores what was committed, and nothing else."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa

from observatory_storage.errors import IntegrityError, StorageError, UnavailableError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool

pytestmark = pytest.mark.every_server


def stored(pool: StoragePool) -> int:
    with pool.session() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Trace)) or 0


def test_what_is_committed_is_stored_and_read_through_the_repository(pool: StoragePool) -> None:
    trace_id = uuid.uuid4()
    with pool.unit_of_work() as uow:
        uow.session.add(Trace(id=trace_id, name="chat"))
        uow.commit()
    with pool.unit_of_work() as uow:
        assert uow.traces.get_by_id(trace_id).name == "chat"


def test_without_commit_nothing_is_stored(pool: StoragePool) -> None:
    with pool.unit_of_work() as uow:
        uow.session.add(Trace(id=uuid.uuid4()))
        uow.session.flush()
    assert stored(pool) == 0


def test_an_error_undoes_what_followed_the_last_commit(pool: StoragePool) -> None:
    def fail_after_commit() -> None:
        with pool.unit_of_work() as uow:
            uow.session.add(Trace(id=uuid.uuid4()))
            uow.commit()
            uow.session.add(Trace(id=uuid.uuid4()))
            uow.session.flush()
            raise KeyError("of the application")

    with pytest.raises(KeyError):
        fail_after_commit()
    assert stored(pool) == 1


def test_rollback_undoes_and_the_unit_goes_on(pool: StoragePool) -> None:
    with pool.unit_of_work() as uow:
        uow.session.add(Trace(id=uuid.uuid4()))
        uow.session.flush()
        uow.rollback()
        uow.session.add(Trace(id=uuid.uuid4()))
        uow.commit()
    assert stored(pool) == 1


def test_a_refused_row_is_named_by_its_constraint_on_commit(pool: StoragePool) -> None:
    with pool.unit_of_work() as uow:
        uow.session.add(Trace(id=uuid.uuid4(), status="excellent"))
        with pytest.raises(IntegrityError) as caught:
            uow.commit()
    assert caught.value.constraint_name == "traces_status_check"
    assert "excellent" not in str(caught.value)


def test_an_error_that_leaves_the_block_is_translated(pool: StoragePool) -> None:
    with pytest.raises(IntegrityError), pool.unit_of_work() as uow:
        uow.session.execute(sa.insert(Trace).values(id=uuid.uuid4(), status="excellent"))


def test_a_connection_that_breaks_before_commit_is_an_outage(pool: StoragePool) -> None:
    with pool.unit_of_work() as uow:
        uow.session.add(Trace(id=uuid.uuid4()))
        uow.session.flush()
        pid = uow.session.scalar(sa.text("SELECT pg_backend_pid()"))
        with pool.raw_connection() as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(UnavailableError):
            uow.commit()
    assert stored(pool) == 0


def test_one_unit_can_be_entered_again(pool: StoragePool) -> None:
    unit = pool.unit_of_work()
    for _ in range(2):
        with unit as uow:
            uow.session.add(Trace(id=uuid.uuid4()))
            uow.commit()
    assert stored(pool) == 2


def test_a_closed_pool_gives_no_unit(pool: StoragePool) -> None:
    pool.close()
    with pytest.raises(StorageError, match="closed"), pool.unit_of_work() as uow:
        uow.session.execute(sa.text("SELECT 1"))


def test_misuse_is_refused_and_keeps_no_connection(pool: StoragePool) -> None:
    unit = pool.unit_of_work()
    with pytest.raises(StorageError, match="not open"):
        unit.commit()
    with unit:
        with pytest.raises(StorageError, match="open already"), unit:
            pass
        unit.traces.list()
    with pytest.raises((StorageError, sa.exc.InvalidRequestError)):
        unit.traces.list()
    with unit:
        unit.traces.list()
    assert pool.stats().active == 0
