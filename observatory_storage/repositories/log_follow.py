"""Follows log records as they are committed: none is missed and none comes twice."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Self

from observatory_storage.errors import StorageError
from observatory_storage.models import LogRecord
from observatory_storage.repositories import log_statements as statements
from observatory_storage.repositories.log_cursor import LogCursor
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_position import Position, Snapshot, Step
from observatory_storage.repositories.log_reading import LogReader, Reach
from observatory_storage.repositories.log_windows import LARGEST_WINDOW, Window
from observatory_storage.repositories.reading import SessionSource, watch_of

DEFAULT_POLL_INTERVAL_SECONDS: Final = 1.0
DEFAULT_BATCH_SIZE: Final = 1000
# How soon `stop` is noticed while there is nothing to do.
_NAP_SECONDS: Final = 0.1
# Where every commit is announced, those of so long are read together.
_SHORTEST_REST_SECONDS: Final = 0.02
# A poll of very many partitions takes long: the next one waits three times as long as it took.
_REST: Final = 3


class LogStream(LogReader, Iterator[LogRecord]):
    """The records that are committed from a position on, as `LogRepository.stream_logs` returns it.

    Iterate over it. No connection is held while the caller has a record or the stream waits, so that it may live
    for ever. After an error, as where the server restarts, iteration can go on where it was. Not for several
    threads at once.
    """

    def __init__(
        self,
        pool: SessionSource,
        filters: LogFilters,
        *,
        position: Position | None = None,
        recent: int = 0,
        poll_interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS,
        idle_timeout_seconds: float | None = None,
        stop: Callable[[], bool] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        include_content: bool = False,
        statement_timeout_seconds: float | None = None,
    ) -> None:
        super().__init__(pool, statement_timeout_seconds=statement_timeout_seconds)
        self._filters = filters
        self._poll_interval_seconds = poll_interval_seconds
        self._idle_timeout_seconds = idle_timeout_seconds
        self._stop = stop
        self._batch_size = batch_size
        self._include_content = include_content
        self._records: deque[tuple[LogRecord, Position]] = deque()
        self._windows: deque[Window] | None = None
        self._watch = watch_of(pool, filters.project)
        if self._watch is not None:
            # From before the snapshot on.
            self._watch.wait(0)
        self._position = position or Position(self._snapshot())
        # After the snapshot, so that a partition with one of its records is among them.
        reach = self._reach(filters)
        self._search = reach.search
        self._read_to = self._position
        if recent:
            self._add_recent(reach, recent)
        self._due = self._rested = time.monotonic()
        self._idle_since: float | None = None

    @property
    def position(self) -> str:
        """The place after the last record that was returned, as text that `stream_logs` goes on from."""
        return self._position.encode()

    def __iter__(self) -> Self:
        # Who iterates again after the end looks again.
        self._idle_since = None
        return self

    def __next__(self) -> LogRecord:
        while not self._is_over():
            if self._records:
                record, self._position = self._records.popleft()
                self._idle_since = None
                return record
            # What is left of a step is read at once.
            wait_seconds = self._due - time.monotonic() if self._read_to.now is None else 0
            if wait_seconds > 0:
                self._nap(min(wait_seconds, _NAP_SECONDS))
            else:
                self._poll()
        raise StopIteration

    def _is_over(self) -> bool:
        if self._stop is not None and self._stop():
            return True
        timeout, since = self._idle_timeout_seconds, self._idle_since
        return timeout is not None and since is not None and time.monotonic() - since >= timeout

    def _nap(self, seconds: float) -> None:
        """Wait, and look at once where somebody says that records were committed."""
        rest_seconds = self._rested - time.monotonic()
        if self._watch is None or rest_seconds > 0:
            time.sleep(seconds if self._watch is None else min(seconds, rest_seconds))
        elif self._watch.wait(seconds):
            self._due = time.monotonic()

    def _poll(self) -> None:
        """Read until there are records, or until all there are have been read."""
        began = time.monotonic()
        is_new_step = self._read_to.now is None
        if is_new_step:
            self._due = began + self._poll_interval_seconds
            now = self._snapshot()
            if now != self._read_to.before:
                self._read_to = Position(self._read_to.before, now)
        if self._read_to.now is not None:
            self._read_step(Step(self._read_to.before, self._read_to.now))
        ended = time.monotonic()
        if self._read_to.now is None:
            shortest = 0.0 if self._watch is None else _SHORTEST_REST_SECONDS
            self._rested = ended + max(_REST * (ended - began), shortest)
            self._due = max(self._due, self._rested)
            if is_new_step and self._idle_since is None:
                self._idle_since = began

    def _read_step(self, step: Step) -> None:
        if self._windows is None:
            # Read after the snapshot as well.
            self._windows = self._windows_from(self._read_to.after)
        while self._windows:
            after = self._read_to.after
            statement = statements.new_logs(
                self._filters,
                self._windows[0],
                step,
                self._batch_size,
                search=self._search,
                after=after,
                include_content=self._include_content,
            )
            with self._reading() as session:
                found = session.execute(statement).scalars().all()
            if len(found) < self._batch_size:
                self._windows.popleft()
            for record in found:
                self._read_to = Position(step.before, step.now, LogCursor(record.timestamp, record.id))
                self._records.append((record, self._read_to))
            if found:
                return
        self._windows = None
        self._read_to = Position(step.now)
        if not self._records:
            self._position = self._read_to

    def _windows_from(self, after: LogCursor | None) -> deque[Window]:
        """Return the windows from a place on, the earliest first."""
        reach = self._reach(self._filters.model_copy(update={"search": None}), first=LARGEST_WINDOW)
        found = reversed(reach.windows)
        if after is None:
            return deque(found)
        rest = Window(after.timestamp, None)
        return deque(window.within(rest) for window in found if window.meets(rest.lower, rest.upper))

    def _snapshot(self) -> Snapshot:
        with self._reading() as session:
            text, is_standby = session.execute(statements.current_snapshot()).one()
        if is_standby:
            # Its snapshots do not say which transactions are open.
            raise StorageError("records can be followed on the primary server only, not on a standby")
        return Snapshot.parse(text)

    def _add_recent(self, reach: Reach, count: int) -> None:
        found = self._newest(reach, count, seen_by=self._position.before, include_content=self._include_content)
        self._records.extend((record, self._position) for record in reversed(found))


def duration_problems(name: str, seconds: object) -> Iterator[str]:
    """Say what is wrong with a number of seconds to wait."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        yield f"{name}: it is {seconds!r} and must be a number of seconds, 0 or more"
