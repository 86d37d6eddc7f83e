"""Servers that are away, refuse, restart or drop connections, and what the caller sees of it."""

from __future__ import annotations

import gc
import logging
import pickle
import shutil
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from observatory_storage.embedded import EmbeddedServer, embedded_server
from observatory_storage.errors import UnavailableError
from observatory_storage.pool import StoragePool
from tests.servers import free_port, private_directory, redis_server

PID = sa.text("SELECT pg_backend_pid()")
QUICK = {"initial_delay_ms": 10, "max_delay_ms": 50}


def ask(pool: StoragePool) -> int:
    with pool.session() as session:
        return int(session.scalar(PID) or 0)


def warm(pool: StoragePool, count: int) -> None:
    with ExitStack() as held:
        for _ in range(count):
            held.enter_context(pool.session()).scalar(PID)


class RestartableServer:
    """A server of the test's own; its URL stays the same."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: EmbeddedServer = embedded_server(directory)
        self.url = self._server.url

    def stop(self) -> None:
        self._server.close()

    def start(self) -> None:
        self._server = embedded_server(self._directory)
        assert self._server.url == self.url


@pytest.fixture
def private_server() -> Iterator[RestartableServer]:
    with private_directory("own", in_memory=True) as directory:
        server = RestartableServer(directory / "data")
        try:
            yield server
        finally:
            server.stop()


def test_an_unreachable_server_is_named_with_its_reason_after_the_retries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    url = f"postgresql://app:Sup3rSecret@127.0.0.1:{port}/telemetry"
    with caplog.at_level(logging.DEBUG), StoragePool.from_url(url, max_attempts=4, **QUICK) as pool:
        with pytest.raises(UnavailableError) as caught:
            ask(pool)
        message = str(caught.value)
        for part in ("127.0.0.1", str(port), "telemetry", "refused", "4 attempts", "DB_HOST"):
            assert part in message
        shown = "".join(
            [message, repr(pool), repr(pool.config), caplog.text, *traceback.format_exception(caught.value)]
        )
        assert "Sup3rSecret" not in shown
        assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_the_pauses_between_attempts_grow_up_to_their_limit(caplog: pytest.LogCaptureFixture) -> None:
    url = f"postgresql://app@127.0.0.1:{free_port()}/telemetry"
    pauses: dict[str, Any] = {"initial_delay_ms": 40, "max_delay_ms": 100, "backoff_multiplier": 2.0}
    started = time.monotonic()
    with (
        caplog.at_level(logging.INFO, "observatory_storage.connect"),
        StoragePool.from_url(url, max_attempts=4, **pauses) as pool,
        pytest.raises(UnavailableError),
    ):
        ask(pool)
    seconds = time.monotonic() - started
    # 40 + 80 + 100 ms, each with up to 40 ms of jitter, and four refused attempts.
    assert 0.22 <= seconds < 1.0
    assert len([record for record in caplog.records if "failed" in record.getMessage()]) == 3


def test_threads_that_wait_for_the_same_attempt_share_its_error() -> None:
    url = f"postgresql://app@127.0.0.1:{free_port()}/telemetry"
    with StoragePool.from_url(url, max_attempts=3, initial_delay_ms=100) as pool:
        started = time.monotonic()
        with ThreadPoolExecutor(20) as threads:
            errors = [task.exception() for task in [threads.submit(ask, pool) for _ in range(20)]]
        assert all(isinstance(error, UnavailableError) for error in errors)
        # One after the other they would take six seconds.
        assert time.monotonic() - started < 2.0


def test_a_missing_database_is_not_tried_twice(server_url: str) -> None:
    refusal = r"not_there.*does not exist \(1 attempt\).*createdb"
    with (
        StoragePool.from_url(server_url, database="not_there", max_attempts=5) as pool,
        pytest.raises(UnavailableError, match=refusal),
    ):
        ask(pool)


def test_a_missing_role_is_not_tried_twice(server_url: str) -> None:
    refusal = r"not_there.*does not exist \(1 attempt\).*DB_USER"
    with (
        StoragePool.from_url(server_url, username="not_there", max_attempts=5) as pool,
        pytest.raises(UnavailableError, match=refusal),
    ):
        ask(pool)


def test_a_wrong_password_is_not_tried_twice_and_never_shown(private_server: RestartableServer) -> None:
    with psycopg.connect(private_server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'right'")
        rules = connection.execute("SHOW hba_file").fetchone()
        assert rules is not None
        path = Path(rules[0])
        path.write_text("local all app scram-sha-256\n" + path.read_text())
        connection.execute("SELECT pg_reload_conf()")
    with StoragePool.from_url(private_server.url, username="app", password="right") as pool:
        assert ask(pool)
    with StoragePool.from_url(private_server.url, username="app", password="Wr0ngSecret") as pool:
        with pytest.raises(UnavailableError, match=r"authentication failed.*1 attempt.*DB_PASSWORD") as caught:
            ask(pool)
        assert "Wr0ngSecret" not in "".join(traceback.format_exception(caught.value))
    with (
        StoragePool.from_url(private_server.url, username="app") as pool,
        pytest.raises(UnavailableError, match=r"no password supplied.*1 attempt.*DB_PASSWORD"),
    ):
        ask(pool)


def test_a_server_without_free_connections_says_what_to_lower(database_url: str, server_url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("CREATE ROLE busy LOGIN CONNECTION LIMIT 1")
        try:
            with (
                StoragePool.from_url(database_url, username="busy", max_connections=1) as first,
                StoragePool.from_url(database_url, username="busy", **QUICK) as second,
            ):
                ask(first)
                with pytest.raises(UnavailableError, match=r"too many connections.*DB_MAX_CONNECTIONS"):
                    ask(second)
        finally:
            admin.execute("DROP ROLE busy")


def test_terminated_connections_never_reach_a_caller(database_url: str, server_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=4, max_connections=4) as pool:
        for _ in range(3):
            warm(pool, 4)
            with psycopg.connect(server_url, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                    [pool.config.postgres.database],
                )
            started = time.monotonic()
            assert len({ask(pool) for _ in range(8)}) <= 4
            # The pool left to itself pauses for a second after the second stale one, then for two, four …
            assert time.monotonic() - started < 0.9


def test_a_connection_that_breaks_in_use_is_not_lost_to_the_pool(database_url: str, server_url: str) -> None:
    limits = {"min_connections": 1, "max_connections": 2, "connect_timeout_seconds": 2}
    admin = psycopg.connect(server_url, autocommit=True)

    def break_session(pool: StoragePool) -> None:
        with pool.session() as session:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [session.scalar(PID)])
            session.scalar(PID)

    def break_raw(pool: StoragePool) -> None:
        with pool.raw_connection() as connection:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
            connection.execute("SELECT 1")

    with admin, StoragePool.from_url(database_url, **limits) as pool:
        for break_one in (break_session, break_raw) * 5:
            with pytest.raises(UnavailableError):
                break_one(pool)
        warm(pool, 2)
        assert pool.stats().active == 0


def test_a_restart_between_two_calls_goes_unnoticed(private_server: RestartableServer) -> None:
    with StoragePool.from_url(private_server.url, min_connections=8, max_connections=10) as pool:
        warm(pool, 8)
        private_server.stop()
        private_server.start()
        started = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            pids = [task.result() for task in [threads.submit(ask, pool) for _ in range(40)]]
        assert all(pids)
        assert time.monotonic() - started < 3.0


def test_while_the_server_is_away_callers_hear_why_and_afterwards_all_is_well(
    private_server: RestartableServer, caplog: pytest.LogCaptureFixture
) -> None:
    with StoragePool.from_url(private_server.url, min_connections=2, max_connections=4, **QUICK) as pool:
        warm(pool, 4)
        private_server.stop()
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(UnavailableError, match=r"No such file or directory|refused|starting up"):
                ask(pool)
            assert time.monotonic() - started < 3.0
        private_server.start()
        started = time.monotonic()
        assert ask(pool)
        assert time.monotonic() - started < 6.0
        warm(pool, 4)


def test_a_pool_survives_a_long_outage(private_server: RestartableServer) -> None:
    limits = {"min_connections": 2, "max_connections": 2, "connect_timeout_seconds": 1}
    with StoragePool.from_url(private_server.url, **limits, **QUICK) as pool:
        warm(pool, 2)
        private_server.stop()
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            with pytest.raises(UnavailableError):
                ask(pool)
        private_server.start()
        started = time.monotonic()
        while True:
            try:
                warm(pool, 2)
                break
            except UnavailableError:
                assert time.monotonic() - started < 2.0


def test_redis_is_given_while_it_answers(database_url: str, redis_url: str) -> None:
    with StoragePool.from_url(database_url, redis_url=redis_url, max_connections=2) as pool:
        assert pool.redis is not None
        pool.redis.set("observatory:test", "1", ex=5)
        assert pool.redis.get("observatory:test") == b"1"
        health = pool.health_check_redis()
        assert health is not None
        assert health.healthy
        assert health.latency_ms is not None


def test_without_redis_there_is_one_warning_and_everything_else_works(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.redis_client._ASK_AGAIN_SECONDS", 0.05)
    url = f"redis://:Sup3rSecret@127.0.0.1:{free_port()}/0"
    with StoragePool.from_url(database_url, redis_url=url, max_connections=2) as pool:
        for _ in range(3):
            assert pool.redis is None
            time.sleep(0.06)
        assert ask(pool)
        report = pool.health_check()
        assert report.healthy
        assert report.redis is not None
        assert not report.redis.healthy
        assert report.redis.error is not None
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
        assert "Sup3rSecret" not in caplog.text + repr(report)


def test_redis_is_used_again_once_it_is_back(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observatory_storage.redis_client._ASK_AGAIN_SECONDS", 0.05)
    port = free_port()

    def is_given() -> bool:
        time.sleep(0.06)
        return pool.redis is not None

    with StoragePool.from_url(database_url, redis_url=f"redis://127.0.0.1:{port}/0", max_connections=2) as pool:
        assert not is_given()
        with redis_server(port):
            assert is_given()
        health = pool.health_check_redis()
        assert health is not None
        assert not health.healthy
        assert not is_given()


def test_a_pool_on_a_directory_brings_its_server_and_takes_it_along() -> None:
    with private_directory("pool", in_memory=True) as directory:
        for expected in (0, 1):
            with StoragePool.embedded(directory / "data") as pool:
                assert pool.run_migrations().is_current
                with pool.session() as session:
                    assert session.scalar(sa.text("SELECT count(*) FROM traces")) == expected
                    session.execute(sa.text("INSERT INTO traces (id) VALUES (gen_random_uuid())"))
                    session.commit()
                url = pool.config.postgres.conninfo()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(url)
        shutil.rmtree(directory / "data")


def test_a_pool_whose_connections_were_lost_by_interrupts_is_replaced(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=1, max_connections=3, connect_timeout_seconds=10) as pool:
        with pool.raw_connection() as held:
            inner = pool._connections._pool
            assert inner is not None
            for _ in range(2):
                # What an interrupt between its being given and its being taken leaves: counted, and nobody has it.
                lost = inner.getconn()
                lost._pool = None
                lost.close()
                del lost
            gc.collect()
            started = time.monotonic()
            with pool.raw_connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            assert time.monotonic() - started < 5
            # What was lent before goes on, and is closed when it comes back.
            assert held.execute("SELECT 2").fetchone() == (2,)
        assert held.closed
        assert pool.stats().size >= 1
        with pool.raw_connection() as first, pool.raw_connection() as second, pool.raw_connection() as third:
            assert len({id(first), id(second), id(third)}) == 3
