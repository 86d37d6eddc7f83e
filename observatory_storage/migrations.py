"""Brings a database's schema up to date, from a checkout as from an installed wheel."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import Connection, NullPool, create_engine

from observatory_storage.config import StorageConfig
from observatory_storage.connect import connect
from observatory_storage.errors import SchemaVersionError, UnavailableError, translate_errors
from observatory_storage.models import Base

# Alembic is imported where it is used: it takes a sixth of the time of all imports, and most processes never migrate.
if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

# Not alembic's default: an application that shares the database may have a history of its own.
VERSION_TABLE: Final = "observatory_storage_version"

# Any 64-bit number that no other program takes in the same database.
_LOCK_KEY: Final = 0x6F62_7376_6D69_6772
_POLL_SECONDS: Final = 0.1
# Whoever waits for a table's lock makes every later reader and writer of it wait too; 3 s of that at a time.
_LOCK_TIMEOUT_SECONDS: Final = 3.0
_LOCK_ATTEMPTS: Final = 5
# The lock was not granted; a deadlock with a reader or a writer was resolved at our cost.
_CONTENTION: Final = ("55P03", "40P01")
_WAIT_SECONDS: Final = 300.0
# Alembic's `context` and `op` are global to the process.
_ALEMBIC = threading.Lock()


@dataclass(frozen=True)
class SchemaState:
    """A database's revision (None: never migrated) beside the one this release works with."""

    current: str | None
    head: str

    @property
    def is_unknown(self) -> bool:
        """Tell whether the revision is none of this release's: a newer one has migrated the database."""
        return self.current is not None and self.current not in _revisions()

    @property
    def is_current(self) -> bool:
        """Tell whether the database has exactly this release's schema."""
        return self.current == self.head


def upgrade(
    config: StorageConfig,
    revision: str = "head",
    *,
    lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS,
    lock_attempts: int = _LOCK_ATTEMPTS,
    wait_seconds: float = _WAIT_SECONDS,
) -> SchemaState:
    """Migrate the database to a revision and return its state; nothing happens where it is there already.

    Any number of processes may call it at once: one migrates, the others wait for it, `wait_seconds` at most.
    Each migration is a transaction of its own. One that cannot lock a table within `lock_timeout_seconds`
    gives way to whoever holds it and is tried again, `lock_attempts` times in all. Raises UnavailableError
    when either wait was in vain, and SchemaVersionError for a database that a newer release has migrated or
    a revision that does not exist.
    """
    for attempt in range(1, lock_attempts + 1):
        try:
            return _upgrade_once(config, revision, lock_timeout_seconds, wait_seconds)
        except UnavailableError as error:
            if error.sqlstate not in _CONTENTION:
                raise
            if attempt == lock_attempts:
                raise UnavailableError(
                    f"no migration: {lock_attempts} times no lock could be had within {lock_timeout_seconds:g} s"
                    f"{_oldest_transaction(config)}; end long transactions and call again",
                    sqlstate=error.sqlstate,
                ) from error
            logger.warning("the migration waits for a lock, attempt %d of %d", attempt, lock_attempts)
            time.sleep(min(0.1 * 2**attempt, lock_timeout_seconds))
    raise ValueError("lock_attempts must be at least 1")


def _upgrade_once(
    config: StorageConfig, revision: str, lock_timeout_seconds: float, wait_seconds: float
) -> SchemaState:
    with translate_errors(), connect(config, autocommit=True) as connection:
        _limit_waits(connection, lock_timeout_seconds)
        state = schema_state(connection)
        if state.current is None:
            _refuse_foreign_tables(connection)
    if revision == "head" and state.is_current:
        return state
    with migration_connection(config, lock_timeout_seconds, wait_seconds) as migrating:
        _run(migrating, revision)
        return schema_state(_driver_connection(migrating))


def _refuse_foreign_tables(connection: psycopg.Connection[TupleRow]) -> None:
    """Refuse a database that has tables with our names and was never migrated by us."""
    rows = connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(quote_ident(name)) IS NOT NULL ORDER BY 1",
        [sorted(Base.metadata.tables)],
    ).fetchall()
    # Another process may have migrated since the state was read; its tables came with their revision.
    if rows and schema_state(connection).current is None:
        names = ", ".join(row[0] for row in rows)
        raise SchemaVersionError(
            f"the database already has tables of another program that are named as ours ({names}): "
            "name another database, or a search_path with a schema of its own"
        )


