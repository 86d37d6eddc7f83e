"""Follows what writers have committed, live, by way of Redis Streams."""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import redis

from observatory_storage.errors import UnavailableError
from observatory_storage.realtime import events
from observatory_storage.realtime.breaker import Breaker
from observatory_storage.realtime.events import Event
from observatory_storage.realtime.publisher import Publisher, PublishStats, committed_key, stream_key
from observatory_storage.realtime.tail_filters import TailFilters
from observatory_storage.realtime.tail_position import Counted, Place, TailPosition, before
from observatory_storage.repositories.filter_model import check_time, refusal
from observatory_storage.repositories.log_follow import duration_problems

LONGEST_BLOCK_SECONDS: Final = 0.1
"""How long a reader waits on its connection before it looks up, at most."""

_ENTRIES_AT_ONCE: Final = 100
# How soon a project is followed that nobody had written to before.
_PROJECTS_SECONDS: Final = 1.0
_NEVER: Final = "0-0"
# Publishers of a stream, the latest, that a position has the numbers of.
_PUBLISHERS_KEPT: Final = 8


class EventStream:
    """What a pool's writers publish, and how to follow it.

    Redis keeps the last entries of each project and signal, for a time (`REDIS_STREAM_…`). It is a live view: what a
    writer had to drop, because Redis was away or too slow, or what was trimmed before it was read, is missing, and
    counted. What nobody may miss is read from PostgreSQL, as `LogRepository.stream_logs` does.
    """

    def __init__(
        self, client: redis.Redis, breaker: Breaker, publisher: Publisher, *, prefix: bytes, block_seconds: float
    ) -> None:
        self._block_seconds = block_seconds
        self._client = client
        self._breaker = breaker
        self._publisher = publisher
        self._prefix = prefix

    def tail(
        self,
        filters: TailFilters | None = None,
        *,
        position: str | None = None,
        since: dt.datetime | None = None,
        idle_timeout_seconds: float | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> EventTail:
        """Return an iterator over the events that are committed from now on, for ever; any number may run at once.

        Those of one stream, that is of one signal and project, come in the order in which they were published. None
        comes that was rolled back. `position`, an earlier tail's, goes on after the last event of that one, and
        `since` begins with what was published from then on, as far as Redis still has it. Ends when `stop` returns
        true, which is asked before each event and ten times a second, or when there was nothing for
        `idle_timeout_seconds`. While Redis is away the iterator waits, and then goes on where it was; raises
        UnavailableError where it is away at the beginning.
        """
        problems = (
            [] if idle_timeout_seconds is None else [*duration_problems("idle_timeout_seconds", idle_timeout_seconds)]
        )
        if position is not None and since is not None:
            problems.append("position: give it or since, not both")
        if problems:
            raise refusal(*problems)
        place = TailPosition(_NEVER)
        if position is not None:
            try:
                place = TailPosition.decode(position)
            except ValueError as error:
                raise refusal(f"position: {error}") from error
        elif since is not None:
            moment = check_time("since", since)
            place = TailPosition(f"{max(0, int(moment.timestamp() * 1000))}-0")
        else:
            place = TailPosition(self._now())
        return EventTail(
            self._client,
            self._breaker,
            filters or TailFilters(),
            place,
            prefix=self._prefix,
            block_seconds=self._block_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            stop=stop,
        )

    def stats(self) -> PublishStats:
        """Return what became of the rows that this process's writers have committed."""
        return self._publisher.stats()

    def _now(self) -> str:
        try:
            with self._breaker.guarding():
                seconds, microseconds = _pair(self._client.time())
        except redis.RedisError as error:
            raise UnavailableError(f"Redis does not answer: {error}") from error
        return f"{seconds * 1000 + microseconds // 1000}-0"


class _Step(NamedTuple):
    """An event that waits to be returned, and where its reader is then."""

    event: Event
    key: tuple[str, str]
    place: Place
    publisher: bytes
    counted: Counted


class EventTail(Iterator[Event]):
    """Events as they are published, as `EventStream.tail` returns it. Not for several threads at once."""

    def __init__(
        self,
        client: redis.Redis,
        breaker: Breaker,
        filters: TailFilters,
        position: TailPosition,
        *,
        prefix: bytes,
        block_seconds: float,
        idle_timeout_seconds: float | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.missed = 0
        """How many events are known to have been dropped or trimmed before they came here, whatever the filters."""
        self._client = client
        self._breaker = breaker
        self._block_seconds = block_seconds
        self._filters = filters
        self._since = position.since
        self._seen = dict(position.places)
        self._prefix = prefix
        self._idle_timeout_seconds = idle_timeout_seconds
        self._stop = stop
        self._counted = {key: dict(known) for key, known in position.counted.items()}
        self._events: deque[_Step] = deque()
        self._streams: dict[bytes, tuple[str, str]] = {}
        self._read_to = {key: before(place.id) if place.number else place.id for key, place in self._seen.items()}
        self._known_at: float | None = None
        self._publishers: dict[tuple[bytes, tuple[str, str]], int] = {}
        self._dropped: dict[tuple[bytes, str], int] = {}
        for key, known in self._counted.items():
            for name, counted in known.items():
                self._publishers[name, key] = counted.next
                self._dropped[name, key[0]] = max(counted.dropped, self._dropped.get((name, key[0]), 0))
        self._idle_since = time.monotonic()

    @property
    def position(self) -> str:
        """The place after the last event that was returned, as text that `tail` goes on from."""
        return TailPosition(self._since, self._seen, self._counted).encode()

    def __iter__(self) -> Self:
        self._idle_since = time.monotonic()
        return self

    def __next__(self) -> Event:
        while not self._is_over():
            if self._events:
                event, key, place, publisher, counted = self._events.popleft()
                self._pass(key, place, publisher, counted)
                self._idle_since = time.monotonic()
                return event
            self._read()
        raise StopIteration

    def _is_over(self) -> bool:
        if self._stop is not None and self._stop():
            return True
        timeout = self._idle_timeout_seconds
        return timeout is not None and not self._events and time.monotonic() - self._idle_since >= timeout

    def _read(self) -> None:
        if not self._breaker.allows():
            time.sleep(LONGEST_BLOCK_SECONDS)
            return
        try:
            with self._breaker.guarding():
                self._find_streams()
                found = self._next_entries()
        except redis.ResponseError as error:
            raise UnavailableError(f"Redis does not do what it is asked: {error}") from error
        except redis.RedisError:
            return
        for name, entries in found:
            key = self._streams[name]
            for entry_id, fields in entries:
                self._take(key, entry_id.decode("ascii"), fields)

    def _find_streams(self) -> None:
        now = time.monotonic()
        if self._known_at is not None and (self._filters.project is not None or now < self._known_at):
            return
        if self._filters.project is not None:
            projects = {self._filters.project}
        else:
            members: Any = self._client.smembers(self._prefix + b":projects")
            projects = {project.decode(errors="surrogatepass") for project in members}
        for project in projects:
            for signal in self._filters.signals:
                self._streams[stream_key(self._prefix, project, signal)] = (signal, project)
        self._known_at = now + _PROJECTS_SECONDS

    def _next_entries(self) -> Sequence[tuple[bytes, Sequence[tuple[bytes, Mapping[bytes, bytes]]]]]:
        if not self._streams:
            time.sleep(LONGEST_BLOCK_SECONDS)
            return []
        places: Any = {name: self._read_to.get(key, before(self._since)) for name, key in self._streams.items()}
        found: Any = self._client.xread(places, count=_ENTRIES_AT_ONCE, block=max(1, round(self._block_seconds * 1000)))
        return found or []

    def _take(self, key: tuple[str, str], entry_id: str, found: Mapping[bytes, bytes]) -> None:
        self._read_to[key] = entry_id
        entry = events.decode(*key, found)
        if entry is None:
            if not self._events:
                self._seen[key] = Place(entry_id)
            return
        self._note_gaps(key, entry)
        # A position within an entry skips what was returned of it.
        seen = self._seen.get(key)
        skipped = seen.number if seen is not None and seen.id == entry_id else 0
        number = len(entry.events)
        for at, event in enumerate(entry.events[skipped:], skipped + 1):
            if self._filters.let_through(event):
                counted = Counted(entry.first + at, entry.dropped)
                self._events.append(_Step(event, key, Place(entry_id, at % number), entry.publisher, counted))
        if not self._events:
            self._pass(key, Place(entry_id), entry.publisher, Counted(entry.first + number, entry.dropped))

    def _pass(self, key: tuple[str, str], place: Place, publisher: bytes, counted: Counted) -> None:
        """Note that a reader is past a place, and what its publisher had told until then."""
        self._seen[key] = place
        known = self._counted.setdefault(key, {})
        known.pop(publisher, None)
        known[publisher] = counted
        if len(known) > _PUBLISHERS_KEPT:
            del known[next(iter(known))]

    def _note_gaps(self, key: tuple[str, str], entry: events.Entry) -> None:
        stream = (entry.publisher, key)
        expected = self._publishers.get(stream)
        if expected is not None and entry.first > expected:
            self.missed += entry.first - expected
        self._publishers[stream] = entry.first + len(entry.events)
        publisher = (entry.publisher, key[0])
        self.missed += max(0, entry.dropped - self._dropped.get(publisher, entry.dropped))
        self._dropped[publisher] = entry.dropped


class LogWatch:
    """Waits until somebody says that log records were committed; it says nothing of them and may be wrong.

    What it is good for: to look into PostgreSQL at once, and not only when it is time.
    """

    def __init__(
        self, client: redis.Redis, breaker: Breaker, *, prefix: bytes, project: str | None, block_seconds: float
    ) -> None:
        self._client = client
        self._block_seconds = block_seconds
        self._breaker = breaker
        self._key = committed_key(prefix)
        self._project = None if project is None else project.encode(errors="surrogatepass")
        self._last: bytes | None = None

    def wait(self, seconds: float) -> bool:
        """Wait up to so long; tells whether there may be something new. Raises nothing."""
        started = time.monotonic()
        if self._breaker.allows():
            try:
                with self._breaker.guarding():
                    return self._wait(seconds)
            except redis.RedisError:
                self._last = None
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
        return False

    def _wait(self, seconds: float) -> bool:
        if self._last is None:
            # Whatever was said before this moment may have been missed.
            newest: Any = self._client.xrevrange(self._key, count=1)
            self._last = newest[0][0] if newest else b"0-0"
            return True
        block = max(1, round(min(seconds, self._block_seconds) * 1000))
        found: Any = self._client.xread({self._key: self._last}, count=1000, block=block)
        if not found:
            return False
        entries = found[0][1]
        self._last = entries[-1][0]
        return self._project is None or any(fields.get(b"p") == self._project for _, fields in entries)


def _pair(value: Any) -> tuple[int, int]:
    seconds, microseconds = value
    return int(seconds), int(microseconds)
