"""The clients of a pool's cache and streams, and what they have in common: one breaker."""

from __future__ import annotations

import os
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from observatory_storage.config import RedisConfig, StorageConfig
from observatory_storage.realtime.breaker import Breaker
from observatory_storage.realtime.cache import ReadCache
from observatory_storage.realtime.kinds import cache_kinds
from observatory_storage.realtime.publisher import Publisher
from observatory_storage.realtime.stream import LONGEST_BLOCK_SECONDS, EventStream, LogWatch

# Each follower holds one while it waits: as many as there are.
_MOST_FOLLOWERS: Final = 10_000
_LOCK_SECONDS: Final = 1.0


class Realtime:
    """What a pool does with Redis beside handing out its client. Connects when it is first used."""

    def __init__(self, config: StorageConfig, settings: RedisConfig) -> None:
        seconds = min(settings.cache_timeout_seconds, settings.timeout_seconds)
        options = _options(seconds)
        url = settings.url.get_secret_value()
        # Many readers share few connections, and wait for one.
        self._waiting_readers = redis.BlockingConnectionPool.from_url(
            url, max_connections=settings.pool_size, timeout=seconds, **options
        )
        self._readers = redis.Redis(connection_pool=self._waiting_readers)
        # Writers, the publisher, the probe and followers take no reader's connection.
        self._others = redis.Redis.from_url(url, max_connections=_MOST_FOLLOWERS, **options)
        self._prefix = f"{settings.namespace}:{config.postgres.database or ''}".encode(errors="surrogatepass")
        self.breaker = Breaker(self._probe)
        self.cache = ReadCache(
            self._readers,
            self._others,
            self.breaker,
            cache_kinds(settings),
            prefix=self._prefix,
            max_bytes=settings.cache_max_bytes,
        )
        self.publisher = Publisher(
            self._others,
            self.breaker,
            prefix=self._prefix,
            max_entries=settings.stream_max_entries,
            max_age_seconds=settings.stream_max_age_seconds,
        )
        self.stream = EventStream(
            self._others, self.breaker, self.publisher, prefix=self._prefix, block_seconds=self._block_seconds(seconds)
        )
        self._watches_logs = bool(settings.stream_max_entries)
        self._timeout_seconds = seconds

    def watch_logs(self, project: str | None) -> LogWatch | None:
        """Return what waits for log records of a project, or of all; None where none are published."""
        if not self._watches_logs:
            return None
        block_seconds = self._block_seconds(self._timeout_seconds)
        return LogWatch(self._others, self.breaker, prefix=self._prefix, project=project, block_seconds=block_seconds)

    def close(self) -> None:
        """Publish what is left, for a second at most, and close all idle connections. May be called again.

        One that another thread waits on at this moment is left to it, until it is garbage: closed beneath it, redis-py
        raises whatever its reader meets then, an AttributeError say.
        """
        self.publisher.close()
        self.breaker.stop()
        _close_idle(self._waiting_readers)
        self._others.connection_pool.disconnect(inuse_connections=False)

    def _probe(self) -> None:
        self._others.ping()
        self.cache.deliver_pending()

    def _block_seconds(self, timeout_seconds: float) -> float:
        # An answer that is waited for must come before the connection is given up.
        return min(LONGEST_BLOCK_SECONDS, timeout_seconds / 2)


def _close_idle(connections: redis.BlockingConnectionPool) -> None:
    """Close what nobody uses, while nobody is handed it: such a pool gives out by its queue, and closes without it."""
    if connections.pid != os.getpid():
        # All in there is the parent's, whose thread may have held the lock when it forked.
        return
    waiting = connections.pool
    # A signal handler may have come while its own thread holds it.
    if waiting.mutex.acquire(timeout=_LOCK_SECONDS):
        try:
            for connection in waiting.queue:
                if connection is not None:
                    connection.disconnect()
        finally:
            waiting.mutex.release()


def _options(timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "protocol": 2,
        # At once and once more, for a connection that a restart of Redis left stale; a timeout is not tried again.
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
