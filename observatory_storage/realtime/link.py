"""The clients of a pool's cache and streams, and what they have in common: one breaker."""

from __future__ import annotations

from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from observatory_storage.config import RedisConfig, StorageConfig
from observatory_storage.realtime.breaker import Breaker
from observatory_storage.realtime.cache import CacheStats, ReadCache
from observatory_storage.realtime.kinds import cache_kinds

BLOCK_SECONDS: Final = 0.1
"""How long a reader of a stream waits on its connection before it looks up."""


class Realtime:
    """What a pool does with Redis beside handing out its client. Connects when it is first used."""

    def __init__(self, config: StorageConfig, settings: RedisConfig) -> None:
        seconds = min(settings.cache_timeout_seconds, settings.timeout_seconds)
        self._client = make_client(settings, seconds)
        self.breaker = Breaker(self._probe)
        self.prefix = f"{settings.namespace}:{config.postgres.database or ''}".encode()
        self.cache = ReadCache(
            self._client,
            self.breaker,
            cache_kinds(settings),
            prefix=self.prefix,
            max_bytes=settings.cache_max_bytes,
        )

    def stats(self) -> CacheStats:
        """Return what became of reads."""
        return self.cache.stats()

    def close(self) -> None:
        """Close its connections. May be called again."""
        self.breaker.stop()
        self._client.close()

    def _probe(self) -> None:
        self._client.ping()
        self.cache.deliver_pending()


def make_client(settings: RedisConfig, timeout_seconds: float) -> redis.Redis:
    """Return a client that waits for so long, for an answer and for one of its connections to be free."""
    pool = redis.BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=settings.pool_size,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        protocol=2,
        # At once and once more, for a connection that a restart of Redis left stale; a timeout is not tried again.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        retry_on_timeout=False,
    )
    return redis.Redis(connection_pool=pool)
