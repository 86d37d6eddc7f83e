"""Retention: what is older than its policy goes, whole partitions where every project agrees, else rows in batches.

The order of the steps, and why no summary lies meanwhile: `docs/decisions/retention.md`.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from sqlalchemy import Table

from observatory_storage.errors import StorageError, UnavailableError
from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.expiry import Borders, Progress, Removed, Remover, Terms, arrays, run
from observatory_storage.lifecycle.metric_parents import prune_parents
from observatory_storage.lifecycle.partitions import ConnectionSource, Partition, PartitionManager
from observatory_storage.lifecycle.trace_retention import TraceRetention
from observatory_storage.lifecycle.usage_retention import UsageRetention
from observatory_storage.models import LogRecord, MetricDataPoint
from observatory_storage.models.base import table_of
from observatory_storage.policies import RetentionPolicy

_log = logging.getLogger(__name__)

_CONTENTION: Final = ("55P03", "40P01")

BATCH_SIZE: Final = 1000
"""Traces, with their spans and events, or parts of usage that go in one transaction."""


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What retention did, by names of partitions and tables.

    In a dry run nothing goes, and what would stands in `partitions_left`, `rows_left` and `bytes_left`.
    """

    partitions_dropped: tuple[str, ...] = ()
    partitions_left: tuple[str, ...] = ()
    """What is due and was in use by others; the next run tries again."""
    rows_deleted: Mapping[str, int] = field(default_factory=dict)
    """Rows that went one by one, not with their partition; VACUUM makes their space usable again."""
    rows_left: Mapping[str, int] = field(default_factory=dict)
    bytes_freed: int = 0
    """What the dropped partitions took on disk, with indexes and TOAST."""
    bytes_left: int = 0
    problems: tuple[str, ...] = ()
    """One sentence for each signal of which not all could be removed; the next run goes on."""

    @property
    def is_complete(self) -> bool:
        """Tell whether all that was due is gone."""
        return not (self.partitions_left or self.rows_left or self.problems)


class Retention:
    """Applies policies; one process at a time, which holds the lock of maintenance."""

    def __init__(
        self,
        pool: ConnectionSource,
        manager: PartitionManager,
        policies: Iterable[RetentionPolicy],
        *,
        batch_size: int = BATCH_SIZE,
        on_progress: Progress | None = None,
    ) -> None:
        self._remover = Remover(pool, manager)
        self._manager = manager
        self._policies = tuple(policies)
        self._batch_size = batch_size
        self._on_progress = on_progress or (lambda what, done, total: None)

    def run(self, *, dry_run: bool = False, now: dt.datetime | None = None) -> RetentionReport:
        """Remove what is expired at `now`, by the server's clock unless told; without policies nothing is looked at.

        Raises UnavailableError where the server cannot be reached; all else that failed stands in the report.
        """
        removed = Removed()
        if not self._policies:
            return RetentionReport()
        moment = self._remover.clock() if now is None else now
        work = {"traces": self._traces, "metrics": self._metrics, "logs": self._logs, "usage": self._usage}
        for signal, apply in work.items():
            terms = Terms(self._policies, signal, moment)
            if not terms.cutoffs:
                continue
            try:
                apply(terms, removed, dry_run)
            except StorageError as error:
                if isinstance(error, UnavailableError) and error.sqlstate not in _CONTENTION:
                    raise
                problem = f"retention of {signal} did not come to its end: {error}"
                _log.info("%s", problem)
                removed.problems.append(problem)
        return _report(removed, dry_run=dry_run)

    def _traces(self, terms: Terms, removed: Removed, dry_run: bool) -> None:
        traces = TraceRetention(self._remover, self._manager, terms, self._batch_size, self._on_progress)
        if dry_run:
            traces.preview(removed)
        else:
            traces.run(removed)

    def _metrics(self, terms: Terms, removed: Removed, dry_run: bool) -> None:
        self._table(table_of(MetricDataPoint), terms, statements.PROJECTS_OF_POINTS, removed, dry_run)
        if not dry_run:
            removed.rows += prune_parents(self._remover, terms)

    def _logs(self, terms: Terms, removed: Removed, dry_run: bool) -> None:
        self._table(table_of(LogRecord), terms, statements.PROJECTS, removed, dry_run)

    def _usage(self, terms: Terms, removed: Removed, dry_run: bool) -> None:
        usage = UsageRetention(self._remover, terms, self._batch_size, self._on_progress)
        if dry_run:
            usage.preview(removed)
        else:
            usage.run(removed)

    def _table(
        self,
        table: Table,
        terms: Terms,
        projects_of: str,
        removed: Removed,
        dry_run: bool,
    ) -> None:
        """Apply the policies to a table whose rows hang on nothing."""
        borders = Borders(self._manager, table, terms, dt.timedelta())
        due: Sequence[Partition] = [*borders.due(), *filter(None, [borders.default])]
        for place, partition in enumerate(due):
            self._on_progress(f"retention of {table.name}", place, len(due))
            projects = self._remover.projects(partition.name, projects_of)
            if partition.is_default:
                given = {project: border for project in projects if (border := borders.of(project)) is not None}
            else:
                given = borders.agreeing(projects, partition)
                if borders.agree(projects, partition):
                    self._drop(borders, partition, projects_of, removed, dry_run)
                    continue
            if given and dry_run:
                query = statements.COUNT_EXPIRED
                parameters = arrays(given)
                rows = self._remover.fetch(query, parameters, relation=partition.name, column=borders.column)
                removed.rows[table.name] += rows[0][0]
            elif given and self._has_expired(partition, borders, given):
                removed.rows[table.name] += self._remover.in_blocks(
                    partition.name, statements.DELETE_EXPIRED, borders.column, given
                )
        if due:
            self._on_progress(f"retention of {table.name}", len(due), len(due))

    def _has_expired(self, partition: Partition, borders: Borders, given: Mapping[str, dt.datetime]) -> bool:
        found = self._remover.fetch(
            statements.HAS_EXPIRED, arrays(given), relation=partition.name, column=borders.column
        )
        return bool(found[0][0])

    def _drop(self, borders: Borders, partition: Partition, projects_of: str, removed: Removed, dry_run: bool) -> None:
        if dry_run:
            removed.partitions.append(partition.name)
            removed.bytes += self._remover.size(borders.table, [partition.name])
            return

        def all_agree(connection: psycopg.Connection[Any]) -> bool:
            connection.execute(statements.BY_INDEX)
            projects = [row[0] for row in run(connection, projects_of, relation=partition.name)]
            return borders.agree(projects, partition)

        if self._remover.drop(borders.table, partition, all_agree, removed):
            # A row of another project came in since; the next run deletes those that are expired.
            _log.info("%s got rows that are kept", partition.name)


def _report(removed: Removed, *, dry_run: bool) -> RetentionReport:
    rows = {table: number for table, number in sorted(removed.rows.items()) if number}
    problems = tuple(removed.problems)
    if dry_run:
        return RetentionReport(
            partitions_left=tuple(removed.partitions), rows_left=rows, bytes_left=removed.bytes, problems=problems
        )
    return RetentionReport(
        partitions_dropped=tuple(removed.partitions),
        partitions_left=tuple(removed.left),
        rows_deleted=rows,
        bytes_freed=removed.bytes,
        problems=problems,
    )
