"""Partitions by day: found, and made where a writer needs one.

The protocol, its measurements and what it replaces: `docs/decisions/partitions.md`.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy import Table

from observatory_storage.errors import StorageError, UnavailableError, describe, translate_errors
from observatory_storage.lifecycle import sql as statements

_log = logging.getLogger(__name__)

_ONE_DAY: Final = dt.timedelta(days=1)
# Attempts to get the lock on DEFAULT before rows go there; each waits a quarter of a second, because readers
# and writers of DEFAULT queue behind whoever waits.
_ATTEMPTS: Final = 5
# More rows than this are moved out of DEFAULT by maintenance, not by a writer that wants to go on: moving
# them holds the lock on DEFAULT for about 10 µs a row.
_MOVE_LIMIT: Final = 20_000
# A day that could not be made is left alone for this long, so that not every batch waits for it.
_PAUSE_SECONDS: Final = 60.0
# The table exists; the lock was not granted; a deadlock was resolved at our cost.
_RETRIED: Final = ("42P07", "55P03", "40P01")


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


class PartitionManager:
    """Finds and makes the partitions of time-partitioned tables. Safe to share between threads."""

    def __init__(self, pool: ConnectionSource) -> None:
        self._pool = pool
        self._known: dict[str, set[dt.date]] = {}
        self._given_up: dict[tuple[str, dt.date], float] = {}
        self._lock = threading.Lock()

    def list(self, table: Table) -> Sequence[Partition]:
        """Return the partitions of a table, ordered by name, DEFAULT included."""
        with translate_errors(), self._pool.raw_connection() as connection:
            connection.execute(statements.MAINTENANCE_SETTINGS)
            return _partitions(connection, table.name)

    def ensure(self, table: Table, days: Iterable[dt.date], *, at_most: int | None = None) -> Sequence[dt.date]:
        """Make the partitions of these UTC days that do not exist; return the days that have none now.

        Works in transactions of its own, one a table, and commits. Makes `at_most` new partitions, those of
        the latest days. A day that could not be had is no error, its rows land in DEFAULT: the lock on
        DEFAULT was not granted, DEFAULT holds many rows of that day, or the role may make no tables. Raises
        UnavailableError where the server cannot be reached.
        """
        with self._lock:
            known = self._known.setdefault(table.name, set())
            absent = sorted(set(days) - known, reverse=True)
            now = time.monotonic()
            wanted = [day for day in absent if self._given_up.get((table.name, day), 0.0) <= now][:at_most]
            if not wanted:
                return absent
            left = self._ensure(table, wanted)
            known.update(day for day in wanted if day not in left)
            self._given_up.update(((table.name, day), now + _PAUSE_SECONDS) for day in left)
            return [day for day in absent if day not in known]

    def forget(self) -> None:
        """Drop what is remembered of existing partitions; the next `ensure` looks again."""
        with self._lock:
            self._known.clear()
            self._given_up.clear()

    def _ensure(self, table: Table, days: Sequence[dt.date]) -> Sequence[dt.date]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translate_errors(), self._pool.raw_connection() as connection:
                    left = _make_missing(connection, table, days)
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
            ", ".join(day.isoformat() for day in days),
        )
        return days


def partition_name(table: str, day: dt.date) -> str:
    """Return the name of a day's partition, such as `trace_spans_p20261122`."""
    return f"{table}_p{day.year:04d}{day.month:02d}{day.day:02d}"


def _partitions(connection: psycopg.Connection[Any], table: str) -> list[Partition]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statements.LIST_PARTITIONS, {"table": table})
        return [Partition(row["name"], row["is_default"], row["lower"], row["upper"]) for row in cursor]


def _bounds(day: dt.date) -> tuple[dt.datetime, dt.datetime]:
    lower = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    return lower, lower + _ONE_DAY


def _missing(partitions: Iterable[Partition], days: Iterable[dt.date]) -> list[dt.date]:
    existing = list(partitions)
    return [day for day in days if not any(partition.overlaps(*_bounds(day)) for partition in existing)]


def _make_missing(connection: psycopg.Connection[Any], table: Table, days: Iterable[dt.date]) -> list[dt.date]:
    connection.execute(statements.MAINTENANCE_SETTINGS)
    if not _missing(_partitions(connection, table.name), days):
        return []
    connection.execute(statements.LOCK_TABLE_MAINTENANCE, {"table": table.name})
    # Look again: the one who held the lock before may have made them.
    partitions = _partitions(connection, table.name)
    default = next((partition.name for partition in partitions if partition.is_default), None)
    left = []
    for day in _missing(partitions, days):
        if not _make(connection, table, default, day):
            left.append(day)
    return left


def _make(connection: psycopg.Connection[Any], table: Table, default: str | None, day: dt.date) -> bool:
    lower, upper = _bounds(day)
    names: dict[str, sql.Composable] = {
        "table": sql.Identifier(table.name),
        "partition": sql.Identifier(partition_name(table.name, day)),
        "column": sql.Identifier(table.info["partition_column"]),
        "lower": sql.Literal(lower),
        "upper": sql.Literal(upper),
    }
    bounds = {"lower": lower, "upper": upper}
    in_default = 0
    if default is not None:
        names["default"] = sql.Identifier(default)
        count = sql.SQL(statements.COUNT_IN_DEFAULT).format(**names)
        row = connection.execute(count, {**bounds, "limit": _MOVE_LIMIT + 1}).fetchone()
        in_default = row[0] if row is not None else 0
        if in_default > _MOVE_LIMIT:
            _log.warning(
                "the DEFAULT partition of %s holds more than %d rows of %s; they stay there until they are moved",
                table.name,
                _MOVE_LIMIT,
                day,
            )
            return False
    connection.execute(sql.SQL(statements.CREATE_LIKE).format(**names))
    if default is not None:
        # Rows may have come in since they were counted; under the lock none can.
        connection.execute(statements.SHORT_LOCK_TIMEOUT)
        connection.execute(sql.SQL(statements.LOCK_DEFAULT).format(**names))
        connection.execute(sql.SQL(statements.MOVE_FROM_DEFAULT).format(**names), bounds)
    connection.execute(sql.SQL(statements.ATTACH).format(**names))
    return True
