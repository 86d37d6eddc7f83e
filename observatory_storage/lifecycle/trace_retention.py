"""Retention of traces: each goes as a whole, with its spans and events.

First the rows of expired traces go, in batches, each with those of its spans and events that do not lie in a
partition that is about to be dropped; then those partitions. So a summary is there only as long as all of its
spans are. Spans whose trace is gone are shown by no reader of traces.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg

from observatory_storage.errors import StorageError
from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.expiry import Borders, Progress, Removed, Remover, Terms, arrays, run
from observatory_storage.lifecycle.message_retention import MessageRetention
from observatory_storage.lifecycle.partitions import Partition, PartitionManager
from observatory_storage.models import TraceEvent, TraceSpan
from observatory_storage.models.base import table_of

_log = logging.getLogger(__name__)

SETTLE: Final = dt.timedelta(hours=1)
"""How long after its last moment has expired a partition is dropped: most traces that cross its end have ended."""

_STATEMENT_TIMEOUT: Final = "57014"
_ROUNDS: Final = 2


class _Range(NamedTuple):
    lower: dt.datetime | None
    upper: dt.datetime | None


class _Found(NamedTuple):
    id: uuid.UUID
    start_time: dt.datetime | None
    end_time: dt.datetime | None


class TraceRetention:
    """Removes the expired traces of all projects."""

    def __init__(
        self, remover: Remover, manager: PartitionManager, terms: Terms, batch_size: int, on_progress: Progress
    ) -> None:
        self._remover = remover
        self._manager = manager
        self._terms = terms
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._spans = Borders(manager, table_of(TraceSpan), terms, SETTLE)
        self._events = Borders(manager, table_of(TraceEvent), terms, SETTLE)
        self._messages = MessageRetention(remover, manager, terms, SETTLE)

    def preview(self, removed: Removed) -> None:
        """Find what would go."""
        for project in self._remover.projects("traces"):
            given = self._trace_terms(project)
            if given is not None:
                removed.rows["traces"] += self._remover.fetch(statements.COUNT_TRACES, given)[0][0]
        ranges = []
        for partition in self._planned():
            projects = self._remover.projects(partition.name)
            cutoffs = [self._terms.cutoff(project) for project in projects]
            if not self._has_traces(partition, projects, cutoffs):
                removed.partitions.append(partition.name)
                ranges.append(_Range(partition.lower, partition.upper))
        dropped = [*removed.partitions]
        removed.bytes += self._remover.size(self._spans.table, dropped)
        self._count(self._spans, dropped, removed)
        events = [partition.name for partition in self._events.due() if self._would_go(partition, ranges)]
        removed.partitions += events
        removed.bytes += self._remover.size(self._events.table, events)
        self._count(self._events, events, removed)
        self._messages.preview(removed, lambda partition: _covered(partition, ranges) or not self._has_spans(partition))

    def _would_go(self, partition: Partition, ranges: Sequence[_Range]) -> bool:
        if not _covered(partition, ranges) and self._has_spans(partition):
            return False
        return self._events.agree(self._remover.projects(partition.name, statements.EVENT_PROJECTS), partition)

    def run(self, removed: Removed) -> None:
        """Delete traces, drop the partitions that they leave empty, and delete what they leave elsewhere."""
        for round_number in range(1, _ROUNDS + 1):
            planned = self._planned()
            self._delete_traces(planned, removed)
            blocked = self._drop_spans(planned, removed)
            # What is in the way may be traces that a writer held, or that came in since: those go in a second round.
            if not blocked or round_number == _ROUNDS:
                break
        self._sweep(removed)
        self._drop_events(removed)
        self._on_progress("messages", 0, 1)
        self._messages.run(removed)
        self._on_progress("messages", 1, 1)

    def _planned(self) -> list[Partition]:
        """Return the partitions of spans in which every project's policy lets all spans go."""
        self._spans = Borders(self._manager, self._spans.table, self._terms, SETTLE)
        planned = []
        for partition in self._spans.due():
            projects = self._remover.projects(partition.name)
            if self._spans.agree(projects, partition):
                planned.append(partition)
        return planned

    def _trace_terms(self, project: str) -> dict[str, Any] | None:
        cutoff, border = self._terms.cutoff(project), self._spans.of(project)
        return None if cutoff is None else {"project": project, "cutoff": cutoff, "border": border}

    def _delete_traces(self, planned: Sequence[Partition], removed: Removed) -> None:
        spared = _merged([_Range(partition.lower, partition.upper) for partition in planned])
        projects = self._remover.projects("traces")
        for place, project in enumerate(projects):
            self._on_progress("retention of traces", place, len(projects))
            given = self._trace_terms(project)
            if given is not None:
                for query in (statements.DATED_TRACES, statements.UNDATED_TRACES):
                    self._delete_of_project(query, given, spared, removed)
        if projects:
            self._on_progress("retention of traces", len(projects), len(projects))

    def _delete_of_project(self, query: str, given: dict[str, Any], spared: Sequence[_Range], removed: Removed) -> None:
        after: _Found | None = _Found(uuid.UUID(int=0), None, None)
        size = self._batch_size
        is_first = True
        while after is not None:
            parameters = {
                **given,
                "after_time": None if is_first else after.start_time,
                "after_id": None if is_first else after.id,
                "limit": size,
            }

            def work(connection: psycopg.Connection[Any], parameters: dict[str, Any] = parameters) -> list[_Found]:
                return self._delete_batch(connection, query, parameters, spared, removed)

            try:
                found = self._remover.attempt(work)
            except StorageError as error:
                if error.sqlstate != _STATEMENT_TIMEOUT or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            is_first = False
            after = found[-1] if len(found) == size else None

    def _delete_batch(
        self,
        connection: psycopg.Connection[Any],
        query: str,
        parameters: dict[str, Any],
        spared: Sequence[_Range],
        removed: Removed,
    ) -> list[_Found]:
        found = [_Found(*row) for row in connection.execute(query.encode(), parameters)]
        if not found:
            return found
        ids = [trace.id for trace in found]
        starts = [trace.start_time for trace in found if trace.start_time is not None]
        ends = [trace.end_time or trace.start_time for trace in found if trace.start_time is not None]
        lower = min(starts) if len(starts) == len(found) else None
        # An end is inclusive.
        upper = max(filter(None, ends)) + dt.timedelta.resolution if len(starts) == len(found) else None
        gone = {"traces": connection.execute(statements.DELETE_TRACES, {"ids": ids}).rowcount}
        for borders in (self._events, self._spans):
            for part in _without(_Range(lower, upper), spared):
                given = {"ids": ids, "lower": part.lower, "upper": part.upper}
                name = borders.table.name
                done = run(connection, statements.DELETE_OF_TRACES, given, table=name, column=borders.column)
                gone[name] = gone.get(name, 0) + done.rowcount
        try:
            connection.commit()
        finally:
            # Also where it failed: nobody knows what became of it.
            self._remover.forget_traces(ids)
        removed.rows.update(gone)
        return found

    def _drop_spans(self, planned: Sequence[Partition], removed: Removed) -> bool:
        """Drop the planned partitions; tells whether traces in one of them are in the way."""
        blocked = False
        for place, partition in enumerate(planned):
            self._on_progress("partitions of spans to drop", place, len(planned))
            if not self._is_free(partition):
                blocked = True
                continue

            def is_free(connection: psycopg.Connection[Any], partition: Partition = partition) -> bool:
                return self._is_free_on(connection, partition)

            blocked |= self._remover.drop(self._spans.table, partition, is_free, removed)
        if planned:
            self._on_progress("partitions of spans to drop", len(planned), len(planned))
        return blocked

    def _is_free(self, partition: Partition) -> bool:
        with self._remover.connection() as connection:
            connection.execute(statements.SETTINGS)
            return self._is_free_on(connection, partition)

    def _is_free_on(self, connection: psycopg.Connection[Any], partition: Partition) -> bool:
        """Tell whether a partition of spans has none of a trace that is there or of a project that keeps them."""
        connection.execute(statements.BY_INDEX)
        projects = [row[0] for row in run(connection, statements.PROJECTS, relation=partition.name)]
        agree = self._spans.agree(projects, partition)
        return agree and not self._has_traces_on(connection, partition, projects, None)

    def _drop_events(self, removed: Removed) -> None:
        self._events = Borders(self._manager, self._events.table, self._terms, SETTLE)
        due = self._events.due()
        for place, partition in enumerate(due):
            self._on_progress("partitions of events to drop", place, len(due))
            if self._is_needed(partition):
                if not self._has_spans(partition):
                    self._sweep_events(
                        partition, self._remover.projects(partition.name, statements.EVENT_PROJECTS), removed
                    )
                continue

            def is_free(connection: psycopg.Connection[Any], partition: Partition = partition) -> bool:
                return not self._is_needed_on(connection, partition)

            self._remover.drop(self._events.table, partition, is_free, removed)
        if due:
            self._on_progress("partitions of events to drop", len(due), len(due))

    def _is_needed(self, partition: Partition) -> bool:
        with self._remover.connection() as connection:
            connection.execute(statements.SETTINGS)
            return self._is_needed_on(connection, partition)

    def _has_spans(self, partition: Partition) -> bool:
        bounds = {"lower": partition.lower or dt.datetime.min.replace(tzinfo=dt.UTC), "upper": partition.upper}
        return bool(self._remover.fetch(statements.HAS_SPANS, bounds)[0][0])

    def _is_needed_on(self, connection: psycopg.Connection[Any], partition: Partition) -> bool:
        """Tell whether a partition of events has a span within its times, or events of a project that keeps them."""
        bounds = {"lower": partition.lower or dt.datetime.min.replace(tzinfo=dt.UTC), "upper": partition.upper}
        if _scalar(connection.execute(statements.HAS_SPANS, bounds)):
            return True
        projects = [row[0] for row in run(connection, statements.EVENT_PROJECTS, relation=partition.name)]
        return not self._events.agree(projects, partition)

    def _sweep(self, removed: Removed) -> None:
        """Delete what has lost its trace in partitions that stay, where a run was interrupted or a trace is kept.

        Events first, so that after an interruption the spans still say that there is something to do.
        """
        self._spans = Borders(self._manager, self._spans.table, self._terms, SETTLE)
        self._events = Borders(self._manager, self._events.table, self._terms, SETTLE)
        due = self._spans.due()
        for place, partition in enumerate(due):
            self._on_progress("spans without a trace", place, len(due))
            given = self._spans.agreeing(self._remover.projects(partition.name), partition)
            if not given or partition.name in removed.left:
                continue
            for events in self._events.due():
                if partition.lower is None or partition.upper is None or _meets(events, partition):
                    self._sweep_events(events, list(given), removed)
            removed.rows[self._spans.table.name] += self._remover.in_blocks(
                partition.name, statements.DELETE_ORPHANED, self._spans.column, given
            )
        if due:
            self._on_progress("spans without a trace", len(due), len(due))

    def _sweep_events(self, partition: Partition, projects: Sequence[str], removed: Removed) -> None:
        given = self._events.agreeing(projects, partition)
        if given:
            removed.rows[self._events.table.name] += self._remover.in_blocks(
                partition.name, statements.DELETE_ORPHANED, self._events.column, given
            )

    def _count(self, borders: Borders, dropped: Sequence[str], removed: Removed) -> None:
        for partition in borders.partitions:
            is_due = partition.is_default or partition in borders.due()
            if partition.name in dropped or not is_due:
                continue
            query = statements.PROJECTS if borders.table is self._spans.table else statements.EVENT_PROJECTS
            given = {}
            for project in self._remover.projects(partition.name, query):
                border = borders.of(project)
                if border is not None:
                    given[project] = border
            if given:
                cutoffs = [self._terms.cutoff(project) for project in given]
                rows = self._remover.fetch(
                    statements.COUNT_OF_EXPIRED_TRACES,
                    {**arrays(given), "cutoffs": cutoffs},
                    relation=partition.name,
                    column=borders.column,
                )
                removed.rows[borders.table.name] += rows[0][0]

    def _has_traces(self, partition: Partition, projects: Sequence[str], cutoffs: Sequence[dt.datetime | None]) -> bool:
        with self._remover.connection() as connection:
            connection.execute(statements.SETTINGS)
            return self._has_traces_on(connection, partition, projects, cutoffs)

    def _has_traces_on(
        self,
        connection: psycopg.Connection[Any],
        partition: Partition,
        projects: Sequence[str],
        cutoffs: Sequence[dt.datetime | None] | None,
    ) -> bool:
        given = {
            "projects": list(projects),
            "cutoffs": ["-infinity" if cutoffs is None else str(cutoffs[at]) for at in range(len(projects))],
            "upper": partition.upper,
        }
        return bool(_scalar(run(connection, statements.HAS_TRACES, given, relation=partition.name)))


