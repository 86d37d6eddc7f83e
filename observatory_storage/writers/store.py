"""Batches to committed rows: partitions, retries, bisection, rejection."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import psycopg
import tenacity

from observatory_storage.errors import (
    RejectedRowError,
    StorageError,
    blames_a_row,
    describe,
    is_transient,
    translate_errors,
)
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.writers.batch import LooseEvents, SpanBatch
from observatory_storage.writers.bisection import parts_of
from observatory_storage.writers.config import AUTO_COPY_ROWS, WriteMethod, WriterConfig
from observatory_storage.writers.convert import GivenRow, Rejections
from observatory_storage.writers.summary import own_traces
from observatory_storage.writers.transaction import Batch, BatchTransaction, ForeignTraceError, Outcome

_log = logging.getLogger(__name__)

_EPOCH: Final = dt.date(2000, 1, 1)
_DAY_US: Final = 86_400_000_000
_DAYS_AHEAD: Final = 2
# Partitions a batch makes on demand at most; a wild clock must not make thousands.
_NEW_PARTITIONS: Final = 8
# Ids of committed resources that are remembered. Forgetting one costs a conflict, nothing else.
_KNOWN_RESOURCES: Final = 10_000
# Transactions that lost to another one (deadlock, lock timeout) are tried so often before the caller hears
# of it; each wait is longer than the last.
_CONTENTION_ATTEMPTS: Final = 10
_CONTENTION: Final = ("40", "55P03")
_STATEMENT_TIMEOUT: Final = "57014"


class RetryPolicy(Protocol):
    """How often and how long to retry: the pool's retry settings."""

    @property
    def max_attempts(self) -> int:
        """Attempts in all."""
        ...

    @property
    def initial_delay_ms(self) -> int:
        """The first wait."""
        ...

    @property
    def max_delay_ms(self) -> int:
        """The longest wait."""
        ...

    @property
    def backoff_multiplier(self) -> float:
        """By how much each wait is longer than the one before."""
        ...


