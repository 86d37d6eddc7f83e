"""The Redis client of a pool: optional, and missed by nobody while it is away."""

from __future__ import annotations

import logging
import time
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from observatory_storage.config import RedisConfig

logger = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS: Final = 5.0


class RedisLink:
    """Gives the client while Redis answers, and None while it does not.

    An unreachable Redis is a warning, once for each outage. It is asked at most every 5 s, when the client is
    asked for.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._client = redis.Redis.from_url(
            config.url.get_secret_value(),
            max_connections=config.pool_size,
            socket_timeout=config.timeout_seconds,
            socket_connect_timeout=config.timeout_seconds,
            # One more attempt, at once: a connection that a restart of Redis left stale fails the first.
            retry=Retry(NoBackoff(), 1),
        )
        self._answers: bool | None = None
        self._asked = 0.0

    @property
    def client(self) -> redis.Redis | None:
        """Return the client, or None while Redis does not answer."""
        waited = time.monotonic() - self._asked
        if self._answers is None or waited >= _ASK_AGAIN_SECONDS:
            try:
                self.ping()
            except redis.RedisError:
                return None
        return self._client if self._answers else None

    def ping(self) -> float:
        """Ask Redis and return its answering time in milliseconds; raises redis.RedisError."""
        self._asked = started = time.monotonic()
        try:
            self._client.ping()
        except redis.RedisError as error:
            if self._answers is not False:
                logger.warning("Redis does not answer, going on without it: %s", error)
            self._answers = False
            raise
        if self._answers is False:
            logger.info("Redis answers again")
        self._answers = True
        return (time.monotonic() - started) * 1000

    def close(self) -> None:
        """Close its connections. May be called again."""
        self._client.close()
