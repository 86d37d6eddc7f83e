"""The bounded buffer between those who write rows and the one who commits them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from observatory_storage.errors import BufferFullError, RejectedRowError, WriteError
from observatory_storage.writers.convert import GivenRow, as_mapping

# Rows that are appended under one hold of the lock.
_PUT_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What is not committed yet; `last_error` is why the latest attempt failed, None after a success.

    `kinds` says how many rows there are of each kind that the writer takes: `span`, `event` and so on.
    """

    rows: int
    kinds: Mapping[str, int]
    capacity: int
    oldest_age_seconds: float
    last_error: str | None


@dataclass(slots=True)
class _Run:
    """Rows of one kind that came together."""

    since: float
    kind: str
    rows: list[GivenRow]


class RowBuffer:
    """A queue of rows in the order they came. Safe for threads; `put` waits while it is full.

    Rows leave it when they are committed, not when they are looked at: whatever interrupts the one who
    writes them, they are still here. They are kept in runs, so that a row costs no object of its own.

    Safe for signal handlers that raise, as Ctrl-C does. CPython runs them between calls, so what belongs
    together is changed without a call in between; and the lock is taken by itself and not through its
    condition, whose `__enter__` is Python code that may be left with the lock held.
    """

    def __init__(self, kinds: Sequence[str], capacity: int, full_timeout_seconds: float) -> None:
        self._kinds = kinds
        self.capacity = capacity
        self._full_timeout_seconds = full_timeout_seconds
        self.reset()

    def reset(self) -> None:
        """Start empty, with locks of its own: also what a forked child does, whose copies may be held."""
        self.last_error: str | None = None
        self.closed = False
        self._runs: deque[_Run] = deque()
        self._size = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def __len__(self) -> int:
        return self._size

    def put(self, kind: str, rows: Iterable[object], *, copy: bool = False) -> None:
        """Append rows, or copies of them; where the buffer is full, wait for room.

        Raises BufferFullError, RejectedRowError for what is no row at all, and WriteError once the buffer is
        closed: rows before are in, those after are not read.
        """
        taken = 0
        left = iter(rows)
        while True:
            chunk: list[GivenRow] = []
            try:
                for row in islice(left, _PUT_ROWS):
                    # A copy of a span takes 1 µs, and as much again from the garbage collector.
                    chunk.append(dict(as_mapping(row)) if copy else row if type(row) is dict else as_mapping(row))
            except RejectedRowError as error:
                self._put(kind, chunk, taken)
                raise RejectedRowError(f"row {taken + len(chunk) + 1}: {error.reason}") from None
            except BaseException:
                # The caller's own iterator failed; what it gave before is in.
                self._put(kind, chunk, taken)
                raise
            if not chunk:
                return
            self._put(kind, chunk, taken)
            taken += len(chunk)

    def _put(self, kind: str, rows: list[GivenRow], taken: int) -> None:
        first = 0
        with self._lock:
            while first < len(rows):
                ready = self._changed.wait_for(self._may_put, self._full_timeout_seconds)
                if self.closed:
                    raise WriteError(f"the writer is closed; {taken + first} rows of this call were taken")
                if not ready:
                    reason = f": {self.last_error}" if self.last_error else ""
                    raise BufferFullError(
                        f"the writer's buffer of {self.capacity} rows stayed full for "
                        f"{self._full_timeout_seconds:g} s{reason}; {taken + first} rows of this call were taken",
                        taken=taken + first,
                        unwritten=self._size,
                    )
                some = rows[first : first + self.capacity - self._size]
                run, number = _Run(time.monotonic(), kind, some), len(some)
                self._runs += (run,)
                self._size += number
                first += number
                self._changed.notify_all()

    def _may_put(self) -> bool:
        return self.closed or self._size < self.capacity

    def peek(self, limit: int, skip: int = 0) -> dict[str, list[GivenRow]]:
        """Return the oldest rows but for the first few, by kind; they stay."""
        found: dict[str, list[GivenRow]] = {kind: [] for kind in self._kinds}
        with self._lock:
            left = min(limit, max(0, self._size - skip))
            for run in self._runs:
                if not left:
                    break
                some = run.rows[skip : skip + left]
                found[run.kind].extend(some)
                skip -= min(skip, len(run.rows))
                left -= len(some)
        return found

    def drop(self, number: int) -> None:
        """Remove the oldest rows: they are committed."""
        with self._lock:
            while number:
                run = self._runs[0]
                some = min(number, len(run.rows))
                left = run.rows[some:]
                if left:
                    run.rows = left
                else:
                    del self._runs[0]
                self._size -= some
                number -= some
            self._changed.notify_all()

    def close(self, closed: bool = True) -> None:
        """Take no more rows, or take them again; wake whoever waits."""
        with self._lock:
            self.closed = closed
            self._changed.notify_all()

    def wait_closed(self, seconds: float) -> bool:
        """Wait so long, or until the buffer is closed; tell whether it is."""
        with self._lock:
            return self._changed.wait_for(lambda: self.closed, seconds)

    def wait_for_batch(self, rows: int, age_seconds: float) -> bool:
        """Wait until so many rows are there or the oldest has that age; false once the buffer is closed."""
        with self._lock:
            while not self.closed and self._size < rows:
                left = self._runs[0].since + age_seconds - time.monotonic() if self._runs else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return not self.closed

    def stats(self) -> BufferStats:
        """Count what is here."""
        with self._lock:
            counts = dict.fromkeys(self._kinds, 0)
            for run in self._runs:
                counts[run.kind] += len(run.rows)
            return BufferStats(
                rows=self._size,
                kinds=counts,
                capacity=self.capacity,
                oldest_age_seconds=time.monotonic() - self._runs[0].since if self._runs else 0.0,
                last_error=self.last_error,
            )