def _scalar(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    return None if row is None else row[0]


def _meets(one: Partition, other: Partition) -> bool:
    return other.lower is not None and other.upper is not None and one.overlaps(other.lower, other.upper)


def _covered(partition: Partition, ranges: Sequence[_Range]) -> bool:
    return not _without(_Range(partition.lower, partition.upper), _merged(ranges))


def _merged(ranges: Sequence[_Range]) -> list[_Range]:
    """Return ranges that touch as one, ascending; those of partitions have an upper bound."""
    merged: list[_Range] = []
    for one in sorted(ranges, key=lambda given: str(given.upper)):
        if merged and one.lower is not None and merged[-1].upper == one.lower:
            merged[-1] = _Range(merged[-1].lower, one.upper)
        else:
            merged.append(one)
    return merged


def _without(whole: _Range, spared: Sequence[_Range]) -> list[_Range]:
    """Return what is left of a range without others, which are ascending; None is no bound."""
    left = []
    lower = whole.lower
    for one in spared:
        if one.upper is None or (lower is not None and one.upper <= lower):
            continue
        if whole.upper is not None and one.lower is not None and one.lower >= whole.upper:
            break
        if one.lower is not None and (lower is None or one.lower > lower):
            left.append(_Range(lower, one.lower))
        lower = one.upper
    if whole.upper is None or lower is None or lower < whole.upper:
        left.append(_Range(lower, whole.upper))
    return left
