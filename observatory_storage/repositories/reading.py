"""How a repository reads: on whose session, for how long at most, and what leaves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row
from sqlalchemy import event
from sqlalchemy.orm import Session

from observatory_storage.caching import CACHE_OF_SESSION, Cache, Cached, cache_of
from observatory_storage.errors import ConfigurationError, ReadTimeoutError, StorageError, translate_errors

DEFAULT_STATEMENT_TIMEOUT_SECONDS: Final = 30.0
_QUERY_CANCELED: Final = "57014"

# Sets this transaction's timeout unless a stricter one stands, and returns what stood before.
SET_TIMEOUT: Final = """
WITH before AS MATERIALIZED (SELECT current_setting('statement_timeout') AS value)
SELECT before.value, set_config('statement_timeout',
    CASE WHEN before.value = '0' OR before.value::interval > make_interval(secs => %(seconds)s::float8)
         THEN %(milliseconds)s::text ELSE before.value END, true)
FROM before
"""
RESTORE_TIMEOUT: Final = "SELECT set_config('statement_timeout', %(value)s::text, true)"


T = TypeVar("T")


class SessionSource(Protocol):
    """What gives a session for a while, as `StoragePool` does: rolled back and closed at the end."""

    def session(self) -> AbstractContextManager[Session]:
        """Give a session that commits only when told."""


class Watch(Protocol):
    """What says when log records may have been committed."""

    def wait(self, seconds: float) -> bool:
        """Wait up to so long; tells whether to look. Raises nothing."""
        ...


def watch_of(pool: SessionSource, project: str | None) -> Watch | None:
    """Return what a pool knows of commits, where it has a Redis that is told of them."""
    make: Callable[[str | None], Watch | None] | None = getattr(pool, "watch_logs", None)
    return None if make is None else make(project)


class Reader:
    """Reads on a caller's session, inside its transaction, or on a short session of its own from a pool.

    Either way the objects that leave are detached: they show what the statement read, whatever the caller's
    session holds, and are for reading only. Pending changes of a caller's session are flushed first where
    it autoflushes. No read is ever committed.

    Each statement may run for `statement_timeout_seconds` (None: as long as the server allows); a stricter
    timeout of the caller's stays. On a caller's session what stood before is put back after each call. A
    session in autocommit has no transaction to limit, and reads as long as it likes.
    """

    def __init__(
        self,
        session_or_pool: Session | SessionSource,
        *,
        statement_timeout_seconds: float | None = DEFAULT_STATEMENT_TIMEOUT_SECONDS,
    ) -> None:
        timeout = statement_timeout_seconds
        if timeout is not None and not (math.isfinite(timeout) and 0.001 <= timeout <= 2_000_000):
            raise ConfigurationError(f"statement_timeout_seconds is {timeout}; it may be 0.001 to 2000000, or None")
        if not isinstance(session_or_pool, Session) and not hasattr(session_or_pool, "session"):
            given = type(session_or_pool).__name__
            raise ConfigurationError(
                f"{type(self).__name__} reads on a StoragePool or a SQLAlchemy Session, and was given a {given}"
            )
        self._source = session_or_pool
        self._timeout_seconds = timeout
        # A session sees its own transaction, which no cache knows.
        self._cache = None if isinstance(session_or_pool, Session) else cache_of(session_or_pool)

    def _cached(self, kind: Cached, key: bytes, load: Callable[[], T]) -> T:
        """Read through the pool's cache where it has one."""
        return load() if self._cache is None else self._cache.read(kind, key, load)

    def _forget_traces(self, trace_ids: Iterable[bytes]) -> None:
        """Drop what is cached of traces that were changed: now, or when the caller's session has committed."""
        if not isinstance(self._source, Session):
            if self._cache is not None:
                self._cache.forget_traces(trace_ids)
            return
        cache: Cache | None = self._source.info.get(CACHE_OF_SESSION)
        if cache is not None:
            forgotten = list(trace_ids)

            def forget(_: Session) -> None:
                cache.forget_traces(forgotten)

            event.listen(self._source, "after_commit", forget, once=True)

    @contextmanager
    def _batch(self) -> Iterator[Session]:
        """Give a session for a deletion: the caller's, who commits, or one that is committed at the end."""
        with translate_errors():
            if isinstance(self._source, Session):
                yield self._source
            else:
                with self._source.session() as session:
                    yield session
                    session.commit()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            with translate_errors():
                if isinstance(self._source, Session):
                    with self._beside(self._source) as session:
                        yield session
                else:
                    with self._source.session() as session:
                        self._limit(_driver(session))
                        yield session
                        # Before the rollback at the end, which would expire what was read.
                        session.expunge_all()
        except StorageError as error:
            if error.sqlstate != _QUERY_CANCELED:
                raise
            raise ReadTimeoutError(
                f"the server stopped a read, which may take {self._timeout_seconds} seconds at most: {error}",
                sqlstate=error.sqlstate,
            ) from error

    @contextmanager
    def _beside(self, caller: Session) -> Iterator[Session]:
        """Give a session that shares the caller's connection and transaction, but not its objects."""
        if caller.autoflush:
            caller.flush()
        driver = _driver(caller)
        before = self._limit(driver)
        try:
            with Session(
                caller.connection(), autoflush=False, expire_on_commit=False, join_transaction_mode="rollback_only"
            ) as session:
                yield session
        finally:
            # A failed transaction takes no statement, and its rollback puts the timeout back.
            if before is not None and driver.info.transaction_status == TransactionStatus.INTRANS:
                driver.execute(RESTORE_TIMEOUT, {"value": before})

    def _limit(self, driver: psycopg.Connection[object]) -> str | None:
        if self._timeout_seconds is None:
            return None
        given = {
            "seconds": self._timeout_seconds,
            "milliseconds": str(max(1, round(self._timeout_seconds * 1000))),
        }
        # In a pipeline BEGIN travels with it: a transaction that starts here costs no round trip more. On one
        # machine, where a round trip takes 0.05 ms, that is 0.05 ms slower than without a pipeline.
        cursor = driver.cursor(row_factory=scalar_row)
        with driver.pipeline():
            cursor.execute(SET_TIMEOUT, given)
        return str(cursor.fetchone())


def _driver(session: Session) -> psycopg.Connection[object]:
    driver = session.connection().connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise ConfigurationError(f"repositories need sessions on psycopg 3, not on {type(driver).__module__}")
    return driver
