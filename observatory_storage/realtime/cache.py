"""A read-through cache in Redis: leases against stale fills and stampedes, a breaker against outages.

A key holds a value, or a lease: a random token of the one reader that is reading the value from PostgreSQL. That
reader's value is stored only where its lease still stands, and a writer that has committed deletes the key, lease or
value. So a value that was read before a commit is never stored after that commit was announced.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, TypeVar

import redis

from observatory_storage.caching import Cached
from observatory_storage.realtime.breaker import Breaker
from observatory_storage.realtime.codec import UnfitError
from observatory_storage.realtime.kinds import CacheKind

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LEASE: Final = b"L"
_RAW: Final = b"R"
_PACKED: Final = b"Z"
# How long a lease stands whose holder says nothing more, and how long others wait for its holder before one of them
# takes it over.
_LEASE_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 1.0
_LOOK_AGAIN_SECONDS: Final = 0.01
# A trace of 200 spans, 337 kB, takes a fifth of the room packed, and 0.7 ms of 2.1 to unpack.
_PACK_BYTES: Final = 64 * 1024
# A thousand times as much is what deflate can make of the smallest: that was not ours.
_MOST_UNPACKED: Final = 200
_FORGOTTEN_AT_ONCE: Final = 1000
# Traces that could not be forgotten while Redis was away: about 150 bytes each.
_MOST_PENDING: Final = 100_000

_OF_TRACE: Final = {Cached.TRACE: b"t", Cached.TRACE_DETAIL: b"d", Cached.TRACE_STATISTICS: b"s"}

# Stores a value in the place of the lease, if that is still there.
_FILL: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
# Deletes all that is kept of traces whose ids, 16 bytes each, come in one piece: a command with as many keys takes
# the client four times as long.
_FORGET: Final = """
local ids = ARGV[1]
for at = 1, #ids, 16 do
  local key = KEYS[1] .. string.sub(ids, at, at + 15)
  redis.call('UNLINK', key .. 't', key .. 'd', key .. 's')
end
"""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What became of reads in this process since the pool was made.

    Each read is one of these: a `hit` was answered from the cache, a `miss` was read from PostgreSQL and stored, a
    `bypass` was read from PostgreSQL without the cache (Redis is away, or somebody else's read took too long), and so
    was an `error`, because a command failed. `joined` are the hits that waited for a read that was under way.
    `unfit` counts the misses whose value was not stored: too large, or not to be encoded; `refused` those that a
    write had overtaken. `forgotten` counts traces that writes dropped, `pending` those that are to be dropped as soon
    as Redis is back. `is_open` tells whether the breaker keeps reads away from Redis, `openings` how often it has.
    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    bypasses: int = 0
    joined: int = 0
    unfit: int = 0
    refused: int = 0
    forgotten: int = 0
    pending: int = 0
    is_open: bool = False
    openings: int = 0
    hits_by_kind: Mapping[str, int] = field(default_factory=dict)
    misses_by_kind: Mapping[str, int] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float | None:
        """The part of all reads that the cache answered; None before the first."""
        reads = self.hits + self.misses + self.errors + self.bypasses
        return self.hits / reads if reads else None


class _Flight:
    """A read under way in this process, for whoever waits for it."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.value: bytes | None = None


