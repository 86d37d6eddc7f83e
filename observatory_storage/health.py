"""What a health check found, as values."""

from __future__ import annotations

from dataclasses import dataclass

from observatory_storage.connections import PoolStats
from observatory_storage.migrations import SchemaState


@dataclass(frozen=True)
class PostgresHealth:
    """PostgreSQL's answer; where there was none, `error` says why and the rest is None.

    `latency_ms` is one round trip on a pooled connection. `warning` names a limit that is near.
    """

    latency_ms: float | None = None
    server_version: str | None = None
    schema: SchemaState | None = None
    warning: str | None = None
    error: str | None = None

    @property
    def healthy(self) -> bool:
        """Tell whether the server answers; the schema's revision is another matter."""
        return self.error is None


@dataclass(frozen=True)
class RedisHealth:
    """Redis's answer; where there was none, `error` says why."""

    latency_ms: float | None = None
    error: str | None = None

    @property
    def healthy(self) -> bool:
        """Tell whether Redis answers."""
        return self.error is None


@dataclass(frozen=True)
class HealthReport:
    """Both servers' answers and the pool's numbers; `redis` is None where none is configured."""

    postgres: PostgresHealth
    redis: RedisHealth | None
    pool: PoolStats

    @property
    def healthy(self) -> bool:
        """Tell whether telemetry can be stored: PostgreSQL answers with this release's schema.

        Redis is not needed for that.
        """
        schema = self.postgres.schema
        return self.postgres.healthy and schema is not None and schema.is_current
