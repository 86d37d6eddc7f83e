"""A read takes no longer than it may, and its limit is nobody else's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from observatory_storage.errors import ConfigurationError, NotFoundError, ReadTimeoutError, StorageError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from tests.trace_rows import store, trace, trace_id


@contextmanager
def locked_traces(pool: StoragePool) -> Iterator[None]:
    """Keep every read of traces waiting."""
    with pool.session() as session:
        session.execute(sa.text("LOCK TABLE traces"))
        yield


def timeout_of(session: Session) -> str:
    return str(session.execute(sa.text("SHOW statement_timeout")).scalar_one())


def test_a_read_that_takes_too_long_is_stopped_and_said_so(pool: StoragePool) -> None:
    repository = TraceRepository(pool, statement_timeout_seconds=0.2)
    started = time.monotonic()
    with locked_traces(pool), pytest.raises(ReadTimeoutError, match=r"0\.2 seconds") as caught:
        repository.list()
    assert time.monotonic() - started < 10
    assert isinstance(caught.value, StorageError)
    assert caught.value.sqlstate == "57014"
    assert repository.list().items == ()


def test_a_stopped_read_leaves_the_session_to_be_rolled_back(pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("SELECT 1"))
        repository = TraceRepository(session, statement_timeout_seconds=0.2)
        with locked_traces(pool), pytest.raises(ReadTimeoutError):
            repository.list()
        with pytest.raises(StorageError):
            repository.list()
        session.rollback()
        assert timeout_of(session) == "0"
        assert repository.list().items == ()


def test_a_savepoint_saves_the_session_from_a_stopped_read(pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("SELECT 1"))
        with locked_traces(pool), pytest.raises(ReadTimeoutError), session.begin_nested():
            TraceRepository(session, statement_timeout_seconds=0.2).list()
        assert timeout_of(session) == "0"


def test_the_callers_own_timeout_stands_after_each_read(pool: StoragePool) -> None:
    for own in ("0", "7s", "700ms", "2min", "1h"):
        with pool.session() as session:
            session.execute(sa.text(f"SET LOCAL statement_timeout = '{own}'"))
            repository = TraceRepository(session)
            repository.list()
            assert timeout_of(session) == own
            with pytest.raises(NotFoundError):
                repository.get_by_id(trace_id("absent"))
            assert timeout_of(session) == own
        with pool.session() as session:
            assert timeout_of(session) == "0"


def test_a_stricter_timeout_of_the_caller_holds(pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("SET LOCAL statement_timeout = '200ms'"))
        started = time.monotonic()
        with locked_traces(pool), pytest.raises(ReadTimeoutError):
            TraceRepository(session, statement_timeout_seconds=20).list()
        assert time.monotonic() - started < 10


def test_no_timeout_of_a_read_reaches_the_pool(pool: StoragePool) -> None:
    TraceRepository(pool, statement_timeout_seconds=5).list()
    for _ in range(5):
        with pool.session() as session:
            assert timeout_of(session) == "0"


def test_reads_have_30_seconds_unless_told_otherwise(pool: StoragePool) -> None:
    store(pool, [trace("a")])
    # A trace whose name is the timeout of the statement that reads it.
    columns = ", ".join(
        "current_setting('statement_timeout') AS name" if column.name == "name" else column.name
        for column in Trace.__table__.columns
    )
    with pool.session() as session:
        session.execute(sa.text("ALTER TABLE traces RENAME TO stored"))
        session.execute(sa.text(f"CREATE VIEW traces AS SELECT {columns} FROM stored"))
        session.commit()
    for repository, expected in (
        (TraceRepository(pool), "30s"),
        (TraceRepository(pool, statement_timeout_seconds=1.5), "1500ms"),
        (TraceRepository(pool, statement_timeout_seconds=None), "0"),
    ):
        assert [row.name for row in repository.list()] == [expected]
    with pool.unit_of_work() as uow:
        assert [uow.traces.list()[0].name, timeout_of(uow.session)] == ["30s", "0"]


def test_a_timeout_that_cannot_be_is_refused(pool: StoragePool) -> None:
    for wrong in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(ConfigurationError, match="statement_timeout_seconds"):
            TraceRepository(pool, statement_timeout_seconds=wrong)
