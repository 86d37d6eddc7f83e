"""Batches to committed rows: partitions, retries, bisection, rejection, for every signal."""

from __future__ import annotations

import datetime as dt
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import psycopg
import tenacity
from sqlalchemy import Table

from observatory_storage.caching import cache_of
from observatory_storage.errors import (
    RejectedRowError,
    StorageError,
    blames_a_row,
    describe,
    is_transient,
    translate_errors,
)
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.realtime.landed import Landed
from observatory_storage.realtime.link import Realtime
from observatory_storage.realtime.publisher import Publisher
from observatory_storage.writers.config import AUTO_COPY_ROWS, WriteMethod, WriterConfig
from observatory_storage.writers.convert import GivenRow, Rejections, are_none

_log = logging.getLogger(__name__)

_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_DAY_US: Final = 86_400_000_000
_DAYS_AHEAD: Final = 2
# Partitions a batch makes on demand at most, of days and of hours; a wild clock must not make thousands.
_NEW_DAYS: Final = 8
_NEW_HOURS: Final = 24
# Ids of committed parents that are remembered, and for how long: a parent that was not sent for an hour may be
# deleted. Forgetting one costs a conflict, nothing else.
_KNOWN_IDS: Final = 20_000
_KNOWN_SECONDS: Final = 600.0
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


class Batch(Protocol):
    """All that one transaction writes."""

    def __len__(self) -> int:
        """Count the rows that are left to write."""
        ...

    @property
    def size(self) -> int:
        """The rows by whose number COPY or INSERT is chosen."""
        ...

    @property
    def rejections(self) -> Rejections:
        """The rows that cannot be stored."""
        ...

    def convert_ahead(self) -> bool:
        """Convert some rows before they are to be sent; false, and nothing done, where that is enough."""
        ...

    def touched_traces(self) -> Iterable[bytes]:
        """Return the ids of the traces that the batch may have changed, once it was sent."""
        ...

    def times(self) -> Iterator[tuple[Table, list[int]]]:
        """Yield the partitioned tables with the times, in microseconds since 2000, of their rows."""
        ...


B = TypeVar("B", bound=Batch)


@dataclass(slots=True)
class Outcome:
    """What a committed batch changed: `counts` by the names of the writer's statistics."""

    counts: Counter[str] = field(default_factory=Counter)
    known: list[Any] = field(default_factory=list)
    """Ids of parents that are committed now and need not be sent again."""
    met_duplicates: bool = False
    was_replay: bool = False
    """Most rows were stored before."""
    landed: Landed | None = None
    """The rows that were new, where they are to be published."""
    learned: Any = None
    """What else is known from now on."""


@dataclass(slots=True)
class Stored:
    """What one call stored; `rejected` are the rows that could not be."""

    counts: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    retries: int = 0
    rejected: list[RejectedRowError] = field(default_factory=list)


@dataclass(slots=True)
class Prepared(Generic[B]):
    """Rows that are folded, ordered and ready to be stored; `rows` counts them as they were given."""

    rows: int
    batches: list[B]

    def convert_ahead(self) -> bool:
        """Convert some rows of the first batch before they are to be sent; false where that is enough."""
        return bool(self.batches) and self.batches[0].convert_ahead()


@dataclass(frozen=True, slots=True)
class Terms:
    """How a transaction is to write.

    `by_copy` chooses the path; `expect_duplicates` skips the optimistic COPY that a replay would fail, and
    `expect_replay` says that most rows may be stored.
    `known` are ids of parents that are committed and need not be sent again. `meanwhile` is work that may be done
    while the server is waited for, as `PooledConnection` has it. `publishes` asks for what landed, in
    `Outcome.landed`.
    """

    by_copy: bool
    expect_duplicates: bool
    known: set[Any]
    lock_timeout_ms: int
    meanwhile: Callable[[], bool] | None
    publishes: bool = False
    expect_replay: bool = False


