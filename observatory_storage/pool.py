"""StoragePool: the one object through which an application reaches its storage."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import redis
from psycopg.rows import TupleRow
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

from observatory_storage import migrations
from observatory_storage.caching import CACHE_OF_SESSION
from observatory_storage.config import StorageConfig
from observatory_storage.connections import Connections, PoolStats, capacity_warning, restore
from observatory_storage.embedded import EmbeddedServer, embedded_server
from observatory_storage.errors import ConfigurationError, StorageError, translate_errors
from observatory_storage.health import HealthReport, PostgresHealth, RedisHealth
from observatory_storage.lifecycle import MaintenanceReport, PartitionWidth, RetentionPolicy, maintenance
from observatory_storage.migrations import SchemaState
from observatory_storage.models import Base
from observatory_storage.realtime import EventStream, LogWatch, ReadCache, Realtime
from observatory_storage.redis_client import RedisLink
from observatory_storage.unit_of_work import UnitOfWork

# One laptop has no use for 50, and the embedded server has 97 for everyone.
_EMBEDDED_LIMITS: Final = {"max_connections": 20, "min_connections": 1}
# A health check that hangs, as behind a migration's lock, is of no use to whoever asked.
_HEALTH_TIMEOUT_MS: Final = 5000


class StoragePool:
    """Connections to PostgreSQL, and to Redis where it is configured.

    Nothing is opened before the first use. Then the configured minimum of connections is kept open, more are
    made up to the maximum, and what is idle or old for too long is closed. Threads may share a pool. So may
    forked processes: each child opens connections of its own and leaves the parent's alone. Every connection
    is checked before it is given out, so that none that a server restart left stale reaches a caller.

    A context manager: leaving it closes the pool, and so does the end of the program. All errors are those
    of `observatory_storage.errors`.
    """

    def __init__(self, config: StorageConfig) -> None:
        if not isinstance(config, StorageConfig):
            # Without what was given: a URL holds a password.
            raise ConfigurationError(
                f"StoragePool takes a StorageConfig, and was given a {type(config).__name__}; "
                "for a URL there is StoragePool.from_url"
            )
        self.config = config
        self._connections = Connections(config, self._renew_engine)
        self._redis = RedisLink(config.redis) if config.redis is not None else None
        self.realtime = Realtime(config, config.redis) if config.redis is not None else None
        self._server: EmbeddedServer | None = None
        self.engine = self._new_engine()
        self._sessions = sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False, info={CACHE_OF_SESSION: self.cache}
        )
        # Otherwise done at the first query, under a lock that a fork at that moment would leave locked.
        Base.registry.configure()

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> Self:
        """Take the database from a URL, the rest from keywords as `StorageConfig.from_url` has them."""
        return cls(StorageConfig.from_url(url, **overrides))

    @classmethod
    def embedded(cls, data_dir: Path | str, **overrides: Any) -> Self:
        """Start PostgreSQL from the wheel on a directory, which keeps the data, and stop it with the pool.

        Blocks until the server is ready; the schema is made by `run_migrations`. Other processes that name
        the same directory join the same server.
        """
        server = embedded_server(data_dir)
        try:
            pool = cls.from_url(server.url, **{**_EMBEDDED_LIMITS, **overrides})
        except BaseException:  # an interrupt, too, would leave a server that nobody stops
            server.close()
            raise
        pool._server = server
        return pool

    def open(self) -> None:
        """Connect now, where the first call would do it otherwise.

        Tries as often as the configuration says; raises UnavailableError with the server's reason.
        """
        self._connections.open()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Give a session. It commits only when told, and is rolled back and closed at the end of the block."""
        with translate_errors():
            session = self._sessions()
            pid = os.getpid()
            try:
                yield session
            finally:
                # In a child that was forked inside the block, the transaction is the parent's to end.
                if pid == os.getpid():
                    session.close()

    def unit_of_work(self) -> UnitOfWork:
        """Return a unit of work to enter: a session with its repositories, rolled back unless committed."""
        return UnitOfWork(self._sessions)

    @contextmanager
    def raw_connection(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """Give a psycopg connection, as for COPY by hand.

        The caller commits; what is not committed is rolled back at the end of the block, and the connection
        goes back to the pool with its autocommit, isolation level and row factory as they were. Use SET
        LOCAL for settings: others outlive the block.
        """
        with translate_errors():
            connection = self._connections.take()
            pid = os.getpid()
            try:
                yield connection
            finally:
                if pid == os.getpid():
                    try:
                        restore(connection)
                    finally:
                        connection.close()

    def run_migrations(self, revision: str = "head") -> SchemaState:
        """Bring the schema to a revision; any number of processes may call it at once.

        See `observatory_storage.migrations.upgrade`. Uses connections of its own.
        """
        return migrations.upgrade(self.config, revision)

    def maintain(
        self,
        *,
        ahead: dt.timedelta = maintenance.AHEAD,
        widths: Mapping[str, PartitionWidth] | None = None,
        retention: Iterable[RetentionPolicy] | None = None,
        wait_seconds: float = 0.0,
        dry_run: bool = False,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> MaintenanceReport:
        """Do what is due in the database, beside whoever writes and reads; call it every few minutes.

        Makes the partitions of the time until now + `ahead`, and those that rows of the last 90 days in DEFAULT
        have to move to; removes what is older than its policy; then builds the text index of each partition of
        logs that has closed. `widths` says by table what range of times a new partition takes, and `retention` how
        long telemetry is kept, each in the place of the configuration's; without a policy nothing is removed.

        May be called from many hosts at once: one of them works, the others wait for up to `wait_seconds` and
        then return a report that says so. What could not be done stands in the report; the next call tries
        again. A `dry_run` changes nothing. `on_progress` is called with what is being done, how many of its
        steps are done, and how many there are. Uses one connection of its own, directly to PostgreSQL, besides
        the pool's. Raises UnavailableError where the server cannot be reached.
        """
        return maintenance.maintain(
            self,
            ahead=ahead,
            widths=widths,
            retention=retention,
            wait_seconds=wait_seconds,
            dry_run=dry_run,
            on_progress=on_progress,
        )

    @property
    def redis(self) -> redis.Redis | None:
        """Return the Redis client, or None where none is configured or Redis does not answer.

        An outage is logged once as a warning; Redis is asked again at most every 5 s, when this is read.
        """
        return self._redis.client if self._redis is not None else None

    @property
    def cache(self) -> ReadCache | None:
        """Return the cache through which repositories on this pool read, or None where no Redis is configured.

        `cache.stats()` counts its hits and misses. Who writes traces past the writers tells `cache.forget_traces`.
        """
        return self.realtime.cache if self.realtime is not None else None

    @property
    def stream(self) -> EventStream:
        """Return the stream of what writers commit: `stream.tail(…)` follows it.

        Raises ConfigurationError where no Redis is configured.
        """
        if self.realtime is None:
            raise ConfigurationError("events are followed by way of Redis, and none is configured: set REDIS_URL")
        return self.realtime.stream

    def watch_logs(self, project: str | None = None) -> LogWatch | None:
        """Return what wakes a follower of log records; None where no Redis is configured, or nothing is published."""
        return self.realtime.watch_logs(project) if self.realtime is not None else None

    def health_check(self) -> HealthReport:
        """Ask both servers; what is wrong stands in the report and is not raised."""
        return HealthReport(self.health_check_postgres(), self.health_check_redis(), self.stats())

    def health_check_postgres(self) -> PostgresHealth:
        """Measure a round trip, and read version, schema revision and limits; raises nothing."""
        try:
            with self.raw_connection() as connection:
                connection.execute(f"SET LOCAL statement_timeout = {_HEALTH_TIMEOUT_MS}")
                started = time.perf_counter()
                connection.execute("SELECT 1").fetchone()
                latency_ms = (time.perf_counter() - started) * 1000
                return PostgresHealth(
                    latency_ms=latency_ms,
                    server_version=connection.info.parameter_status("server_version"),
                    schema=migrations.schema_state(connection),
                    warning=capacity_warning(self.config, connection),
                )
        except StorageError as error:
            return PostgresHealth(error=str(error))

    def health_check_redis(self) -> RedisHealth | None:
        """Measure a round trip to Redis; None where it is not configured. Raises nothing."""
        if self._redis is None:
            return None
        try:
            return RedisHealth(latency_ms=self._redis.ping())
        except redis.RedisError as error:
            return RedisHealth(error=str(error))

    def stats(self) -> PoolStats:
        """Count this process's connections; opens nothing and asks no server."""
        return self._connections.stats()

    def close(self) -> None:
        """Close all connections, and the embedded server where there is one. May be called again.

        Connections that are in use close when they come back. In a forked child the parent's stay open.
        """
        self._connections.close()
        if self._redis is not None:
            self._redis.close()
        if self.realtime is not None:
            self.realtime.close()
        if self._server is not None:
            self._server.close()

    def _new_engine(self) -> Engine:
        # NullPool asks for a connection at each checkout and closes it afterwards, which gives it back.
        engine = create_engine(
            "postgresql+psycopg://", creator=self._connections.take, poolclass=NullPool, use_native_hstore=False
        )
        event.listen(engine, "checkout", self._note_engine_in_use)
        self._engine_used = False
        return engine

    def _note_engine_in_use(self, *_: object) -> None:
        self._engine_used = True

    def _renew_engine(self) -> None:
        # SQLAlchemy makes an engine's first connection under a lock; in a child that was forked at that
        # moment nobody would ever release it.
        if not self._engine_used:
            self.engine = self._new_engine()
            self._sessions.configure(bind=self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.postgres}>"
