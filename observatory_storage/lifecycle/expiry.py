"""Which rows are expired, and how a relation gets rid of them; what all signals share.

The rule: the cutoff of a project is brought down to the start of the partition that it lies in, and what is older
than that border goes. So whole partitions go at once, and nothing goes early.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import Table

from observatory_storage.caching import cache_of
from observatory_storage.errors import StorageError, describe, translate_errors
from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.partitions import ConnectionSource, Partition, PartitionManager
from observatory_storage.policies import FOREVER, RetentionPolicy

_log = logging.getLogger(__name__)

# Two megabytes of a table are visited in one transaction.
BLOCKS_AT_ONCE: Final = 256
# How long a rest is, in times of the transaction before it. Without one, writers reached 0.38 of their rate as long as
# spans were deleted (suite `retention`, 50,000 spans, two cores); so deletions take a third of the time at most.
_REST: Final = 2.0
_ATTEMPTS: Final = 10
_CONTENTION: Final = ("55P03", "40P01")
STATEMENT_TIMEOUT: Final = "57014"
_GONE: Final = "42P01"

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Removed:
    """What retention removed, or in a dry run would remove."""

    partitions: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Partitions that could not be had, for others used them."""
    rows: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


class Terms:
    """Up to which time each project's telemetry of one signal goes."""

    def __init__(self, policies: Iterable[RetentionPolicy], signal: str, now: dt.datetime) -> None:
        self._now = now
        self._keep = {policy.project: policy.keep for policy in policies if policy.signal == signal}

    @property
    def cutoffs(self) -> list[dt.datetime]:
        """The cutoffs of all policies."""
        return [self._now - keep for keep in self._keep.values() if keep != FOREVER]

    def cutoff(self, project: str) -> dt.datetime | None:
        """Return the time from which on a project's telemetry is kept; None where all of it is."""
        keep = self._keep.get(project, self._keep.get(None, FOREVER))
        return None if keep == FOREVER else self._now - keep


class Borders:
    """The borders of a table: what is older than that of its project goes, as a rule in whole partitions."""

    def __init__(self, manager: PartitionManager, table: Table, terms: Terms, settle: dt.timedelta) -> None:
        self.table = table
        self.column = str(table.info["partition_column"])
        self.partitions = [*manager.list(table)]
        self._width = manager.width(table.name)
        self._terms = terms
        self._settle = settle

    @property
    def default(self) -> Partition | None:
        """The DEFAULT partition."""
        return next((partition for partition in self.partitions if partition.is_default), None)

    def of(self, project: str) -> dt.datetime | None:
        """Return the border of a project, None where all is kept."""
        cutoff = self._terms.cutoff(project)
        return None if cutoff is None else self._border(cutoff)

    def due(self) -> list[Partition]:
        """Return the partitions that lie below the border of some policy, the oldest first."""
        horizon = max(map(self._border, self._terms.cutoffs), default=None)
        found = [p for p in self.partitions if horizon and p.upper is not None and p.upper <= horizon]
        return sorted(found, key=lambda partition: str(partition.upper))

    def agreeing(self, projects: Iterable[str], partition: Partition) -> dict[str, dt.datetime]:
        """Return the borders of those of the projects all of whose rows in a partition go."""
        borders = {project: self.of(project) for project in projects}
        return {
            project: border
            for project, border in borders.items()
            if border is not None and partition.upper is not None and border >= partition.upper
        }

    def agree(self, projects: Sequence[str], partition: Partition) -> bool:
        """Tell whether a partition may go with all its rows, of which some projects have some.

        An empty one may when it lies below the borders of all policies, so that no writer needs it again soon.
        """
        if projects:
            return len(self.agreeing(projects, partition)) == len(projects)
        border = min(map(self._border, self._terms.cutoffs), default=None)
        return border is not None and partition.upper is not None and partition.upper <= border

    def _border(self, cutoff: dt.datetime) -> dt.datetime:
        cutoff -= self._settle
        lower = self._width.floor(cutoff)
        for partition in self.partitions:
            if partition.overlaps(cutoff, cutoff + dt.timedelta.resolution):
                return partition.lower or dt.datetime.min.replace(tzinfo=dt.UTC)
            if partition.upper is not None and partition.upper <= cutoff:
                lower = max(lower, partition.upper)
        return lower


