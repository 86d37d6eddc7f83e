"""A queue of OTLP requests in a Redis Stream: producers append, workers take, and what is stored is deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import redis

from observatory_storage.config import RedisConfig
from observatory_storage.errors import ConfigurationError, QueueFullError, StorageError, UnavailableError
from observatory_storage.otlp import Signal

GROUP: Final = "workers"
DEFAULT_MAX_ENTRIES: Final = 100_000
DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
_LOOK_AGAIN_SECONDS: Final = 0.05
_SHORTEST_TIMEOUT_SECONDS: Final = 2.0

# Appends within the bounds: entries, and bytes of payload.
_PUT: Final = """
local held = tonumber(redis.call('GET', KEYS[2]) or '0')
-- Who deleted the stream by hand left the counter of its bytes.
if held ~= 0 and redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
  held = 0
end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) or held + tonumber(ARGV[3]) > tonumber(ARGV[2]) then
  return false
end
redis.call('INCRBY', KEYS[2], ARGV[3])
return redis.call('XADD', KEYS[1], '*', 'c', ARGV[4], 's', ARGV[5], 't', ARGV[6], 'p', ARGV[7])
"""
# Acknowledges and deletes, so that the stream holds what is left to do and nothing else.
_ACKNOWLEDGE: Final = """
local done = 0
for at = 2, #ARGV, 2 do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[at])
  if redis.call('XDEL', KEYS[1], ARGV[at]) == 1 then
    redis.call('DECRBY', KEYS[2], ARGV[at + 1])
    done = done + 1
  end