def schema_state(connection: psycopg.Connection[TupleRow]) -> SchemaState:
    """Read the database's revision. Runs one or two statements in the connection's transaction."""
    current: str | None = None
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [VERSION_TABLE]).fetchone()
    if row is not None and row[0]:
        versions = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
        current = versions[0] if versions is not None else None
    return SchemaState(current=current, head=head_revision())


@functools.cache
def _revisions() -> frozenset[str]:
    from alembic.script import ScriptDirectory

    return frozenset(script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions())


@functools.cache
def head_revision() -> str:
    """Return the revision this release works with."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if head is None:
        raise SchemaVersionError("this installation holds no migrations")
    return head


@contextmanager
def migration_connection(
    config: StorageConfig,
    lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS,
    wait_seconds: float = _WAIT_SECONDS,
) -> Iterator[Connection]:
    """Give a connection for DDL, while no other process of this package migrates the same database."""
    with translate_errors(), _one_migration_at_a_time(config, wait_seconds):
        engine = create_engine("postgresql+psycopg://", creator=lambda: connect(config), poolclass=NullPool)
        with engine.connect() as connection:
            driver = _driver_connection(connection)
            _limit_waits(driver, lock_timeout_seconds)
            driver.commit()
            try:
                yield connection
            except BaseException:  # an interrupt, too, while others wait for the lock
                connection.rollback()
                raise


@contextmanager
def _one_migration_at_a_time(config: StorageConfig, wait_seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + wait_seconds
    if not _ALEMBIC.acquire(timeout=wait_seconds):
        raise UnavailableError(f"another thread of this process still migrates after {wait_seconds:g} s")
    try:
        # On a connection of its own, in autocommit, and polled: a session that waits for an advisory lock
        # holds a snapshot, CREATE INDEX CONCURRENTLY in the one that has it waits for all snapshots.
        with connect(config, autocommit=True) as connection:
            while not _try_lock(connection):
                if time.monotonic() >= deadline:
                    raise UnavailableError(
                        f"another process still migrates the database after {wait_seconds:g} s; "
                        f"call again when it is done ({_lock_holder(connection)})"
                    )
                time.sleep(_POLL_SECONDS)
            # Closing the connection releases the lock, also when this process is killed.
            yield
    finally:
        _ALEMBIC.release()


def _limit_waits(connection: psycopg.Connection[TupleRow], lock_timeout_seconds: float) -> None:
    connection.execute(f"SET lock_timeout = {round(lock_timeout_seconds * 1000)}")
    # A limit that suits the application's queries does not suit the building of an index.
    connection.execute("SET statement_timeout = 0")


def _oldest_transaction(config: StorageConfig) -> str:
    with translate_errors(), connect(config, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pid, application_name, state, extract(epoch FROM now() - xact_start)::int"
            " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
        ).fetchone()
    if row is None:
        return ""
    return f", where server process {row[0]} (application {row[1]!r}, {row[2]}) has a transaction {row[3]} s old"


def _try_lock(connection: psycopg.Connection[TupleRow]) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY]).fetchone()
    return row is not None and bool(row[0])


def _lock_holder(connection: psycopg.Connection[TupleRow]) -> str:
    row = connection.execute(
        "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
        [_LOCK_KEY],
    ).fetchone()
    return f"server process {row[0]}, application {row[1]!r}" if row is not None else "it has just ended"


def _run(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    config = _alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise SchemaVersionError(
            f"the database cannot be migrated to revision {revision!r}: {error}; "
            "if a newer release has migrated it, use that release"
        ) from error


def _alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _script_location() -> Path:
    package = Path(__file__).parent
    for candidate in (package / "_alembic", package.parent / "alembic"):
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaVersionError(f"the migrations are missing: neither in {package / '_alembic'} nor beside the package")


def _driver_connection(connection: Connection) -> psycopg.Connection[TupleRow]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
