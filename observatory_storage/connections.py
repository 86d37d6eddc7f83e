"""The PostgreSQL connections of one process: kept warm, checked when given out, left alone by forked children."""

from __future__ import annotations

import atexit
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg.waiting import Ready, Wait
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from observatory_storage.config import StorageConfig
from observatory_storage.connect import (
    connect,
    connect_once,
    connect_parameters,
    pin_settings,
    server_name,
    unavailable,
)
from observatory_storage.errors import PoolTimeoutError, StorageError, UnavailableError, translate_errors

logger = logging.getLogger(__name__)

# How long a call waits for a first connection before it asks the server itself what is wrong.
_PATIENCE_SECONDS: Final = 0.5
# psycopg_pool doubles its pauses between attempts until it gives up; the next call then starts afresh. With
# its own five minutes, a server that was away for two is found again only after four.
_RECONNECT_SECONDS: Final = 5.0
_ATTEMPTS_IN_VAIN: Final = 2
_NEAR_CAPACITY: Final = 0.8
_LIMIT = """
SELECT least(
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
    (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
)
"""


T = TypeVar("T")


@dataclass(frozen=True)
class PoolStats:
    """The connections of this process at one moment; `waiting` counts the calls that wait for one."""

    size: int
    idle: int
    active: int
    minimum: int
    maximum: int
    waiting: int

    @property
    def utilisation(self) -> float:
        """The part of the maximum that is in use, 0.0 to 1.0."""
        return self.active / self.maximum

    @property
    def near_capacity(self) -> bool:
        """Tell whether at least 80 % of the maximum is in use."""
        return self.utilisation >= _NEAR_CAPACITY


