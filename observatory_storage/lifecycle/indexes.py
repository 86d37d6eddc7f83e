"""Indexes built while others write, and once more after an interruption.

The connection is in autocommit: CREATE INDEX CONCURRENTLY runs in no transaction. One session at a time may
work on a table's indexes; callers hold a lock for that which is polled, never waited for.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from observatory_storage.errors import StorageError
from observatory_storage.lifecycle import sql as statements

_log = logging.getLogger(__name__)

# A concurrent build waits for every older transaction of the database and nobody waits behind it, so it may
# wait longer than a statement that others do wait behind.
_PATIENCE: Final = 10
# Rounds over the partitions, which others make and drop meanwhile.
_ROUNDS: Final = 5
_MOST_BYTES: Final = 63


def create_index(connection: psycopg.Connection[Any], table: str, name: str, definition: str) -> bool:
    """Build an index of a plain table by CREATE INDEX CONCURRENTLY; return whether there was something to do.

    `definition` is what follows the table's name: `USING gin (…)`. An invalid index of that name, as an
    interrupted build leaves it, is dropped first. A table that is gone needs no index: False.
    """
    valid = _scalar(connection, statements.INDEX_IS_VALID, index=name)
    if valid:
        return False
    if valid is not None:
        _log.info("dropping the index %s, whose build was interrupted", name)
        drop_index(connection, name)
    try:
        connection.execute(
            sql.SQL(statements.CREATE_INDEX).format(
                index=sql.Identifier(name), partition=sql.Identifier(table), definition=sql.SQL(definition)
            )
        )
    except psycopg.errors.UndefinedTable:
        if _scalar(connection, statements.TABLE_EXISTS, table=table):
            raise
        return False
    return True


def drop_index(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop an index of a plain table, where there is one, without making anybody wait."""
    connection.execute(sql.SQL(statements.DROP_INDEX).format(index=sql.Identifier(name)))


@contextmanager
def patience(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Let the session wait ten times as long for locks: of concurrent builds and drops, which stop nobody."""
    before = _scalar(connection, statements.LOCK_TIMEOUT)
    connection.execute(statements.SET_LOCK_TIMEOUT, {"milliseconds": before * _PATIENCE})
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(statements.SET_LOCK_TIMEOUT, {"milliseconds": before})


def create_partitioned_index(connection: psycopg.Connection[Any], table: str, name: str, definition: str) -> None:
    """Build an index on a partitioned table, partition by partition, while others write; what is there stays.

    First on the parent alone, so that new partitions have it from the start, then concurrently on each
    partition, attached to the parent's. The last one makes the parent's index valid. `name` begins with the
    table's name and so do the names on the partitions with theirs. Waits for locks as long as the session's
    `lock_timeout` says, ten times as long where nobody waits behind it.
    """
    connection.execute(
        sql.SQL(statements.CREATE_INDEX_ON_PARENT).format(
            index=sql.Identifier(name), table=sql.Identifier(table), definition=sql.SQL(definition)
        )
    )
    for _ in range(_ROUNDS):
        for partition in _partitions_without(connection, table, name):
            _create_part(connection, partition, name, index_name(partition, name.removeprefix(table)), definition)
        if _scalar(connection, statements.INDEX_IS_VALID, index=name):
            return
    raise StorageError(
        f"the index {name} is still not valid after {_ROUNDS} rounds over the partitions of {table}: "
        "end what makes partitions all the time and call again"
    )


def index_name(partition: str, suffix: str) -> str:
    """Return the name of a partition's index; one that PostgreSQL would cut ends with a hash instead."""
    name = f"{partition}{suffix}"
    if len(name.encode()) <= _MOST_BYTES:
        return name
    return f"{name.encode()[:46].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _create_part(connection: psycopg.Connection[Any], partition: str, parent: str, name: str, definition: str) -> None:
    with patience(connection):
        create_index(connection, partition, name, definition)
    try:
        connection.execute(
            sql.SQL(statements.ATTACH_INDEX).format(parent=sql.Identifier(parent), index=sql.Identifier(name))
        )
    except psycopg.errors.UndefinedTable:
        # The partition was dropped meanwhile, and its index with it.
        if _scalar(connection, statements.TABLE_EXISTS, table=partition):
            raise


def _partitions_without(connection: psycopg.Connection[Any], table: str, index: str) -> list[str]:
    rows = connection.execute(statements.PARTITIONS_AND_INDEX, {"table": table, "index": index}).fetchall()
    return [partition for partition, attached in rows if not attached]


def _scalar(connection: psycopg.Connection[Any], query: str, **parameters: str) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    return None if row is None else row[0]
