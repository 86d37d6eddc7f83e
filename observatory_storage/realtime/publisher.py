"""Publishes committed rows to Redis Streams from a thread of its own; what is too much is dropped, and counted."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final

import redis

from observatory_storage.realtime import events
from observatory_storage.realtime.breaker import Breaker
from observatory_storage.realtime.landed import Landed

_log = logging.getLogger(__name__)

# Rows that wait to be published: less than a second of the fastest writer. `Landed.compact` bounds what each holds:
# 0.6 kB and four texts of 300 characters, or attributes of 1 kB; 100 MB for all of them where a character takes a byte,
# and 280 MB where each takes four.
_MOST_ROWS: Final = 50_000
# Entries sent in one piece.
_ENTRIES_AT_ONCE: Final = 50
_SIGNAL_ENTRIES: Final = 1_000
# How long the end of a pool waits for what is left.
_DRAIN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class PublishStats:
    """What became of the rows that writers of this process have committed since the pool was made.

    `dropped` were too many for the publisher, or Redis was away; followers miss them. `waiting` are on their way.
    """

    published: int = 0
    dropped: int = 0
    waiting: int = 0


class Publisher:
    """Takes rows from writers at once and sends them later; nothing here ever waits for Redis but its own thread.

    Holds 50,000 rows at most, or one batch that is larger, and of each row no more than an event shows: some 2 kB,
    however large the row is.
    """

    def __init__(
        self, client: redis.Redis, breaker: Breaker, *, prefix: bytes, max_entries: int, max_age_seconds: float
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._prefix = prefix
        self._max_entries = max_entries
        self._max_age_ms = round(max_age_seconds * 1000)
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._name = os.urandom(6).hex().encode()
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[Landed] = deque()
        self._rows = 0
        self._busy = False
        self._over = False
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._thread: threading.Thread | None = None
        self._is_refused = False

    def wants_rows(self) -> bool:
        """Tell whether it is worth collecting rows: somebody would get them."""
        return bool(self._max_entries) and self._breaker.allows()

    def offer(self, landed: Landed) -> None:
        """Take committed rows, or drop them; returns at once and raises nothing."""
        number = len(landed)
        if not number:
            return
        if self._pid != os.getpid():
            self._start_afresh()
        with self._changed:
            # One batch that is larger than all that may wait is taken alone.
            is_full = self._rows > 0 and self._rows + number > _MOST_ROWS
            if self._over or is_full or not self._has_thread():
                self._dropped[landed.signal] += number
                return
            landed.compact()
            self._waiting.append(landed)
            self._rows += number
            self._changed.notify_all()

    def miss(self, signal: str, number: int) -> None:
        """Count committed rows that nobody collected, because Redis was away."""
        if self._max_entries and number:
            if self._pid != os.getpid():
                self._start_afresh()
            with self._changed:
                self._dropped[signal] += number

    def stats(self) -> PublishStats:
        """Return what became of committed rows so far."""
        if self._pid != os.getpid():
            self._start_afresh()
        with self._changed:
            return PublishStats(self._published, self._dropped.total(), self._rows)

    def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Wait until all rows are sent or dropped, for so long at most."""
        if self._pid == os.getpid():
            with self._changed:
                self._changed.wait_for(lambda: not self._rows, seconds)

    def close(self) -> None:
        """Send what is left, for a second at most, and stop."""
        if self._pid != os.getpid():
            self._start_afresh()
        self.drain()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="observatory-publisher", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                landed = self._waiting.popleft()
                dropped = self._dropped[landed.signal]
            sent = 0
            try:
                if self._breaker.allows():
                    sent = self._publish(landed, dropped)
                self._is_refused = False
            except redis.RedisError as error:
                if isinstance(error, redis.ResponseError):
                    # Said once, as an outage is, and not for each commit.
                    _log.log(
                        logging.DEBUG if self._is_refused else logging.WARNING,
                        "committed rows could not be published: %s",
                        error,
                    )
                    self._is_refused = True
            except Exception:  # noqa: BLE001 - see below
                # Of rows that are committed nothing may stop the thread that tells of them.
                _log.exception("committed rows could not be published")
            finally:
                with self._changed:
                    self._rows -= len(landed)
                    self._published += sent
                    self._dropped[landed.signal] += len(landed) - sent
                    self._changed.notify_all()

    def _publish(self, landed: Landed, dropped: int) -> int:
        signal = landed.signal
        numbers: Counter[str] = Counter()
        pipeline = self._client.pipeline(transaction=False)
        for place, (project, number, content) in enumerate(events.encode(landed), 1):
            first = self._numbers[signal, project] + numbers[project]
            made: Any = events.fields(self._name, first, dropped, content)
            key = stream_key(self._prefix, project, signal)
            pipeline.xadd(key, made, maxlen=self._max_entries, approximate=True)
            numbers[project] += number
            if place % _ENTRIES_AT_ONCE == 0:
                self._send(pipeline)
        oldest = max(0, round(time.time() * 1000) - self._max_age_ms)
        for project in numbers:
            key = stream_key(self._prefix, project, signal)
            pipeline.sadd(self._prefix + b":projects", project)
            pipeline.xtrim(key, minid=oldest, approximate=True)
            # A stream that nobody writes to any more does not stay.
            pipeline.pexpire(key, self._max_age_ms)
            if signal == "logs":
                said: Any = {b"p": project}
                pipeline.xadd(committed_key(self._prefix), said, maxlen=_SIGNAL_ENTRIES, approximate=True)
        self._send(pipeline)
        self._numbers.update({(signal, project): number for project, number in numbers.items()})
        return numbers.total()

    def _send(self, pipeline: Any) -> None:
        with self._breaker.guarding():
            pipeline.execute()


def stream_key(prefix: bytes, project: str, signal: str) -> bytes:
    """Return the key of a project's stream of one signal."""
    return b"%b:events:%b:%b" % (prefix, signal.encode(), project.encode(errors="surrogatepass"))


def committed_key(prefix: bytes) -> bytes:
    """Return the key of the stream that says when log records were committed, and nothing of them."""
    return prefix + b":committed"


_all: Final[weakref.WeakSet[Publisher]] = weakref.WeakSet()


@atexit.register
def _drain_all() -> None:
    for publisher in list(_all):
        publisher.drain()
