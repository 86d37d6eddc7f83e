"""The pool as an application uses it: sessions, raw connections, limits, threads, health."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row

from observatory_storage.errors import IntegrityError, PoolTimeoutError, StorageError
from observatory_storage.pool import StoragePool

PID = sa.text("SELECT pg_backend_pid()")


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def add_trace(pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("INSERT INTO traces (id) VALUES (gen_random_uuid())"))
        session.commit()


def count_traces(pool: StoragePool) -> int:
    with pool.session() as session:
        return int(session.scalar(sa.text("SELECT count(*) FROM traces")) or 0)


@pytest.mark.every_server
def test_a_session_commits_only_when_told(pool: StoragePool) -> None:
    with pool.session() as session:
        session.execute(sa.text("INSERT INTO traces (id) VALUES (gen_random_uuid())"))
    assert count_traces(pool) == 0
    add_trace(pool)
    assert count_traces(pool) == 1


@pytest.mark.every_server
def test_errors_leave_a_session_as_the_packages_own(pool: StoragePool) -> None:
    with pytest.raises(IntegrityError) as caught, pool.session() as session:
        session.execute(sa.text("INSERT INTO traces (id, status) VALUES (gen_random_uuid(), 'excellent')"))
    assert caught.value.constraint_name == "traces_status_check"


@pytest.mark.every_server
def test_copy_by_hand_on_a_raw_connection(pool: StoragePool) -> None:
    def copy(commit: bool) -> None:
        with pool.raw_connection() as connection:
            with connection.cursor().copy("COPY traces (id, name) FROM STDIN") as copy:
                copy.write_row((uuid.uuid4(), "by hand"))
            if commit:
                connection.commit()

    copy(commit=False)
    assert count_traces(pool) == 0
    copy(commit=True)
    assert count_traces(pool) == 1


def test_a_raw_connection_comes_back_as_it_was(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as pool:
        with pool.raw_connection() as connection:
            connection.autocommit = True
            cast("Any", connection).row_factory = dict_row
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            connection.read_only = True
        add_trace(pool)
        with pool.raw_connection() as connection:
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_a_copy_that_is_left_half_done_costs_no_connection(database_url: str) -> None:
    def copy_half(pool: StoragePool) -> None:
        with pool.raw_connection() as connection, connection.cursor().copy("COPY traces (id) FROM STDIN") as copy:
            copy.write_row((uuid.uuid4(),))
            raise KeyError("of the application")

    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as pool:
        for _ in range(3):
            with pytest.raises(KeyError):
                copy_half(pool)
        assert count_traces(pool) == 0


def test_nothing_is_opened_before_the_first_use() -> None:
    with StoragePool.from_url("postgresql://nobody@127.0.0.1:1/nowhere") as pool:
        assert pool.stats().size == 0


def test_the_minimum_is_kept_warm(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=3, max_connections=5) as pool:
        pool.open()
        wait_until(lambda: pool.stats().idle == 3)
        stats = pool.stats()
        assert (stats.size, stats.active, stats.minimum, stats.maximum, stats.waiting) == (3, 0, 3, 5, 0)


def test_the_pool_grows_to_its_maximum_and_then_callers_wait(database_url: str) -> None:
    limits = {"min_connections": 1, "max_connections": 3, "connect_timeout_seconds": 0.6}
    with StoragePool.from_url(database_url, **limits) as pool, ExitStack() as held:
        pids = {held.enter_context(pool.session()).scalar(PID) for _ in range(3)}
        assert len(pids) == 3
        stats = pool.stats()
        assert (stats.size, stats.active, stats.idle) == (3, 3, 0)
        assert stats.utilisation == 1.0
        assert stats.near_capacity

        with ThreadPoolExecutor(1) as threads:
            fourth = threads.submit(count_traces, pool)
            wait_until(lambda: pool.stats().waiting == 1)
            with pytest.raises(PoolTimeoutError, match=r"3 of at most 3 are in use.*DB_MAX_CONNECTIONS"):
                fourth.result()

            fifth = threads.submit(count_traces, pool)
            wait_until(lambda: pool.stats().waiting == 1)
            held.close()
            assert fifth.result() == 0
        assert pool.stats().active == 0
        assert not pool.stats().near_capacity


def test_idle_connections_above_the_minimum_are_closed(database_url: str) -> None:
    limits = {"min_connections": 1, "max_connections": 4, "idle_timeout_seconds": 0.2}
    with StoragePool.from_url(database_url, **limits) as pool:
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(pool.session()).scalar(PID)
        assert pool.stats().size == 4
        wait_until(lambda: pool.stats().size == 1)


def test_a_connection_is_replaced_at_the_end_of_its_life(database_url: str) -> None:
    limits = {"min_connections": 1, "max_connections": 1, "max_lifetime_seconds": 0.3}
    with StoragePool.from_url(database_url, **limits) as pool:
        with pool.session() as session:
            first = session.scalar(PID)
            time.sleep(0.35)
        with pool.session() as session:
            assert session.scalar(PID) != first


def test_many_threads_share_few_connections(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=1, max_connections=3) as pool:
        with ThreadPoolExecutor(12) as threads:
            for done in [threads.submit(add_trace, pool) for _ in range(120)]:
                done.result()
        assert count_traces(pool) == 120
        assert pool.stats().size <= 3
        assert pool.stats().active == 0


def test_a_notice_is_logged_once_however_often_its_connection_was_used(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as pool:
        for _ in range(5):
            count_traces(pool)
        with caplog.at_level(logging.INFO, "sqlalchemy.dialects.postgresql"), pool.session() as session:
            session.execute(sa.text("DO $$ BEGIN RAISE NOTICE 'only once'; END $$"))
    assert [record.getMessage() for record in caplog.records].count("NOTICE: only once") == 1


def test_a_closed_pool_says_so(pool: StoragePool) -> None:
    count_traces(pool)
    pool.close()
    pool.close()
    with pytest.raises(StorageError, match="the pool is closed"), pool.session() as session:
        session.scalar(PID)
    with pytest.raises(StorageError, match="the pool is closed"), pool.raw_connection():
        pass
    assert pool.stats().size == 0


def test_a_connection_in_use_outlives_close_until_it_is_given_back(pool: StoragePool) -> None:
    with pool.session() as session:
        pid = session.scalar(PID)
        pool.close()
        assert session.scalar(PID) == pid
    assert threading.active_count() == 1


@pytest.mark.every_server
def test_health_of_a_migrated_database(pool: StoragePool) -> None:
    report = pool.health_check()
    assert report.healthy
    assert report.redis is None
    assert report.postgres.latency_ms is not None
    assert 0 < report.postgres.latency_ms < 1000
    assert report.postgres.schema is not None
    assert report.postgres.schema.is_current
    assert report.postgres.warning is None
    assert report.postgres.server_version is not None
    assert report.pool.maximum == 5


def test_health_of_an_empty_database(empty_database_url: str) -> None:
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=2) as pool:
        report = pool.health_check()
    assert report.postgres.healthy
    assert report.postgres.schema is not None
    assert report.postgres.schema.current is None
    assert not report.healthy


def test_health_of_a_server_that_is_away() -> None:
    with StoragePool.from_url("postgresql://u:hidden@127.0.0.1:1/d", initial_delay_ms=1) as pool:
        report = pool.health_check()
    assert not report.healthy
    assert report.postgres.error is not None
    assert "127.0.0.1" in report.postgres.error
    assert report.postgres.latency_ms is None


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [(5, None), (60, "a second process like this one can meet the limit"), (5000, "lower it")],
)
def test_a_pool_too_large_for_its_server_is_announced(
    database_url: str, caplog: pytest.LogCaptureFixture, maximum: int, expected: str | None
) -> None:
    with StoragePool.from_url(database_url, min_connections=0, max_connections=maximum) as pool:
        pool.open()
        warning = pool.health_check().postgres.warning
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if expected is None:
        assert warning is None
        assert not logged
    else:
        assert warning is not None
        assert expected in warning
        assert f"DB_MAX_CONNECTIONS is {maximum}" in warning
        assert [line for line in logged if warning in line]


def test_a_program_that_never_closes_its_pool_ends_at_once_and_in_silence(database_url: str) -> None:
    program = (
        "import sys, sqlalchemy as sa\n"
        "from observatory_storage.pool import StoragePool\n"
        "pool = StoragePool.from_url(sys.argv[1], min_connections=2, max_connections=3)\n"
        "with pool.session() as session: session.scalar(sa.text('SELECT 1'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, database_url],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_gave_up_waits_no_more(database_url: str) -> None:
    with (
        StoragePool.from_url(database_url, min_connections=1, max_connections=1, connect_timeout_seconds=1) as pool,
        pool.raw_connection(),
    ):
        for _ in range(2):
            with pytest.raises(PoolTimeoutError, match="and 0 other calls wait"), pool.raw_connection():
                pass
        assert pool.stats().waiting == 0
