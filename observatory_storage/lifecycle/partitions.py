"""Partitions by time: found, and made where a writer needs one or will need one soon.

The protocol, its measurements and what it replaces: `docs/decisions/partitions.md`; why logs have narrower
ones: `docs/decisions/log-partitions.md`.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy import Table

from observatory_storage.config import StorageConfig
from observatory_storage.errors import StorageError, UnavailableError, describe, translate_errors
from observatory_storage.lifecycle import sql as statements
from observatory_storage.lifecycle.widths import DEFAULT_WIDTHS, PartitionWidth, gap_suffix
from observatory_storage.models.message import MESSAGE_TABLES

_log = logging.getLogger(__name__)

_ONE_DAY: Final = dt.timedelta(days=1)
# Attempts to get the lock on DEFAULT before rows go there; each waits a quarter of a second, because readers
# and writers of DEFAULT queue behind whoever waits.
_ATTEMPTS: Final = 5
# More rows than this are moved out of DEFAULT by maintenance, not by a writer that wants to go on: moving
# them holds the lock on DEFAULT for about 10 µs a row.
_MOVE_LIMIT: Final = 20_000
# A partition that could not be made is left alone for this long, so that not every batch waits for it.
_PAUSE_SECONDS: Final = 60.0
# Attempts to drop or detach a partition, each with a quarter of a second for each lock: whoever reads or writes
# the table queues behind it that long. The pauses are longer, so that they get through in between.
_REMOVAL_ATTEMPTS: Final = 20
# The table exists; the lock was not granted; a deadlock was resolved at our cost.
_RETRIED: Final = ("42P07", "55P03", "40P01")


Condition: TypeAlias = Callable[[psycopg.Connection[Any]], bool]
_Range: TypeAlias = tuple[dt.datetime, dt.datetime]


class ConnectionSource(Protocol):
    """What lends connections: a `StoragePool`."""

    def raw_connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection; the borrower commits."""
        ...


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition; `lower` (inclusive) and `upper` (exclusive) are None where it has no such bound.

    The DEFAULT partition (`is_default`) takes what has no other place.
    """

    name: str
    is_default: bool
    lower: dt.datetime | None
    upper: dt.datetime | None

    def overlaps(self, lower: dt.datetime, upper: dt.datetime) -> bool:
        """Tell whether the partition holds any time of the half-open range."""
        if self.is_default:
            return False
        return (self.lower is None or self.lower < upper) and (self.upper is None or lower < self.upper)


@dataclass(frozen=True, slots=True)
class PartitionSize:
    """What a partition takes: bytes on disk with indexes and TOAST, and rows as PostgreSQL estimates them.

    `rows` is None where the partition was never analyzed or vacuumed.
    """

    partition: Partition
    total_bytes: int
    rows: int | None


class PartitionManager:
    """Finds, makes and removes the partitions of time-partitioned tables. Safe to share between threads.

    `widths` says by table name what range of times a new partition takes; a table that it leaves out has what
    the pool's configuration says, which is an hour for logs and else a day. It may change at any time; partitions
    that exist stay as they are, and a new one takes only what they leave free.
    `move_limit` is how many rows of DEFAULT a new partition takes along; where there are more, it is not made.
    """

    def __init__(
        self,
        pool: ConnectionSource,
        widths: Mapping[str, PartitionWidth] | None = None,
        *,
        move_limit: int = _MOVE_LIMIT,
    ) -> None:
        self._pool = pool
        self._move_limit = move_limit
        self._widths = {**DEFAULT_WIDTHS, **_configured(pool), **(widths or {})}
        self._known: dict[str, set[dt.datetime]] = {}
        self._given_up: dict[tuple[str, dt.datetime], float] = {}
        self._lock = threading.Lock()

    def width(self, table_name: str) -> PartitionWidth:
        """Return the width of a table's new partitions; messages go with the spans that refer to them."""
        name = "trace_spans" if table_name in MESSAGE_TABLES else table_name
        return self._widths.get(name, PartitionWidth.DAY)

    def list(self, table: Table) -> Sequence[Partition]:
        """Return the partitions of a table, ordered by name, DEFAULT included."""
        with translate_errors(), self._pool.raw_connection() as connection:
            connection.execute(statements.MAINTENANCE_SETTINGS)
            return _partitions(connection, table.name)

    def missing(self, table: Table, times: Iterable[dt.date]) -> Sequence[dt.datetime]:
        """Return the starts of the ranges of these times that have no place yet, latest first; changes nothing."""
        ranges = _ranges(self.width(table.name), times)
        existing = self.list(table)
        return [lower for lower, upper in ranges if _free(existing, lower, upper)]

    def ensure(self, table: Table, times: Iterable[dt.date], *, at_most: int | None = None) -> Sequence[dt.datetime]:
        """Make the partitions that these times need; return the starts of the ranges that have none, latest first.

        A range is as wide as `width` says; a date that is no datetime stands for all its ranges, in UTC. Where
        partitions of another width take a part of a range, the rest gets partitions that fill it.

        Works in transactions of its own, one a table, and commits. Makes the partitions of `at_most` ranges, the
        latest. A range that could not be had is no error, its rows land in DEFAULT: the lock on DEFAULT was not
        granted, DEFAULT holds many of its rows, or the role may make no tables. Raises UnavailableError where
        the server cannot be reached.
        """
        width = self.width(table.name)
        with self._lock:
            known = self._known.setdefault(table.name, set())
            absent = [(lower, upper) for lower, upper in _ranges(width, times) if lower not in known]
            now = time.monotonic()
            wanted = [pair for pair in absent if self._given_up.get((table.name, pair[0]), 0.0) <= now][:at_most]
            if wanted:
                left = self._ensure(table, width, wanted)
                known.update(lower for lower, _ in wanted if lower not in left)
                self._given_up.update(((table.name, lower), now + _PAUSE_SECONDS) for lower in left)
            return [lower for lower, _ in absent if lower not in known]

    def sizes(self, table: Table) -> Sequence[PartitionSize]:
        """Return what each partition of a table takes, ordered by name, DEFAULT included; reads no rows."""
        with translate_errors(), self._pool.raw_connection() as connection:
            connection.execute(statements.MAINTENANCE_SETTINGS)
            partitions = {partition.name: partition for partition in _partitions(connection, table.name)}
            rows = connection.execute(statements.PARTITION_SIZES, {"table": table.name}).fetchall()
        return [
            PartitionSize(partitions[name], total_bytes, rows_estimate)
            for name, total_bytes, rows_estimate in rows
            if name in partitions
        ]

    def drop(self, table: Table, name: str, *, only_if: Condition | None = None) -> bool:
        """Drop a partition with its rows, in a transaction of its own; tells whether it is gone.

        Waits for whoever reads or writes the table, a quarter of a second at a time, and lets others through
        in between; False where twenty attempts brought no lock. `only_if` is asked when nobody can read or write
        the table any more; what it refuses stays, and the answer is False. Raises ValueError for DEFAULT.
        """
        return self._remove(table, name, statements.DROP_PARTITION, only_if)

    def detach(self, table: Table, name: str) -> bool:
        """Make a table of its own of a partition, which keeps its rows and its name; waits as `drop` does.

        Not CONCURRENTLY, which PostgreSQL refuses where there is a DEFAULT partition.
        """
        return self._remove(table, name, statements.DETACH_PARTITION, None)

    def forget(self) -> None:
        """Drop what is remembered of existing partitions; the next `ensure` looks again."""
        with self._lock:
            self._known.clear()
            self._given_up.clear()

    def _remove(
        self,
        table: Table,
        name: str,
        statement: str,
        only_if: Condition | None,
    ) -> bool:
        for attempt in range(1, _REMOVAL_ATTEMPTS + 1):
            try:
                with translate_errors(), self._pool.raw_connection() as connection:
                    removed = _remove_locked(connection, table, name, statement, only_if)
                    connection.commit()
                self.forget()
                return removed
            except StorageError as error:
                if error.sqlstate not in _RETRIED:
                    raise
                _log.info("removing %s, attempt %d of %d: %s", name, attempt, _REMOVAL_ATTEMPTS, describe(error))
                time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - so that others get between the attempts
        return False

    def _ensure(self, table: Table, width: PartitionWidth, ranges: Sequence[_Range]) -> set[dt.datetime]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translate_errors(), self._pool.raw_connection() as connection:
                    left = _make_missing(connection, table, width, ranges, self._move_limit)
                    connection.commit()
                    return left
            except StorageError as error:
                if isinstance(error, UnavailableError) and error.sqlstate not in _RETRIED:
                    raise
                _log.info(
                    "making partitions of %s, attempt %d of %d: %s",
                    table.name,
                    attempt,
                    _ATTEMPTS,
                    describe(error),
                )
                if error.sqlstate not in _RETRIED:
                    break  # as where the role may make no tables
                time.sleep(random.uniform(0.05, 0.15))  # noqa: S311 - so that readers get between the attempts
        _log.warning(
            "could not make the partitions of %s for %s; their rows go to the DEFAULT partition",
            table.name,
            ", ".join(width.suffix(lower)[1:] for lower, _ in ranges),
        )
        return {lower for lower, _ in ranges}


