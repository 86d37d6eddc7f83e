"""What a store needs done from time to time, by one process at a time."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from sqlalchemy import Table

from observatory_storage.lifecycle import sql as statements
from observatory_storage.lifecycle.partitions import ConnectionSource, PartitionManager
from observatory_storage.lifecycle.retention import Retention, RetentionReport
from observatory_storage.lifecycle.session import Configured, maintenance_session
from observatory_storage.lifecycle.text_index import TextIndexer
from observatory_storage.lifecycle.usage_upkeep import UsageReport, UsageUpkeep
from observatory_storage.lifecycle.widths import PartitionWidth
from observatory_storage.models import Base
from observatory_storage.models.message import MESSAGE_TABLES
from observatory_storage.policies import FOREVER, TABLES, RetentionPolicy

AHEAD: Final = dt.timedelta(days=7)
"""For how long there are partitions before their time comes."""

# How old a row in DEFAULT may be to get a partition, as old as writers make partitions for.
_PLACED: Final = dt.timedelta(days=90)
# Rows that move out of DEFAULT at a time. It is locked for about 10 µs a row, so for two seconds, which is as long
# as a writer or a reader may have to wait once; those that a writer finds in its way are fewer.
_MOVE_LIMIT: Final = 200_000
# Partitions made in one transaction, which locks DEFAULT for a few milliseconds each.
_AT_ONCE: Final = 8

Progress = Callable[[str, int, int], None]
"""Is called with what is being done, the number of its steps that are done, and how many there are."""


class Pool(Configured, ConnectionSource, Protocol):
    """A `StoragePool`."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What one run of maintenance did, by names of partitions.

    `is_busy` says that another session maintains the database, so that nothing was done or looked at. In a dry
    run nothing is made or built, and what would be stands in `partitions_left` and `text_indexes_left`.
    """

    is_busy: bool = False
    is_dry_run: bool = False
    partitions_made: tuple[str, ...] = ()
    partitions_left: tuple[str, ...] = ()
    """What could not be made: `problems`, and the warnings of the log, say why."""
    usage: UsageReport = field(default_factory=UsageReport)
    retention: RetentionReport = field(default_factory=RetentionReport)
    text_indexes_built: tuple[str, ...] = ()
    text_indexes_left: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """One sentence for each thing that could not be done; the next run tries again."""

    @property
    def is_complete(self) -> bool:
        """Tell whether all that was due has been done."""
        left = self.partitions_left or self.text_indexes_left or self.problems
        return self.usage.is_complete and self.retention.is_complete and not (self.is_busy or left)


def maintain(
    pool: Pool,
    *,
    ahead: dt.timedelta = AHEAD,
    widths: Mapping[str, PartitionWidth] | None = None,
    retention: Iterable[RetentionPolicy] | None = None,
    wait_seconds: float = 0.0,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> MaintenanceReport:
    """Do what is due; see `StoragePool.maintain`."""
    manager = PartitionManager(pool, widths, move_limit=_MOVE_LIMIT)
    policies = tuple(pool.config.retention if retention is None else retention)
    report = on_progress or _say_nothing
    work = _Work(
        manager,
        TextIndexer(pool),
        UsageUpkeep(pool, manager, on_progress=report),
        Retention(pool, manager, policies, on_progress=report),
        policies,
        ahead,
        report,
    )
    session = maintenance_session(
        pool.config, lock_timeout_seconds=work.indexer.lock_timeout_seconds, wait_seconds=wait_seconds
    )
    with session as connection:
        if connection is None:
            return MaintenanceReport(is_busy=True, is_dry_run=dry_run)
        return work.preview(connection) if dry_run else work.run(connection)


def _say_nothing(what: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class _Due:
    """The partitions that a table needs, by their starts; of the `crowded` DEFAULT holds too many rows."""

    table: Table
    batches: Sequence[Sequence[dt.datetime]]
    crowded: Sequence[dt.datetime]

    @property
    def starts(self) -> list[dt.datetime]:
        return [start for batch in self.batches for start in batch]


@dataclass(frozen=True, slots=True)
class _Work:
    manager: PartitionManager
    indexer: TextIndexer
    usage: UsageUpkeep
    retention: Retention
    policies: Sequence[RetentionPolicy]
    ahead: dt.timedelta
    on_progress: Progress

    def preview(self, connection: psycopg.Connection[Any]) -> MaintenanceReport:
        due = self._due(connection)
        retention = self.retention.run(dry_run=True)
        return MaintenanceReport(
            is_dry_run=True,
            usage=self.usage.preview(),
            retention=retention,
            partitions_left=tuple(name for one in due for name in self._names(one.table, [*one.starts, *one.crowded])),
            text_indexes_left=tuple(self.indexer.pending(connection)),
            problems=(*self._crowded(due), *retention.problems),
        )

    def run(self, connection: psycopg.Connection[Any]) -> MaintenanceReport:
        due = self._due(connection)
        made, left, problems = self._make_partitions(due)
        # Before retention, which takes spans whose usage may not be in the rollups yet, and then what this adds to
        # hours that are expired.
        usage = self.usage.run()
        problems += usage.problems
        retention = self.retention.run()
        problems += retention.problems
        if retention.partitions_left:
            names = ", ".join(retention.partitions_left)
            problems.append(f"expired partitions could not be dropped, for others use their tables: {names}")
        indexes = self.indexer.build_on(
            connection, on_progress=lambda done, total: self.on_progress("text indexes", done, total)
        )
        return MaintenanceReport(
            partitions_made=tuple(made),
            partitions_left=tuple(left),
            usage=usage,
            retention=retention,
            text_indexes_built=indexes.built,
            text_indexes_left=indexes.left,
            problems=tuple(filter(None, [*self._crowded(due), *problems, indexes.problem])),
        )

    def _due(self, connection: psycopg.Connection[Any]) -> list[_Due]:
        """Find the partitions that will be needed, and those that rows in DEFAULT could move to."""
        now = dt.datetime.now(dt.UTC)
        due = []
        for table in _partitioned_tables():
            width = self.manager.width(table.name)
            coming = self.manager.missing(table, width.starts(now, now + self.ahead))[::-1]
            homeless = self._rows_in_default(connection, table, now)
            free = [start for start in coming if start not in homeless]
            batches: list[Sequence[dt.datetime]]
            batches = [free[place : place + _AT_ONCE] for place in range(0, len(free), _AT_ONCE)]
            # One at a time where rows move along, because DEFAULT is locked while they do.
            batches += [[start] for start in sorted(homeless) if homeless[start] <= _MOVE_LIMIT]
            due.append(_Due(table, batches, [start for start in sorted(homeless) if homeless[start] > _MOVE_LIMIT]))
        return due

    def _rows_in_default(
        self, connection: psycopg.Connection[Any], table: Table, now: dt.datetime
    ) -> Counter[dt.datetime]:
        """Count the rows in DEFAULT that could have a place, by the starts of their partitions."""
        rows: Counter[dt.datetime] = Counter()
        default = next((partition.name for partition in self.manager.list(table) if partition.is_default), None)
        if default is not None:
            query = sql.SQL(statements.ROWS_IN_DEFAULT).format(
                default=sql.Identifier(default), column=sql.Identifier(table.info["partition_column"])
            )
            width = self.manager.width(table.name)
            # What every policy lets go needs no place any more.
            oldest = now - min(_PLACED, self._longest_kept(table))
            bounds = {"lower": oldest, "upper": now + self.ahead}
            for hour, count in connection.execute(query, bounds).fetchall():
                rows[width.floor(hour)] += count
        return rows

    def _longest_kept(self, table: Table) -> dt.timedelta:
        name = "trace_spans" if table.name in MESSAGE_TABLES else table.name
        keep = {policy.project: policy.keep for policy in self.policies if name in TABLES.get(policy.signal, ())}
        return max(keep.values()) if None in keep else FOREVER

    def _make_partitions(self, due: Sequence[_Due]) -> tuple[list[str], list[str], list[str]]:
        made: list[str] = []
        left: list[str] = []
        problems: list[str] = []
        total = sum(len(one.starts) for one in due)
        done = 0
        for one in due:
            before = {partition.name for partition in self.manager.list(one.table)} if one.batches else set()
            missed: list[dt.datetime] = []
            for place, batch in enumerate(one.batches):
                self.on_progress("partitions", done, total)
                missed_now = self.manager.ensure(one.table, batch)
                missed += missed_now
                if len(missed_now) == len(batch):
                    # No lock, or no right to make tables: the others would wait as long in vain.
                    missed += [start for later in one.batches[place + 1 :] for start in later]
                    break
                done += len(batch)
            if one.batches:
                made += [partition.name for partition in self.manager.list(one.table) if partition.name not in before]
            if missed:
                problems.append(_could_not_be_made(one.table, self._names(one.table, missed)))
            left += self._names(one.table, [*missed, *one.crowded])
        if total:
            self.on_progress("partitions", total, total)
        return made, left, problems

    def _names(self, table: Table, starts: Sequence[dt.datetime]) -> list[str]:
        width = self.manager.width(table.name)
        return [f"{table.name}_{width.suffix(start)}" for start in sorted(starts)]

    def _crowded(self, due: Sequence[_Due]) -> list[str]:
        return [
            f"DEFAULT holds more than {_MOVE_LIMIT:,} rows of {name}, too many to move while others wait: "
            "move them at a quiet hour with PartitionManager(pool, move_limit=...).ensure"
            for one in due
            for name in self._names(one.table, one.crowded)
        ]


def _partitioned_tables() -> list[Table]:
    return [table for table in Base.metadata.tables.values() if "partition_column" in table.info]


def _could_not_be_made(table: Table, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"1 partition of {table.name} could not be made: {names[0]}"
    return f"{len(names)} partitions of {table.name} could not be made: {names[0]} to {names[-1]}"