class ReadCache:
    """Keeps what repositories read; safe for threads and forks.

    A value is no older than its time to live, counted from before it was read, whatever happens to the messages of
    writers; where they arrive, it is no older than the last commit that its writer has returned from. `prefix` tells
    databases apart.
    """

    def __init__(
        self,
        client: redis.Redis,
        writers_client: redis.Redis,
        breaker: Breaker,
        kinds: Mapping[Cached, CacheKind],
        *,
        prefix: bytes,
        max_bytes: int,
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._kinds = kinds
        self._trace_prefix = prefix + b":trace:"
        self._other_prefix = prefix + b":other:"
        self._max_bytes = max_bytes
        self._trace_seconds = max((kinds[kind].ttl_seconds for kind in _OF_TRACE if kind in kinds), default=0.0)
        self._fill = client.register_script(_FILL)
        # Writers do not stand in line with readers.
        self._forget = writers_client.register_script(_FORGET)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._by_kind: Counter[tuple[str, Cached]] = Counter()
        self._flights: dict[bytes, _Flight] = {}
        self._pending: dict[bytes, object] = {}
        self._stale_until = 0.0

    def read(self, kind: Cached, key: bytes, load: Callable[[], T]) -> T:
        """Return the value that is kept, or what `load` returns, which is then kept; raises what `load` raises.

        Waits for Redis no longer than its timeout, once for each outage, and for another reader of the same value
        no longer than a second.
        """
        if self._pid != os.getpid():
            self._start_afresh()
        ttl_seconds = self._kinds[kind].ttl_seconds if kind in self._kinds else 0.0
        if not ttl_seconds:
            return load()
        if not self._breaker.allows() or self._pending:
            self._count("bypasses")
            return load()
        name = self._name(kind, key)
        try:
            found = self._look(kind, name)
        except redis.RedisError as error:
            _log.debug("a read went past the cache: %s", error)
            self._count("errors")
            return load()
        if isinstance(found, _Lease):
            return self._load(kind, name, found, load)
        if found is None:
            self._count("bypasses")
            return load()
        try:
            value: T = self._kinds[kind].codec.decode(self._unpack(found))
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, zlib.error) as error:
            # Somebody else's bytes under our key.
            _log.warning("what the cache holds for a %s cannot be read, and is dropped: %s", kind, error)
            self._count("errors")
            self._delete(name)
            return load()
        self._count("hits", kind)
        return value

    def forget_traces(self, trace_ids: Iterable[bytes]) -> None:
        """Drop all that is kept of some traces, after the commit that changed them; raises nothing.

        Where Redis does not take it, this process reads nothing from the cache until it has.
        """
        if self._pid != os.getpid():
            self._start_afresh()
        ids = list(trace_ids)
        if not ids or not self._trace_seconds:
            return
        if self._breaker.allows():
            try:
                self._send_forgotten(ids)
            except redis.RedisError as error:
                # First kept, then said: the probe that closes the breaker looks for them once more afterwards.
                self._keep_pending(ids)
                self._breaker.open(error)
        else:
            self._keep_pending(ids)
            if self._breaker.allows():
                # It closed in between, and its last look may have been too early.
                try:
                    self.deliver_pending()
                except redis.RedisError as error:
                    self._breaker.open(error)

    def deliver_pending(self) -> None:
        """Drop what could not be dropped while Redis was away; raises redis.RedisError where it still is.

        What was too much to remember is waited for until it has expired.
        """
        if time.monotonic() < self._stale_until:
            raise redis.ConnectionError("what could not be announced has not expired yet")
        while True:
            with self._lock:
                owed = dict(self._pending)
            if not owed:
                return
            self._send_forgotten(list(owed))
            with self._lock:
                # What a commit changed again meanwhile is owed again.
                for key, note in owed.items():
                    if self._pending.get(key) is note:
                        del self._pending[key]

    def stats(self) -> CacheStats:
        """Return what became of reads so far; asks nobody."""
        if self._pid != os.getpid():
            self._start_afresh()
        with self._lock:
            counts, by_kind = self._counts.copy(), self._by_kind.copy()
        return CacheStats(
            hits=counts["hits"],
            misses=counts["misses"],
            errors=counts["errors"],
            bypasses=counts["bypasses"],
            joined=counts["joined"],
            unfit=counts["unfit"],
            refused=counts["refused"],
            forgotten=counts["forgotten"],
            pending=len(self._pending),
            is_open=not self._breaker.allows(),
            openings=self._breaker.openings,
            hits_by_kind={str(kind): number for (what, kind), number in by_kind.items() if what == "hits"},
            misses_by_kind={str(kind): number for (what, kind), number in by_kind.items() if what == "misses"},
        )

    def _name(self, kind: Cached, key: bytes) -> bytes:
        if kind in _OF_TRACE:
            return self._trace_prefix + key + _OF_TRACE[kind]
        return self._other_prefix + kind.encode() + b":" + blake2b(key, digest_size=16).digest()

    def _look(self, kind: Cached, name: bytes) -> bytes | _Lease | None:
        """Return the value, or a lease to read it with, or None where somebody else reads it for too long."""
        shape = self._kinds[kind].codec.shape
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            found = self._get(name)
            if found is not None and found[:1] != _LEASE and found[1:5] == shape:
                return found
            flight = self._flights.get(found) if found is not None else None
            if flight is not None:
                # Its lease stood a moment ago, so that no write has overtaken that read.
                flight.landed.wait(deadline - time.monotonic())
                if flight.value is not None:
                    self._count("joined")
                # Where there is no value, none is to be had: each asks for itself.
                return flight.value
            if found is not None and found[:1] == _LEASE and time.monotonic() < deadline:
                time.sleep(_LOOK_AGAIN_SECONDS)
                continue
            # Nothing, another release's value, or the lease of a reader that died or takes too long.
            lease = self._take(name, found)
            if lease is not None:
                return lease

    def _take(self, name: bytes, instead_of: bytes | None) -> _Lease | None:
        lease = _Lease(_LEASE + os.urandom(12))
        # Known before it stands, so that whoever meets it finds it.
        self._flights[lease.token] = flight = _Flight()
        milliseconds = round(_LEASE_SECONDS * 1000)
        is_taken = False
        try:
            with self._breaker.guarding():
                if instead_of is None:
                    is_taken = bool(self._client.set(name, lease.token, nx=True, px=milliseconds))
                else:
                    is_taken = bool(self._fill(keys=[name], args=[instead_of, lease.token, milliseconds]))
        finally:
            if not is_taken:
                del self._flights[lease.token]
                flight.landed.set()
        return lease if is_taken else None

    def _load(self, kind: Cached, name: bytes, lease: _Lease, load: Callable[[], T]) -> T:
        flight = self._flights[lease.token]
        started = time.monotonic()
        stored = b""
        try:
            value = load()
            self._count("misses", kind)
            try:
                flight.value = self._pack(kind, value)
            except UnfitError:
                self._count("unfit")
            else:
                if len(flight.value) <= self._max_bytes:
                    stored = flight.value
                else:
                    self._count("unfit")
        finally:
            flight.landed.set()
            del self._flights[lease.token]
            left_seconds = self._kinds[kind].ttl_seconds - (time.monotonic() - started)
            self._settle(name, lease, stored if left_seconds > 0.001 else b"", left_seconds)
        return value

    def _settle(self, name: bytes, lease: _Lease, stored: bytes, left_seconds: float) -> None:
        if not self._breaker.allows():
            return
        try:
            with self._breaker.guarding():
                is_kept = self._fill(keys=[name], args=[lease.token, stored, max(1, round(left_seconds * 1000))])
        except redis.ResponseError as error:
            _log.debug("a value was not stored: %s", error)
            # Redis has no room for the value, say: nobody is to wait for it.
            with suppress(redis.RedisError), self._breaker.guarding():
                self._fill(keys=[name], args=[lease.token, b"", 1])
        except redis.RedisError as error:
            _log.debug("a value was not stored: %s", error)
        else:
            if stored and not is_kept:
                self._count("refused")

    def _pack(self, kind: Cached, value: object) -> bytes:
        codec = self._kinds[kind].codec
        data = codec.encode(value)
        if len(data) > _MOST_UNPACKED * self._max_bytes:
            raise UnfitError("too large to be unpacked again")
        if len(data) < _PACK_BYTES:
            return _RAW + codec.shape + data
        return _PACKED + codec.shape + zlib.compress(data, 1)

    def _unpack(self, stored: bytes) -> bytes:
        if stored[:1] == _PACKED:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(stored[5:], _MOST_UNPACKED * self._max_bytes)
            if not unpacking.eof:
                raise ValueError("cut short, or more than any value is")
            return data
        if stored[:1] != _RAW:
            raise ValueError("neither packed nor plain")
        return stored[5:]

    def _get(self, name: bytes) -> bytes | None:
        with self._breaker.guarding():
            found = self._client.get(name)
        assert found is None or isinstance(found, bytes)
        return found

    def _delete(self, name: bytes) -> None:
        try:
            with self._breaker.guarding():
                self._client.delete(name)
        except redis.RedisError as error:
            _log.debug("a value was not dropped: %s", error)

    def _send_forgotten(self, ids: list[bytes]) -> None:
        for first in range(0, len(ids), _FORGOTTEN_AT_ONCE):
            self._forget(keys=[self._trace_prefix], args=[b"".join(ids[first : first + _FORGOTTEN_AT_ONCE])])
        self._count("forgotten", number=len(ids))

    def _keep_pending(self, ids: list[bytes]) -> None:
        with self._lock:
            if len(self._pending) + len(ids) > _MOST_PENDING:
                self._pending.clear()
                self._stale_until = time.monotonic() + self._trace_seconds
            else:
                self._pending.update(dict.fromkeys(ids, object()))

    def _count(self, what: str, kind: Cached | None = None, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number
            if kind is not None:
                self._by_kind[what, kind] += number


@dataclass(frozen=True, slots=True)
class _Lease:
    token: bytes