def partition_name(table: str, width: PartitionWidth, lower: dt.datetime, upper: dt.datetime) -> str:
    """Return a partition's name, such as `trace_spans_p20261122` or `logs_p2026112213`."""
    whole = width.floor(lower) == lower and width.after(lower) == upper
    return f"{table}_{width.suffix(lower) if whole else gap_suffix(lower, upper)}"


def _ranges(width: PartitionWidth, times: Iterable[dt.date]) -> list[_Range]:
    """Return the ranges that times need, the latest first."""
    starts: set[dt.datetime] = set()
    for given in times:
        if isinstance(given, dt.datetime):
            starts.add(width.floor(given))
        else:
            midnight = dt.datetime(given.year, given.month, given.day, tzinfo=dt.UTC)
            starts.update(width.starts(midnight, midnight + _ONE_DAY - dt.timedelta.resolution))
    return [(start, width.after(start)) for start in sorted(starts, reverse=True)]


def _free(partitions: Iterable[Partition], lower: dt.datetime, upper: dt.datetime) -> list[_Range]:
    """Return what partitions leave of a range, ascending."""
    taken = [partition for partition in partitions if partition.overlaps(lower, upper)]
    free = []
    for partition in sorted(taken, key=lambda partition: partition.lower or lower):
        if partition.lower is not None and partition.lower > lower:
            free.append((lower, partition.lower))
        lower = upper if partition.upper is None else max(lower, partition.upper)
    return [*free, (lower, upper)] if lower < upper else free