class PooledConnection(psycopg.Connection[TupleRow]):
    """A connection that `close()` gives back to its pool.

    `meanwhile` is called, again and again, while an answer of the server is waited for: it does a millisecond of
    other work and returns true, or false where there is none. It must not use the connection.
    """

    meanwhile: Callable[[], bool] | None = None
    # Work that sends a statement all the same gets an error of libpq; by psycopg's own, which no thread may take twice,
    # it would wait for ever.
    lock: Any

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.lock = threading.RLock()

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Wait for the server as psycopg does, and work meanwhile."""
        if self.meanwhile is not None:
            gen = _Working(gen, self)
        return super().wait(gen, *args, **options)

    def close(self) -> None:
        """Return to the pool, or really close where there is none.

        psycopg's own version returns only working connections: each broken one would be lost to the pool
        for good.
        """
        pool = getattr(self, "_pool", None)
        if pool is None:
            super().close()
        else:
            pool.putconn(self)

    def add_notice_handler(self, callback: Callable[[psycopg.errors.Diagnostic], None]) -> None:
        """Add a handler, once: SQLAlchemy adds its own at each checkout."""
        handlers = self.__dict__.setdefault("_handlers_given", set())
        if callback not in handlers:
            handlers.add(callback)
            super().add_notice_handler(callback)


class Connections:
    """Opens on first use, in each process for itself; safe for threads.

    `in_child` is called in each forked child.
    """

    def __init__(self, config: StorageConfig, in_child: Callable[[], None]) -> None:
        self._config = config
        self._in_child = in_child
        self._lock = threading.Lock()
        self._pool: ConnectionPool[PooledConnection] | None = None
        self._pid = os.getpid()
        self._closed = False
        self._failed: tuple[float, UnavailableError] | None = None
        self._live: dict[int, weakref.ref[PooledConnection]] = {}
        self._waiting: set[int] = set()
        _all.add(self)

    def take(self) -> PooledConnection:
        """Give a connection that works at this moment; `close()` on it gives it back.

        Waits up to the configured connect timeout for one to be free. Raises PoolTimeoutError, or
        UnavailableError where it is the server that gives none.
        """
        pool = self._open()
        timeout = self._config.pool.connect_timeout_seconds
        deadline = time.monotonic() + timeout
        # Counted here: psycopg_pool goes on counting those who gave up until a connection comes back.
        caller = threading.get_ident()
        self._waiting.add(caller)
        try:
            return self._wait(pool, deadline)
        finally:
            self._waiting.discard(caller)

    def _wait(self, pool: ConnectionPool[PooledConnection], deadline: float) -> PooledConnection:
        in_vain = 0
        while True:
            remaining = deadline - time.monotonic()
            # A full pool has to be waited for; one that may grow should do so soon.
            patience = remaining if self._is_full(pool) else min(remaining, _PATIENCE_SECONDS)
            try:
                return pool.getconn(patience)
            except PoolClosed as error:
                if self._closed or self._pool is pool:
                    raise StorageError("the pool is closed") from error
                pool = self._open()
            except PoolTimeout as error:
                if time.monotonic() >= deadline:
                    raise self._timed_out(pool) from error
                # Perhaps it is the server who keeps us waiting: hear its reason.
                connect(self._config).close()
                in_vain += 1
                if in_vain >= _ATTEMPTS_IN_VAIN and not self._is_full(pool):
                    pool = self._replace(pool)

    def _replace(self, broken: ConnectionPool[PooledConnection]) -> ConnectionPool[PooledConnection]:
        """Give up a pool that neither gives connections nor makes new ones, though it could.

        An interrupt (Ctrl-C) in the middle of its own steps leaves it so: it counts connections that nobody has.
        """
        with self._lock:
            if self._pool is broken:
                logger.warning("the pool of connections stands still, as after an interrupt: a new one takes its place")
                self._pool = self._new_pool()
        broken.close(timeout=0)
        return self._open()

    def open(self) -> None:
        """Connect now, rather than with the first call; raises UnavailableError."""
        self._open()

    def close(self) -> None:
        """Close what is idle now, and what is in use as it comes back. May be called again."""
        self._forget_if_forked()
        self._closed = True
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def stats(self) -> PoolStats:
        """Count the connections of this process; opens nothing."""
        self._forget_if_forked()
        pool = self._pool
        limits = self._config.pool
        if pool is None:
            return PoolStats(0, 0, 0, limits.min_connections, limits.max_connections, 0)
        counts = pool.get_stats()
        size = self._size()
        idle = min(counts["pool_available"], size)
        return PoolStats(size, idle, size - idle, limits.min_connections, limits.max_connections, len(self._waiting))

    def _open(self) -> ConnectionPool[PooledConnection]:
        self._forget_if_forked()
        asked = time.monotonic()
        if self._pool is not None:
            return self._pool
        with self._lock:
            if self._closed:
                raise StorageError("the pool is closed")
            if self._pool is None:
                # Those who waited here for an attempt that failed share its error, and do not repeat it in turn.
                if self._failed is not None and self._failed[0] >= asked:
                    raise UnavailableError(str(self._failed[1])) from self._failed[1]
                try:
                    self._greet()
                except UnavailableError as error:
                    self._failed = (time.monotonic(), error)
                    raise
                self._pool = self._new_pool()
            return self._pool

    def _greet(self) -> None:
        with translate_errors(), connect(self._config, autocommit=True) as connection:
            warning = capacity_warning(self._config, connection)
        if warning is not None:
            logger.warning("%s: %s", server_name(self._config), warning)

    def _new_pool(self) -> ConnectionPool[PooledConnection]:
        limits = self._config.pool
        pool = ConnectionPool(
            self._config.postgres.conninfo(),
            connection_class=PooledConnection,
            kwargs=connect_parameters(self._config),
            min_size=limits.min_connections,
            max_size=limits.max_connections,
            max_idle=limits.idle_timeout_seconds,
            max_lifetime=limits.max_lifetime_seconds,
            timeout=limits.connect_timeout_seconds,
            reconnect_timeout=min(_RECONNECT_SECONDS, limits.connect_timeout_seconds),
            configure=self._configure,
            check=self._check,
            close_returns=True,
            open=False,
            name=f"observatory_storage-{os.getpid()}",
        )
        pool.open()
        return pool

    def _configure(self, connection: PooledConnection) -> None:
        connection.autocommit = True
        pin_settings(connection)
        connection.autocommit = False
        key = id(connection)
        self._live[key] = weakref.ref(connection, lambda _: self._live.pop(key, None))

    def _check(self, connection: PooledConnection) -> None:
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            # A stale connection is seldom alone. Left to itself the pool finds them one by one, with pauses
            # of 1, 2, 4 … s between them, long after the server is back.
            if self._pool is not None:
                self._pool.check()
            raise

    def _size(self) -> int:
        connections = [reference() for reference in list(self._live.values())]
        return sum(connection is not None and not connection.closed for connection in connections)

    def _is_full(self, pool: ConnectionPool[PooledConnection]) -> bool:
        in_use = self._size() - pool.get_stats()["pool_available"]
        return in_use >= self._config.pool.max_connections

    def _timed_out(self, pool: ConnectionPool[PooledConnection]) -> UnavailableError:
        seconds = self._config.pool.connect_timeout_seconds
        stats = self.stats()
        others = stats.waiting - 1
        if stats.active < stats.maximum:
            try:
                connect_once(self._config).close()
            except psycopg.Error as error:
                return unavailable(self._config, error, 1, seconds)
        return PoolTimeoutError(
            f"no connection became free within {seconds:g} s: {stats.active} of at most {stats.maximum} are in use "
            f"and {others} other calls wait; raise DB_MAX_CONNECTIONS, or hold connections for less time"
        )

    def _forget_if_forked(self) -> None:
        # The hook below has done it already, unless the fork came from a program that runs no Python hooks.
        if self._pid != os.getpid():
            self._forget()

    def _forget(self) -> None:
        """Drop, in a forked child, what belongs to the parent, without a word to the server."""
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._failed = None
        self._waiting = set()
        pool, self._pool = self._pool, None
        inherited = [reference() for reference in list(self._live.values())]
        self._live = {}
        if pool is not None:
            # Its threads did not come along, and its locks may be held by them: nothing of it, its finalizer
            # included, may run any more. It has no public way to be told so.
            pool._closed = True
        sockets = [c.pgconn.socket for c in inherited if c is not None and not c.closed]
        if sockets:
            # Whatever still uses or closes an inherited connection here would talk, over the shared socket,
            # in the middle of the parent's conversation. It finds a dead line instead.
            line, other_end = socket.socketpair()
            other_end.close()
            for descriptor in sockets:
                os.dup2(line.fileno(), descriptor)
            line.close()
        self._in_child()


def capacity_warning(config: StorageConfig, connection: psycopg.Connection[Any]) -> str | None:
    """Say in one sentence that processes of this size meet the server's limit, before they do."""
    row = connection.execute(_LIMIT).fetchone()
    limit: int = row[0] if row is not None else 0
    wanted = config.pool.max_connections
    if wanted > limit:
        return (
            f"DB_MAX_CONNECTIONS is {wanted}, but the server has {limit} connections for all its clients: "
            "lower it, or raise the server's max_connections"
        )
    if wanted * 2 > limit:
        return (
            f"DB_MAX_CONNECTIONS is {wanted} and the server has {limit} connections for all its clients: a second "
            "process like this one can meet the limit; lower it before you start more"
        )
    return None