end
return done
"""
# Moves an entry to the dead letters, once; the oldest of these go where they are too many, or take too much.
_BURY: Final = """
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if #found == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DECRBY', KEYS[2], ARGV[3])
local fields = found[1][2]
for at = 6, #ARGV do fields[#fields + 1] = ARGV[at] end
redis.call('XADD', KEYS[3], '*', unpack(fields))
local held = redis.call('INCRBY', KEYS[4], ARGV[3])
local number = redis.call('XLEN', KEYS[3])
while number > 1 and (number > tonumber(ARGV[4]) or held > tonumber(ARGV[5])) do
  local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[3], oldest[1])
  for at = 1, #oldest[2], 2 do
    if oldest[2][at] == 'c' then held = redis.call('DECRBY', KEYS[4], #oldest[2][at + 1]) end
  end
  number = number - 1
end
return 1
"""
_FORGET: Final = "if redis.call('XDEL', KEYS[1], ARGV[1]) == 1 then redis.call('DECRBY', KEYS[2], ARGV[2]) end"
# Removes a consumer that has nothing pending, which would go with it.
_LEAVE: Final = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for at = 1, #consumer, 2 do about[consumer[at]] = consumer[at + 1] end
  if about.pending == 0 and (about.name == ARGV[2] or about.idle > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
  end
end
"""
_FORGOTTEN_CONSUMER_MS: Final = 3_600_000
_MOST_DEAD: Final = 1_000
# Idle requests that are looked at for one that no other worker takes over meanwhile.
_IDLE_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class QueuedBatch:
    """A request as it was appended; `deliveries` counts how often a worker has taken it, this time included.

    `signal` is whatever the producer said, which another release, or another program, may have been.
    """

    id: str
    payload: bytes
    signal: str
    content_type: str | None
    project: str | None
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that no worker could store, with the reason."""

    id: str
    reason: str
    deliveries: int
    batch: QueuedBatch


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What is in a queue at one moment.

    `depth` counts the requests that are not stored yet: those that wait for a worker (`lag`), and those that one has
    taken and not acknowledged (`pending`). `bytes` is the size of their payloads, `oldest_seconds` the age of the
    oldest, None where there is none; `dead` counts the dead letters, `consumers` the workers that are known.
    """

    depth: int
    lag: int
    pending: int
    bytes: int
    oldest_seconds: float | None
    dead: int
    consumers: int


class RedisIngestQueue:
    """Takes OTLP requests in, bounded, and gives them to workers; safe for threads.

    A request stays until a worker has committed it: a worker that dies is followed by another. It is as durable as
    Redis is told to be (`appendonly yes`), whose `maxmemory-policy` must be `noeviction`. All producers of a queue give
    it the same bounds.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str = "observatory",
        name: str = "ingest",
        max_entries: int = DEFAULT_MAX_ENTRIES,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._client = client
        self.name = name
        self._key = f"{namespace}:queue:{name}"
        self._bytes_key = f"{self._key}:bytes"
        self._dead_key = f"{self._key}:dead"
        self._dead_bytes_key = f"{self._key}:dead:bytes"
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._put = client.register_script(_PUT)
        self._acknowledge = client.register_script(_ACKNOWLEDGE)
        self._bury = client.register_script(_BURY)
        self._forget = client.register_script(_FORGET)
        self._leave = client.register_script(_LEAVE)

    @classmethod
    def from_config(cls, config: RedisConfig | None, *, name: str = "ingest", **bounds: int) -> Self:
        """Make a queue with a client of its own; raises ConfigurationError where no Redis is configured."""
        if config is None:
            raise ConfigurationError("a queue needs Redis, and none is configured: set REDIS_URL")
        client = redis.Redis.from_url(
            config.url.get_secret_value(),
            # A worker that waits for requests has no answer for half a second.
            socket_timeout=max(config.timeout_seconds, _SHORTEST_TIMEOUT_SECONDS),
            socket_connect_timeout=config.timeout_seconds,
            protocol=2,
        )
        return cls(client, namespace=config.namespace, name=name, **bounds)

    def put(
        self,
        payload: bytes,
        signal: Signal | str = Signal.TRACES,
        *,
        content_type: str | None = None,
        project: str | None = None,
        timeout_seconds: float = 0.0,
    ) -> str:
        """Append a request and return its id. It is not looked into; without a content type its bytes tell the format.

        `project` is for rows whose resource names none. Where the queue is full, waits for up to `timeout_seconds` and
        then raises QueueFullError: slow down, or refuse what comes in. Raises UnavailableError where Redis does not
        answer; the request may be in the queue all the same, and to give it again is safe: it is stored once.
        """
        signal = Signal(signal)
        if len(payload) > self._max_bytes:
            raise StorageError(
                f"a request of {len(payload):,} bytes is more than the queue holds ({self._max_bytes:,})"
            )
        given: list[Any] = [len(payload), payload, signal.value, content_type or "", project or ""]
        deadline = time.monotonic() + timeout_seconds
        while True:
            with _redis_errors():
                entry_id: Any = self._put(
                    keys=[self._key, self._bytes_key], args=[self._max_entries, self._max_bytes, *given]
                )
            if entry_id is not None:
                return str(entry_id, "ascii")
            if time.monotonic() >= deadline:
                raise QueueFullError(f"the queue {self.name} is full: workers are too slow, or there are none")
            time.sleep(_LOOK_AGAIN_SECONDS)

    def stats(self) -> QueueStats:
        """Count what is in the queue. Raises UnavailableError."""
        with _redis_errors():
            depth: Any = self._client.xlen(self._key)
            dead: Any = self._client.xlen(self._dead_key)
            held: Any = self._client.get(self._bytes_key)
            first: Any = self._client.xrange(self._key, count=1)
            seconds, microseconds = _pair(self._client.time())
            pending, consumers = self._group()
        age = seconds + microseconds / 1e6 - int(first[0][0].split(b"-")[0]) / 1000 if first else None
        return QueueStats(
            depth=depth,
            lag=max(0, depth - pending),
            pending=min(pending, depth),
            bytes=int(held or 0),
            oldest_seconds=None if age is None else max(0.0, age),
            dead=dead,
            consumers=consumers,
        )

    def take(self, consumer: str, count: int, block_seconds: float) -> list[QueuedBatch]:
        """Take requests that no worker has; waits for one for so long."""
        with _redis_errors():
            try:
                found = self._read(consumer, count, block_seconds)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self.make()
                found = self._read(consumer, count, block_seconds)
        return [_batch(entry_id, fields) for entry_id, fields in found]

    def claim(self, consumer: str, idle_seconds: float) -> QueuedBatch | None:
        """Take over a request that a worker took and did nothing about for so long: it died.

        One at a time, so that a request that kills its workers does not take others along to the dead letters.
        """
        idle_ms = round(idle_seconds * 1000)
        with _redis_errors():
            try:
                idle: Any = self._client.xpending_range(
                    self._key, GROUP, min="-", max="+", count=_IDLE_AT_ONCE, idle=idle_ms
                )
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self.make()
                return None
            for one in idle:
                entry_id = one["message_id"]
                found: Any = self._client.xclaim(
                    self._key, GROUP, consumer, min_idle_time=idle_ms, message_ids=[entry_id]
                )
                # Nothing where another worker was faster.
                if found and found[0][0] is not None:
                    return _batch(entry_id, found[0][1], one["times_delivered"] + 1)
                if found:
                    # Redis 6 keeps what was deleted by hand on its list of what is under way.
                    self._client.xack(self._key, GROUP, entry_id)
        return None

    def keep(self, consumer: str, batches: Sequence[QueuedBatch]) -> None:
        """Say that a worker is still at work on requests, so that nobody claims them."""
        with _redis_errors():
            self._client.xclaim(
                self._key, GROUP, consumer, min_idle_time=0, message_ids=[one.id for one in batches], justid=True
            )

    def acknowledge(self, batches: Sequence[QueuedBatch]) -> int:
        """Delete requests that are committed; returns how many were there."""
        given = [part for one in batches for part in (one.id, len(one.payload))]
        with _redis_errors():
            done: Any = self._acknowledge(keys=[self._key, self._bytes_key], args=[GROUP, *given])
        return int(done)

    def bury(self, batch: QueuedBatch, reason: str) -> None:
        """Move a request to the dead letters, of which the newest thousand stay, and no more than `max_bytes`."""
        said: list[Any] = ["r", reason[:1000].encode(errors="replace"), "n", batch.deliveries]
        keys = [self._key, self._bytes_key, self._dead_key, self._dead_bytes_key]
        with _redis_errors():
            self._bury(keys=keys, args=[GROUP, batch.id, len(batch.payload), _MOST_DEAD, self._max_bytes, *said])

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest dead letters, the newest first."""
        with _redis_errors():
            found: Any = self._client.xrevrange(self._dead_key, count=limit)
        return [
            DeadLetter(
                entry_id.decode("ascii"),
                fields.get(b"r", b"").decode(errors="replace"),
                int(fields.get(b"n", 1)),
                _batch(entry_id, fields),
            )
            for entry_id, fields in found
        ]

    def revive(self, letter: DeadLetter) -> str:
        """Append a dead letter anew, and remove it from the dead letters; raises QueueFullError.

        Raises StorageError for one whose signal this release does not know.
        """
        batch = letter.batch
        if batch.signal not in set(Signal):
            raise StorageError(f"the dead letter {letter.id} is of no known signal: {batch.signal!r}")
        entry_id = self.put(batch.payload, batch.signal, content_type=batch.content_type, project=batch.project)
        with _redis_errors():
            self._forget(keys=[self._dead_key, self._dead_bytes_key], args=[letter.id, len(batch.payload)])
        return entry_id

    def leave(self, consumer: str) -> None:
        """Forget a worker that ends, and those that ended an hour ago; none of whom requests are pending."""
        with _redis_errors():
            self._leave(keys=[self._key], args=[GROUP, consumer, _FORGOTTEN_CONSUMER_MS])

    def make(self) -> None:
        """Make the group of workers where it is not there."""
        with _redis_errors():
            try:
                self._client.xgroup_create(self._key, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _read(self, consumer: str, count: int, block_seconds: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self._client.xreadgroup(
            GROUP, consumer, {self._key: ">"}, count=count, block=max(1, round(block_seconds * 1000))
        )
        return [(entry_id, fields) for _, entries in found or [] for entry_id, fields in entries]

    def _group(self) -> tuple[int, int]:
        try:
            summary: Any = self._client.xpending(self._key, GROUP)
            consumers: Any = self._client.xinfo_consumers(self._key, GROUP)
        except redis.ResponseError:
            # Neither a worker nor a request was there yet.
            return 0, 0
        return int(summary["pending"]), len(consumers)


@contextmanager
def _redis_errors() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise UnavailableError(f"Redis does not do what it is asked: {error}") from error


def _batch(entry_id: bytes, fields: dict[bytes, bytes], deliveries: int = 1) -> QueuedBatch:
    return QueuedBatch(
        entry_id.decode("ascii"),
        fields.get(b"c", b""),
        fields.get(b"s", b"traces").decode(errors="replace"),
        fields.get(b"t", b"").decode(errors="replace") or None,
        fields.get(b"p", b"").decode(errors="replace") or None,
        deliveries,
    )


def _pair(value: Any) -> tuple[int, int]:
    seconds, microseconds = value
    return int(seconds), int(microseconds)