def _configured(pool: ConnectionSource) -> dict[str, PartitionWidth]:
    config = getattr(pool, "config", None)
    if not isinstance(config, StorageConfig):
        return {}
    return {table: PartitionWidth(width) for table, width in config.partitions.items()}


def _remove_locked(
    connection: psycopg.Connection[Any],
    table: Table,
    name: str,
    statement: str,
    only_if: Condition | None,
) -> bool:
    """Take the locks in the order in which queries do, the parent first, and remove the partition."""
    names = {"table": sql.Identifier(table.name), "partition": sql.Identifier(name)}
    connection.execute(statements.MAINTENANCE_SETTINGS)
    connection.execute(statements.LOCK_TABLE_MAINTENANCE, {"table": table.name})
    partition = next((one for one in _partitions(connection, table.name) if one.name == name), None)
    if partition is None:
        return True
    if partition.is_default:
        raise ValueError(f"{name} is the DEFAULT partition, which takes what has no other place and stays")
    connection.execute(statements.SHORT_LOCK_TIMEOUT)
    connection.execute(sql.SQL(statements.LOCK_PARENT).format(**names))
    connection.execute(sql.SQL(statements.LOCK_PARTITION).format(**names))
    if only_if is not None and not only_if(connection):
        return False
    connection.execute(sql.SQL(statement).format(**names))
    return True