class ConnectionSource(Protocol):
    """What lends connections: a `StoragePool`."""

    def raw_connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection; the borrower commits."""
        ...


@dataclass(slots=True)
class Stored:
    """What one call stored; `rejected` are the rows that could not be."""

    outcome: Outcome = field(default_factory=Outcome)
    batches: int = 0
    retries: int = 0
    rejected: list[RejectedRowError] = field(default_factory=list)


@dataclass(slots=True)
class Prepared:
    """Rows that are folded, ordered and ready to be stored, a batch for each project; `rows` counts them."""

    rows: int
    batches: list[Batch]


class BatchStore:
    """Stores batches of rows. Not for use by two threads at once."""

    def __init__(self, pool: ConnectionSource, config: WriterConfig, project: str, retry: RetryPolicy) -> None:
        self._pool = pool
        self._config = config
        self._project = project
        self._retry = retry
        self._partitions = PartitionManager(pool)
        self._known_resources: set[bytes] = set()
        self._expect_duplicates = False
        self._meanwhile: Callable[[], None] | None = None

    def prepare(self, spans: Sequence[GivenRow], events: Sequence[GivenRow], traces: Sequence[GivenRow]) -> Prepared:
        """Do what needs no server: check, fold and order rows. What comes of it can be stored once."""
        batches = []
        for part in _by_project(spans, events, traces, self._project):
            rejections = Rejections()
            batches.append(
                Batch(
                    SpanBatch.from_rows(part[0], self._project, rejections),
                    LooseEvents.from_rows(part[1], self._project, rejections),
                    own_traces(part[2], self._project, rejections),
                )
            )
        return Prepared(len(spans) + len(events) + len(traces), batches)

    def store(self, prepared: Prepared, stored: Stored, meanwhile: Callable[[], None] | None = None) -> None:
        """Store rows and commit, in one transaction unless rows have to be told apart.

        Returns after the COMMIT. Raises a StorageError if something did not commit, with what did in `stored`:
        the same rows may then be prepared again, because what is stored already is stored once. `stored` gets
        the rejected rows only when all others are committed, so that none is named twice. `meanwhile` may be
        called, even more than once, at a time when the server has work left and this thread has none.
        """
        rejected: list[RejectedRowError] = []
        self._meanwhile = meanwhile
        for batch in prepared.batches:
            rejections = batch.spans.rejections
            folded = batch.spans.folded
            self._write(batch, stored)
            stored.outcome.spans_duplicate += folded
            rejected.extend(rejections.errors)
        stored.rejected.extend(rejected)

    def _write(self, batch: Batch, stored: Stored) -> None:
        if not len(batch):
            return
        try:
            outcome = self._commit(batch, stored)
        except ForeignTraceError as foreign:
            self._write(_without_foreign(batch, foreign.projects), stored)
        except StorageError as error:
            too_slow = error.sqlstate == _STATEMENT_TIMEOUT and len(batch) > 1
            if not (too_slow or blames_a_row(error)):
                raise
            for part in parts_of(batch, error):
                self._write(part, stored)
        else:
            self._count(outcome, stored)

    def _count(self, outcome: Outcome, stored: Stored) -> None:
        self._expect_duplicates = outcome.met_duplicates
        if len(self._known_resources) + len(outcome.resources) > _KNOWN_RESOURCES:
            self._known_resources.clear()
        self._known_resources.update(outcome.resources)
        total = stored.outcome
        total.spans_written += outcome.spans_written
        total.spans_duplicate += outcome.spans_duplicate
        total.spans_replaced += outcome.spans_replaced
        total.events_written += outcome.events_written
        total.traces_written += outcome.traces_written
        stored.batches += 1

    def _commit(self, batch: Batch, stored: Stored) -> Outcome:
        """Run the transaction, again where the server was away or another transaction won."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_a_retry),
            stop=self._is_last,
            wait=tenacity.wait_exponential_jitter(
                multiplier=self._retry.initial_delay_ms / 1000,
                max=self._retry.max_delay_ms / 1000,
                exp_base=self._retry.backoff_multiplier,
                jitter=self._retry.initial_delay_ms / 1000,
            ),
            reraise=True,
        ):
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    stored.retries += 1
                self._make_partitions(batch)
                with translate_errors(), self._pool.raw_connection() as connection:
                    outcome = BatchTransaction(
                        connection,
                        by_copy=self._by_copy(batch),
                        expect_duplicates=self._expect_duplicates,
                        known_resources=self._known_resources,
                        lock_timeout_seconds=self._config.lock_timeout_seconds,
                        meanwhile=self._meanwhile,
                    ).write(batch)
                    connection.commit()
        return outcome

    def _is_last(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        contended = isinstance(error, StorageError) and (error.sqlstate or "").startswith(_CONTENTION)
        limit = max(_CONTENTION_ATTEMPTS, self._retry.max_attempts) if contended else self._retry.max_attempts
        if error is not None and state.attempt_number < limit:
            _log.info("batch not committed, attempt %d of %d: %s", state.attempt_number, limit, describe(error))
        return state.attempt_number >= limit

    def _by_copy(self, batch: Batch) -> bool:
        if self._config.method is WriteMethod.AUTO:
            return len(batch.spans) + len(batch.events) >= AUTO_COPY_ROWS
        return self._config.method is WriteMethod.COPY

    def _make_partitions(self, batch: Batch) -> None:
        days = _days(batch.spans.start_times)
        event_days = {event[2] // _DAY_US for event in batch.events.rows}
        if batch.spans.has_events:
            event_days |= days
        today = dt.datetime.now(dt.UTC).date()
        first = (today - _EPOCH).days - self._config.partition_days_back
        last = (today - _EPOCH).days + _DAYS_AHEAD
        for table, wanted in ((table_of(TraceSpan), days), (table_of(TraceEvent), event_days)):
            dates = [_EPOCH + dt.timedelta(days=day) for day in wanted if first <= day <= last]
            if dates:
                self._partitions.ensure(table, dates, at_most=_NEW_PARTITIONS)


def _days(start_times: Sequence[int]) -> set[int]:
    """Return the days, as numbers, of ascending times."""
    if start_times and start_times[0] // _DAY_US == start_times[-1] // _DAY_US:
        return {start_times[0] // _DAY_US}
    return {start // _DAY_US for start in start_times}


def _worth_a_retry(error: BaseException) -> bool:
    # A race with another project's first span is decided by looking once more, and there is no end to it
    # only where rows are hidden from this role.
    return is_transient(error) or (isinstance(error, ForeignTraceError) and not error.projects)


def _by_project(
    spans: Sequence[GivenRow], events: Sequence[GivenRow], traces: Sequence[GivenRow], project: str
) -> Iterator[tuple[Sequence[GivenRow], Sequence[GivenRow], Sequence[GivenRow]]]:
    """Yield the rows as they are, or by project, so that no transaction says two projects of one trace."""

    def named(row: GivenRow) -> str:
        given = row.get("project")
        return given if given and isinstance(given, str) else project

    groups: dict[str, tuple[list[GivenRow], list[GivenRow], list[GivenRow]]] = {}
    given = [row.get("project") for rows in (spans, events, traces) for row in rows]
    # In C: most batches say one project, or none.
    if given.count(None) == len(given) or len({named(row) for rows in (spans, events, traces) for row in rows}) <= 1:
        yield spans, events, traces
        return
    for kind, rows in enumerate((spans, events, traces)):
        for row in rows:
            groups.setdefault(named(row), ([], [], []))[kind].append(row)
    yield from groups.values()


def _without_foreign(batch: Batch, projects: Mapping[bytes, str]) -> Batch:
    reasons = {key: f"its trace belongs to project {project!r}" for key, project in projects.items()}
    rejections = batch.spans.rejections
    for event in batch.events.rows:
        if event[0] in reasons:
            rejections.add(batch.events.given(event), reasons[event[0]])
    for key, trace in batch.traces.items():
        for row in trace.given if key in reasons else ():
            rejections.add(row, f"the trace belongs to project {projects[key]!r}")
    events = batch.events.rows
    return Batch(
        batch.spans.without_traces(reasons),
        batch.events.select(lambda place: events[place][0] not in reasons),
        {key: trace for key, trace in batch.traces.items() if key not in reasons},
    )