class Remover:
    """Runs statements in transactions of their own, each of them bounded and tried again where others hold locks."""

    def __init__(self, pool: ConnectionSource, manager: PartitionManager) -> None:
        self.pool = pool
        self.manager = manager

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection."""
        return self.pool.raw_connection()

    def forget_traces(self, ids: Iterable[uuid.UUID]) -> None:
        """Drop what the pool's cache has of traces that are deleted."""
        cache = cache_of(self.pool)
        if cache is not None:
            cache.forget_traces(trace_id.bytes for trace_id in ids)

    def fetch(self, query: str, parameters: Mapping[str, Any] | None = None, *, setup: str = "", **names: str) -> Any:
        """Read all rows of a query in a transaction of its own."""
        with translate_errors(), self.connection() as connection:
            connection.execute(statements.SETTINGS)
            if setup:
                connection.execute(setup.encode())
            return run(connection, query, parameters, **names).fetchall()

    def clock(self) -> dt.datetime:
        """Return the server's time: a host whose clock is wrong must not delete by it."""
        found: dt.datetime = self.fetch(statements.CLOCK)[0][0]
        return found

    def projects(self, relation: str, query: str = statements.PROJECTS) -> list[str]:
        """Return the projects that have rows in a relation."""
        setup = "" if query == statements.EVENT_PROJECTS else statements.BY_INDEX
        return [row[0] for row in self.fetch(query, setup=setup, relation=relation)]

    def attempt(self, work: Callable[[psycopg.Connection[Any]], Any]) -> Any:
        """Do something in a transaction and commit, again where another one was in its way; then rest.

        Where the result is 0, nothing was written and nobody is in need of rest.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translate_errors(), self.connection() as connection:
                    started = time.monotonic()
                    connection.execute(statements.SETTINGS)
                    result = work(connection)
                    connection.commit()
            except StorageError as error:
                if error.sqlstate not in _CONTENTION or attempt == _ATTEMPTS:
                    raise
                _log.info("retention, attempt %d of %d: %s", attempt, _ATTEMPTS, describe(error))
                time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - so that others get between the attempts
            else:
                if result != 0:
                    time.sleep(_REST * (time.monotonic() - started))
                return result
        raise AssertionError

    def in_blocks(self, relation: str, statement: str, column: str, borders: Mapping[str, dt.datetime]) -> int:
        """Run a deletion over a relation from its first block to its last, some blocks a transaction.

        A deletion that takes longer than the role's statement_timeout is tried with half as many blocks. A
        relation that is dropped meanwhile needs none.
        """
        blocks = self.fetch(statements.BLOCKS, {"relation": relation})[0][0] or 0
        first, step, deleted = 0, BLOCKS_AT_ONCE, 0
        while first < blocks:
            parameters = {**arrays(borders), "first": f"({first},0)", "last": f"({first + step},0)"}

            def work(connection: psycopg.Connection[Any], given: Mapping[str, Any] = parameters) -> int:
                return run(connection, statement, given, relation=relation, column=column).rowcount

            try:
                deleted += self.attempt(work)
            except StorageError as error:
                if error.sqlstate == _GONE:
                    break
                if error.sqlstate != STATEMENT_TIMEOUT or step == 1:
                    raise
                step //= 2
            else:
                first += step
        return deleted

    def drop(
        self, table: Table, partition: Partition, is_free: Callable[[psycopg.Connection[Any]], bool], removed: Removed
    ) -> bool:
        """Drop a partition that is free still when nobody can read or write it; tells whether it was not."""
        size = self.size(table, [partition.name])
        refused = False

        def only_if(connection: psycopg.Connection[Any]) -> bool:
            nonlocal refused
            refused = not is_free(connection)
            return not refused

        if self.manager.drop(table, partition.name, only_if=only_if):
            removed.partitions.append(partition.name)
            removed.bytes += size
        elif not refused:
            removed.left.append(partition.name)
        return refused

    def size(self, table: Table, names: Sequence[str]) -> int:
        """Return the bytes that partitions take, with indexes and TOAST."""
        return sum(size.total_bytes for size in self.manager.sizes(table) if size.partition.name in names)


def arrays(borders: Mapping[str, dt.datetime]) -> dict[str, Any]:
    """Return the parameters that say borders by project."""
    return {"projects": [*borders], "borders": [*borders.values()]}


def run(
    connection: psycopg.Connection[Any], query: str, parameters: Mapping[str, Any] | None = None, **names: str
) -> psycopg.Cursor[Any]:
    """Execute a statement with names formatted in as identifiers."""
    composed = sql.SQL(query).format(**{key: sql.Identifier(name) for key, name in names.items()})
    return connection.execute(composed, parameters)
