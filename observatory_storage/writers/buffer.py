"""The bounded buffer between those who write rows and the one who commits them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from observatory_storage.errors import BufferFullError
from observatory_storage.writers.convert import GivenRow

KINDS: Final = ("span", "event", "trace")
# Rows that are appended under one hold of the lock.
_PUT_ROWS: Final = 500
Item = tuple[str, GivenRow]


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What waits to be written; `last_error` is why the latest attempt failed, None after a success."""

    rows: int
    spans: int
    events: int
    traces: int
    capacity: int
    oldest_age_seconds: float
    last_error: str | None


class RowBuffer:
    """A queue of rows in the order they came. Safe for threads; `put` waits while it is full."""

    def __init__(self, capacity: int, full_timeout_seconds: float) -> None:
        self.capacity = capacity
        self.last_error: str | None = None
        self._full_timeout_seconds = full_timeout_seconds
        self.reset()

    def reset(self) -> None:
        """Start empty, with locks of its own: also what a forked child does, whose copies may be held."""
        self._items: deque[Item] = deque()
        self._oldest: float | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, kind: str, rows: Iterable[GivenRow]) -> None:
        """Append rows; where the buffer is full, wait for room. Raises BufferFullError."""
        left = iter(rows)
        while chunk := list(islice(left, _PUT_ROWS)):
            self._put(kind, chunk)

    def _put(self, kind: str, rows: list[GivenRow]) -> None:
        first = 0
        with self._changed:
            while first < len(rows):
                if not self._changed.wait_for(self._has_room, self._full_timeout_seconds):
                    reason = f": {self.last_error}" if self.last_error else ""
                    raise BufferFullError(
                        f"the writer's buffer of {self.capacity} rows stayed full for "
                        f"{self._full_timeout_seconds:g} s{reason}; {len(rows) - first} rows were not taken",
                        unwritten=len(rows) - first,
                    )
                taken = rows[first : first + self.capacity - len(self._items)]
                self._items.extend((kind, row) for row in taken)
                first += len(taken)
                if self._oldest is None:
                    self._oldest = time.monotonic()
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._items) < self.capacity

    def take(self, limit: int) -> list[Item]:
        """Remove and return the oldest rows."""
        with self._changed:
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._oldest = time.monotonic() if self._items else None
            self._changed.notify_all()
            return taken

    def put_back(self, items: list[Item]) -> None:
        """Return rows that were not written to the front, beyond the capacity if need be."""
        with self._changed:
            self._items.extendleft(reversed(items))
            self._oldest = time.monotonic()

    def wait(self, rows: int, age_seconds: float, stop: threading.Event) -> None:
        """Wait until so many rows are there, or the oldest has that age, or `stop` is set and `wake` called."""
        with self._changed:
            while not stop.is_set() and len(self._items) < rows:
                left = None if self._oldest is None else self._oldest + age_seconds - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._changed.wait(left)

    def wake(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._changed.notify_all()

    def stats(self) -> BufferStats:
        """Count what waits."""
        with self._changed:
            kinds = [kind for kind, _ in self._items]
            return BufferStats(
                rows=len(kinds),
                spans=kinds.count("span"),
                events=kinds.count("event"),
                traces=kinds.count("trace"),
                capacity=self.capacity,
                oldest_age_seconds=0.0 if self._oldest is None else time.monotonic() - self._oldest,
                last_error=self.last_error,
            )