def _partitions(connection: psycopg.Connection[Any], table: str) -> list[Partition]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statements.LIST_PARTITIONS, {"table": table})
        return [Partition(row["name"], row["is_default"], row["lower"], row["upper"]) for row in cursor]


def _make_missing(
    connection: psycopg.Connection[Any],
    table: Table,
    width: PartitionWidth,
    ranges: Sequence[_Range],
    move_limit: int,
) -> set[dt.datetime]:
    """Make what is missing of the ranges; return the starts of those that DEFAULT holds too many rows of."""
    connection.execute(statements.MAINTENANCE_SETTINGS)
    if not any(_free(_partitions(connection, table.name), *wanted) for wanted in ranges):
        return set()
    connection.execute(statements.LOCK_TABLE_MAINTENANCE, {"table": table.name})
    # Look again: the one who held the lock before may have made them.
    partitions = _partitions(connection, table.name)
    default = next((partition.name for partition in partitions if partition.is_default), None)
    made: list[_NewPartition] = []
    left = set()
    for start, end in ranges:
        for lower, upper in _free(partitions, start, end):
            new = _NewPartition(table, default, partition_name(table.name, width, lower, upper), lower, upper)
            if new.is_crowded(connection, move_limit):
                left.add(start)
            else:
                new.create(connection)
                made.append(new)
    if made and default is not None:
        # Held until the commit, so taken when all the tables are there, and for no longer than it takes to attach them.
        connection.execute(statements.SHORT_LOCK_TIMEOUT)
        connection.execute(sql.SQL(statements.LOCK_DEFAULT).format(default=sql.Identifier(default)))
    for new in made:
        new.attach(connection)
    return left


class _NewPartition:
    """A partition in the making."""

    def __init__(self, table: Table, default: str | None, name: str, lower: dt.datetime, upper: dt.datetime) -> None:
        self._table = table.name
        self._default = default
        self._name = name
        self._bounds = {"lower": lower, "upper": upper}
        self._names: dict[str, sql.Composable] = {
            "table": sql.Identifier(table.name),
            "default": sql.Identifier(default or ""),
            "partition": sql.Identifier(name),
            "column": sql.Identifier(table.info["partition_column"]),
            "lower": sql.Literal(lower),
            "upper": sql.Literal(upper),
        }

    def is_crowded(self, connection: psycopg.Connection[Any], move_limit: int) -> bool:
        """Tell whether DEFAULT holds more of its rows than should move now."""
        if self._default is None:
            return False
        count = sql.SQL(statements.COUNT_IN_DEFAULT).format(**self._names)
        row = connection.execute(count, {**self._bounds, "limit": move_limit + 1}).fetchone()
        if row is None or row[0] <= move_limit:
            return False
        _log.warning(
            "the DEFAULT partition of %s holds more than %d rows of %s; they stay there until they are moved",
            self._table,
            move_limit,
            self._name,
        )
        return True

    def create(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(sql.SQL(statements.CREATE_LIKE).format(**self._names))

    def attach(self, connection: psycopg.Connection[Any]) -> None:
        """Attach it with its rows of DEFAULT, which is locked: some may have come in since they were counted."""
        if self._default is not None:
            connection.execute(sql.SQL(statements.MOVE_FROM_DEFAULT).format(**self._names), self._bounds)
        connection.execute(sql.SQL(statements.ATTACH).format(**self._names))
