"""The session of whoever maintains a database, of whom there is one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import psycopg

from observatory_storage.config import StorageConfig
from observatory_storage.connect import connect
from observatory_storage.errors import translate_errors
from observatory_storage.lifecycle import sql as statements

_POLL_SECONDS: Final = 0.2


class Configured(Protocol):
    """What knows where the database is: a `StoragePool`."""

    @property
    def config(self) -> StorageConfig:
        """The configuration."""
        ...


@contextmanager
def maintenance_session(
    config: StorageConfig, *, lock_timeout_seconds: float, wait_seconds: float = 0.0
) -> Iterator[psycopg.Connection[Any] | None]:
    """Give a connection in autocommit while no other session maintains the database, else None.

    Waits up to `wait_seconds` for another maintainer to end. The connection is none of the pool's: its settings
    last as long as it does, and so does the lock, also when this process is killed.
    """
    deadline = time.monotonic() + wait_seconds
    with translate_errors(), connect(config, autocommit=True) as connection:
        # Polled: a session that waits for an advisory lock holds a snapshot, and CREATE INDEX CONCURRENTLY in
        # the session that has the lock waits for all snapshots.
        while not _try_lock(connection):
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(_POLL_SECONDS)
        try:
            connection.execute(statements.MAINTENANCE_SESSION)
            connection.execute(statements.SET_LOCK_TIMEOUT, {"milliseconds": round(lock_timeout_seconds * 1000)})
            yield connection
        finally:
            # The server notices a closed connection a little later, and who comes next would find the lock taken.
            with suppress(psycopg.Error):  # of a server that is gone
                connection.execute(statements.UNLOCK_MAINTENANCE)


def _try_lock(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(statements.TRY_MAINTENANCE_LOCK).fetchone()
    return row is not None and bool(row[0])
