"""The bounded buffer between those who write rows and the one who commits them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from observatory_storage.errors import BufferFullError, RejectedRowError, WriteError
from observatory_storage.writers.convert import GivenRow, as_mapping

KINDS: Final = ("span", "event", "trace")
# Rows that are appended under one hold of the lock.
_PUT_ROWS: Final = 500
Item = tuple[str, GivenRow]


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What is not committed yet; `last_error` is why the latest attempt failed, None after a success."""

    rows: int
    spans: int
    events: int
    traces: int
    capacity: int
    oldest_age_seconds: float
    last_error: str | None


class RowBuffer:
    """A queue of rows in the order they came. Safe for threads; `put` waits while it is full.

    Rows leave it when they are committed, not when they are looked at: whatever interrupts the one who
    writes them, they are still here.
    """

    def __init__(self, capacity: int, full_timeout_seconds: float) -> None:
        self.capacity = capacity
        self._full_timeout_seconds = full_timeout_seconds
        self.reset()

    def reset(self) -> None:
        """Start empty, with locks of its own: also what a forked child does, whose copies may be held."""
        self.last_error: str | None = None
        self.closed = False
        self._items: deque[tuple[float, Item]] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, kind: str, rows: Iterable[object]) -> None:
        """Append copies of rows; where the buffer is full, wait for room.

        Raises BufferFullError, RejectedRowError for what is no row at all, and WriteError once the buffer is
        closed: rows before are in, those after are not read.
        """
        taken = 0
        left = iter(rows)
        while True:
            chunk: list[GivenRow] = []
            try:
                for row in islice(left, _PUT_ROWS):
                    chunk.append(as_mapping(row))
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
        with self._changed:
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
                        unwritten=len(self._items),
                    )
                some = rows[first : first + self.capacity - len(self._items)]
                now = time.monotonic()
                self._items.extend((now, (kind, row)) for row in some)
                first += len(some)
                self._changed.notify_all()

    def _may_put(self) -> bool:
        return self.closed or len(self._items) < self.capacity

    def peek(self, limit: int) -> list[Item]:
        """Return the oldest rows; they stay."""
        with self._changed:
            return [item for _, item in islice(self._items, limit)]

    def drop(self, number: int) -> None:
        """Remove the oldest rows: they are committed."""
        with self._changed:
            for _ in range(number):
                self._items.popleft()
            self._changed.notify_all()

    def close(self, closed: bool = True) -> None:
        """Take no more rows, or take them again; wake whoever waits."""
        with self._changed:
            self.closed = closed
            self._changed.notify_all()

    def wait_closed(self, seconds: float) -> bool:
        """Wait so long, or until the buffer is closed; tell whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.closed, seconds)

    def wait_for_batch(self, rows: int, age_seconds: float) -> bool:
        """Wait until so many rows are there or the oldest has that age; false once the buffer is closed."""
        with self._changed:
            while not self.closed and len(self._items) < rows:
                left = self._items[0][0] + age_seconds - time.monotonic() if self._items else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return not self.closed

    def stats(self) -> BufferStats:
        """Count what is here."""
        with self._changed:
            kinds = [kind for _, (kind, _) in self._items]
            return BufferStats(
                rows=len(kinds),
                spans=kinds.count("span"),
                events=kinds.count("event"),
                traces=kinds.count("trace"),
                capacity=self.capacity,
                oldest_age_seconds=time.monotonic() - self._items[0][0] if self._items else 0.0,
                last_error=self.last_error,
            )