def restore(connection: PooledConnection) -> None:
    """Undo what a caller may have set on a connection, and roll back what it did not commit."""
    if connection.closed or connection.info.transaction_status == TransactionStatus.ACTIVE:
        return
    connection.rollback()
    connection.autocommit = False
    connection.isolation_level = None
    connection.read_only = None
    connection.deferrable = None
    connection.row_factory = tuple_row
    connection.cursor_factory = psycopg.Cursor
    connection.meanwhile = None


class _Working(Generator[Wait, Ready | int, T]):
    """Passes on what a generator of psycopg waits for, and works while the server has not answered.

    No generator function: that would be at its end once the work is interrupted, and psycopg goes on with it to
    cancel the statement.
    """

    def __init__(self, gen: PQGen[T], connection: PooledConnection) -> None:
        self._gen = gen
        self._connection = connection

    def send(self, ready: Ready | int | None) -> Wait:
        # To start with, and to go on after an interrupt, `None` is sent.
        wanted = next(self._gen) if ready is None else self._gen.send(ready)
        if wanted == Wait.R:
            self._work()
        return wanted

    def throw(self, *error: Any) -> Wait:
        return self._gen.throw(*error)

    def _work(self) -> None:
        connection = self._connection
        try:
            while not _readable(connection.pgconn.socket):
                if connection.meanwhile is None or not connection.meanwhile():
                    return
        except BaseException:  # raised again; psycopg goes on waiting, to cancel, and that is to work no more
            connection.meanwhile = None
            raise


def _readable(socket_number: int) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket_number, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([socket_number], [], [], 0)[0])


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


def _forget_all() -> None:
    for connections in list(_all):
        connections._forget()


@atexit.register
def _close_all() -> None:
    for connections in list(_all):
        connections.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