class BatchStore(ABC, Generic[B]):
    """Stores batches of rows. Not for use by two threads at once."""

    signal: ClassVar[str]
    landed_count: ClassVar[str]
    """Which of the outcome's counts says how many rows were new."""

    def __init__(self, pool: ConnectionSource, config: WriterConfig, project: str, retry: RetryPolicy) -> None:
        self._pool = pool
        self._cache = cache_of(pool)
        self._realtime: Realtime | None = getattr(pool, "realtime", None)
        self._config = config
        self._project = project
        self._retry = retry
        self._partitions = PartitionManager(pool)
        self._known: set[Any] = set()
        self._known_since = _clocks()
        self._expect_duplicates = False
        self._expect_replay = False
        self._meanwhile: Callable[[], bool] | None = None

    @abstractmethod
    def prepare(self, rows: Mapping[str, Sequence[GivenRow]]) -> Prepared[B]:
        """Do what needs no server: check, fold and order rows, given by kind. What comes of it can be stored once."""

    @abstractmethod
    def transact(self, connection: psycopg.Connection[Any], batch: B, terms: Terms) -> Outcome:
        """Write a batch on a connection, up to and without the COMMIT."""

    @abstractmethod
    def parts(self, batch: B, error: StorageError) -> Iterator[B]:
        """Yield parts of a batch that the server refused for its data, or reject the row that is alone.

        The next part is made when the one before has been written, so that it may depend on what became of it.
        """

    def without_foreign(self, batch: B, error: ForeignTraceError) -> B:
        """Reject the rows that the error is about and return the batch of the others."""
        raise error

    def store(self, prepared: Prepared[B], stored: Stored, meanwhile: Callable[[], bool] | None = None) -> None:
        """Store rows and commit, in one transaction unless rows have to be told apart.

        Returns after the COMMIT. Raises a StorageError if something did not commit, with what did in `stored`:
        the same rows may then be prepared again, because what is stored already is stored once. `stored` gets
        the rejected rows only when all others are committed, so that none is named twice. `meanwhile` is called
        while the server has work left and this thread has none, until it returns false.
        """
        rejected: list[RejectedRowError] = []
        self._meanwhile = meanwhile
        for batch in prepared.batches:
            rejections = batch.rejections
            self._write(batch, stored)
            stored.counts.update(rejections.counts)
            rejected.extend(rejections.errors)
        stored.rejected.extend(rejected)

    def convert_ahead(self, prepared: Prepared[B]) -> bool:
        """Convert some rows before they are to be sent; false where that is enough, or they may not be sent at all."""
        return not self._expect_duplicates and prepared.convert_ahead()

    def _write(self, batch: B, stored: Stored) -> None:
        if not len(batch):
            return
        try:
            outcome = self._commit(batch, stored)
        except ForeignTraceError as foreign:
            self._write(self.without_foreign(batch, foreign), stored)
        except StorageError as error:
            too_slow = error.sqlstate == _STATEMENT_TIMEOUT and len(batch) > 1
            if not (too_slow or blames_a_row(error)):
                raise
            for part in self.parts(batch, error):
                self._write(part, stored)
        else:
            self._expect_duplicates = outcome.met_duplicates
            self._expect_replay = outcome.was_replay
            self._remember(outcome.known)
            self._committed(outcome)
            stored.counts.update(outcome.counts)
            stored.batches += 1
            if self._realtime is not None:
                self._publish(self._realtime.publisher, outcome)

    def _publish(self, publisher: Publisher, outcome: Outcome) -> None:
        if outcome.landed is not None:
            publisher.offer(outcome.landed)
        else:
            publisher.miss(self.signal, outcome.counts[self.landed_count])

    def _remember(self, ids: Sequence[Any]) -> None:
        if len(self._known) + len(ids) > _KNOWN_IDS:
            self._known.clear()
        if not self._known:
            self._known_since = _clocks()
        self._known.update(ids)

    def _still_known(self) -> set[Any]:
        elapsed = (abs(now - since) for now, since in zip(_clocks(), self._known_since, strict=True))
        if max(elapsed) > _KNOWN_SECONDS:
            self._known.clear()
        return self._known

    def _commit(self, batch: B, stored: Stored) -> Outcome:
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
                try:
                    with translate_errors(), self._pool.raw_connection() as connection:
                        outcome = self.transact(connection, batch, self._terms(batch))
                        connection.commit()
                finally:
                    # Also where it failed: of a lost connection nobody knows whether it took the COMMIT along.
                    if self._cache is not None:
                        self._cache.forget_traces(batch.touched_traces())
        return outcome

    def _terms(self, batch: B) -> Terms:
        return Terms(
            by_copy=self._by_copy(batch),
            expect_duplicates=self._expect_duplicates,
            known=self._still_known(),
            lock_timeout_ms=max(1, int(self._config.lock_timeout_seconds * 1000)),
            meanwhile=self._meanwhile,
            publishes=self._realtime is not None and self._realtime.publisher.wants_rows(),
            expect_replay=self._expect_replay,
        )

    def _is_last(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        contended = isinstance(error, StorageError) and (error.sqlstate or "").startswith(_CONTENTION)
        limit = max(_CONTENTION_ATTEMPTS, self._retry.max_attempts) if contended else self._retry.max_attempts
        if error is not None and state.attempt_number < limit:
            _log.info("batch not committed, attempt %d of %d: %s", state.attempt_number, limit, describe(error))
        return state.attempt_number >= limit

    def _by_copy(self, batch: B) -> bool:
        if self._config.method is WriteMethod.AUTO:
            return batch.size >= AUTO_COPY_ROWS
        return self._config.method is WriteMethod.COPY

    def _make_partitions(self, batch: B) -> None:
        now = (dt.datetime.now(dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)
        first = now - self._config.partition_days_back * _DAY_US
        last = now + _DAYS_AHEAD * _DAY_US
        for table, times in self._times(batch):
            # Weeks and months have no one length; each day lies in one of them.
            width = self._partitions.width(table.name).microseconds or _DAY_US
            places = [
                place for place in _places(times, width) if first <= (place + 1) * width and place * width <= last
            ]
            if places:
                starts = [_EPOCH + dt.timedelta(microseconds=place * width) for place in places]
                self._partitions.ensure(table, starts, at_most=_NEW_DAYS if width >= _DAY_US else _NEW_HOURS)

    def _times(self, batch: B) -> Iterator[tuple[Table, list[int]]]:
        """Yield the tables and times that partitions are made for, one after the other."""
        return batch.times()

    def _committed(self, outcome: Outcome) -> None:
        """Remember what a committed batch taught."""


class ForeignTraceError(Exception):
    """Some traces of the batch belong to another project: `projects` says to which."""

    def __init__(self, projects: Mapping[bytes, str]) -> None:
        super().__init__(f"{len(projects)} traces belong to another project")
        self.projects = projects


def by_project(rows: Mapping[str, Sequence[GivenRow]], project: str) -> Iterator[Mapping[str, Sequence[GivenRow]]]:
    """Yield rows, given by kind, as they are, or a part for each project that they name."""

    def named(row: GivenRow) -> str:
        given = row.get("project")
        return given if given and isinstance(given, str) else project

    given = [row.get("project") for some in rows.values() for row in some]
    # In C: most batches say one project, or none.
    if are_none(given) or len({named(row) for some in rows.values() for row in some}) <= 1:
        yield rows
        return
    groups: dict[str, dict[str, list[GivenRow]]] = {}
    for kind, some in rows.items():
        for row in some:
            groups.setdefault(named(row), {name: [] for name in rows})[kind].append(row)
    yield from groups.values()


def _clocks() -> tuple[float, float]:
    """Return two clocks: one is never set, and the other goes on while the machine sleeps."""
    return time.monotonic(), time.time()


def _places(times: Sequence[int], width: int) -> set[int]:
    """Return which partitions hold some times, as numbers."""
    if not times:
        return set()
    # Nearly all batches lie in one, and the extremes are found in C.
    first, last = min(times) // width, max(times) // width
    return {first} if first == last else {time // width for time in times}


def _worth_a_retry(error: BaseException) -> bool:
    # A race with another project's first span is decided by looking once more, and there is no end to it
    # only where rows are hidden from this role.
    return is_transient(error) or (isinstance(error, ForeignTraceError) and not error.projects)
