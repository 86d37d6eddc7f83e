"""Upkeep of the rollups of usage: parts that writers appended are merged, and what was stored without them is added.

Safe from many hosts at once and when it is killed: each step is a transaction, and takes only what nobody holds.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg

from observatory_storage.caching import cache_of
from observatory_storage.errors import StorageError, UnavailableError, describe, translate_errors
from observatory_storage.lifecycle.partitions import ConnectionSource, PartitionManager
from observatory_storage.models import TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.usage import statements
from observatory_storage.usage.backfill import START, Added, add_unrolled

_log = logging.getLogger(__name__)

PARTS_AT_ONCE: Final = 2_000
"""Parts that are merged in one transaction, with what is folded of their hours: some tens of milliseconds."""

TRACES_AT_ONCE: Final = 200
"""Traces that are locked while their model calls are added: a writer that meets one waits for so long."""

SECONDS_A_RUN: Final = 60.0
"""After so long a run leaves the rest of what was stored without rollups to the next one."""

_ATTEMPTS: Final = 3
_CONTENTION: Final = ("55P03", "40P01")

Progress = Callable[[str, int, int], None]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What upkeep of the rollups did. Figures of usage are exact at any time, done or not, but for `spans_left`."""

    parts_folded: int = 0
    parts_left: int = 0
    """Parts that wait, in a dry run."""
    spans_added: int = 0
    """Spans whose usage was not in the rollups, nor whether it counts decided."""
    spans_left: int = 0
    """Model calls that are still not in the rollups: in a dry run, or when the time of a run was over."""
    problems: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Tell whether all that was due is done."""
        return not (self.parts_left or self.spans_left or self.problems)


class UsageUpkeep:
    """Folds and completes the rollups on connections of the pool."""

    def __init__(
        self,
        pool: ConnectionSource,
        manager: PartitionManager,
        *,
        seconds: float = SECONDS_A_RUN,
        on_progress: Progress | None = None,
    ) -> None:
        self._pool = pool
        self._cache = cache_of(pool)
        self._manager = manager
        self._seconds = seconds
        self._on_progress = on_progress or (lambda what, done, total: None)

    def preview(self) -> UsageReport:
        """Count what is due."""
        return UsageReport(
            parts_left=self._count(statements.COUNT_WAITING), spans_left=self._count(statements.COUNT_UNROLLED)
        )

    def run(self) -> UsageReport:
        """Merge what waits, and add what is missing for up to `seconds`. Raises UnavailableError."""
        deadline = time.monotonic() + self._seconds
        folded = added = left = 0
        try:
            # Twice, for the second step may leave hundreds of parts.
            folded = self.fold()
            added, is_done = self._complete(deadline)
            folded += self.fold()
            left = 0 if is_done else self._count(statements.COUNT_UNROLLED)
        except StorageError as error:
            if isinstance(error, UnavailableError) and error.sqlstate not in _CONTENTION:
                raise
            problem = f"upkeep of usage did not come to its end: {error}"
            _log.info("%s", problem)
            return UsageReport(folded, 0, added, left, (problem,))
        return UsageReport(parts_folded=folded, spans_added=added, spans_left=left)

    def fold(self, *, at_once: int = PARTS_AT_ONCE) -> int:
        """Merge the parts that wait; returns their number."""

        def work(connection: psycopg.Connection[Any]) -> int:
            given = {"limit": at_once, "part": uuid.uuid4()}
            row = connection.execute(statements.FOLD.encode(), given).fetchone()
            return 0 if row is None else int(row[0])

        done = 0
        while found := self._attempt(work):
            done += found
            self._on_progress("usage", done, done)
            if found < at_once:
                break
        return done

    def _complete(self, deadline: float) -> tuple[int, bool]:
        """Add what was stored without rollups, the oldest partition first; tells whether that is all."""
        partitions = sorted(
            self._manager.list(table_of(TraceSpan)), key=lambda partition: (partition.is_default, str(partition.lower))
        )
        added = 0
        for place, partition in enumerate(partitions):
            after: uuid.UUID | None = START
            while after is not None:
                if time.monotonic() >= deadline:
                    return added, False

                touched: list[bytes] = []

                def work(
                    connection: psycopg.Connection[Any],
                    name: str = partition.name,
                    after: uuid.UUID = after,
                    touched: list[bytes] = touched,
                ) -> Added:
                    step = add_unrolled(connection, name, after, TRACES_AT_ONCE)
                    touched.extend(step.trace_ids)
                    return step

                try:
                    step = self._attempt(work)
                finally:
                    # Also where it failed: nobody knows what became of the COMMIT.
                    if self._cache is not None:
                        self._cache.forget_traces(touched)
                if step.spans:
                    self._on_progress("usage of stored spans", place, len(partitions))
                added += step.spans
                after = step.after
        return added, True

    def _count(self, query: str) -> int:
        row = self._attempt(lambda connection: connection.execute(query.encode()).fetchone())
        return 0 if row is None else int(row[0])

    def _attempt(self, work: Callable[[psycopg.Connection[Any]], _Result]) -> _Result:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translate_errors(), self._pool.raw_connection() as connection:
                    result = work(connection)
                    connection.commit()
                    return result
            except StorageError as error:
                if error.sqlstate not in _CONTENTION or attempt == _ATTEMPTS:
                    raise
                _log.info("upkeep of usage, attempt %d of %d: %s", attempt, _ATTEMPTS, describe(error))
        raise AssertionError
