"""The PostgreSQL store for LLM telemetry, in your own database.

Importing the package opens nothing and reads no environment; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from observatory_storage.config import StorageConfig
    from observatory_storage.errors import (
        BufferFullError,
        ConfigurationError,
        DecodeError,
        IntegrityError,
        InvalidFilterError,
        NotFoundError,
        PoolTimeoutError,
        QueueFullError,
        RejectedRowError,
        StorageError,
        UnavailableError,
        WriteError,
    )
    from observatory_storage.llm import LlmSpan
    from observatory_storage.policies import RetentionPolicy
    from observatory_storage.pool import StoragePool
    from observatory_storage.realtime import RedisIngestQueue, TailFilters
    from observatory_storage.repositories import (
        LogFilters,
        LogRepository,
        MetricFilters,
        MetricRepository,
        Page,
        SpanFilters,
        TimeSeriesQuery,
        TraceDetail,
        TraceFilters,
        TraceRepository,
        UsageQuery,
        UsageRepository,
    )
    from observatory_storage.unit_of_work import UnitOfWork
    from observatory_storage.writers import (
        CopyWriter,
        IngestWorker,
        LogWriter,
        MetricWriter,
        TraceWriter,
        WriteMethod,
        WriterConfig,
    )

__version__ = "0.1.0"

__all__ = [
    "BufferFullError",
    "ConfigurationError",
    "CopyWriter",
    "DecodeError",
    "IngestWorker",
    "IntegrityError",
    "InvalidFilterError",
    "LlmSpan",
    "LogFilters",
    "LogRepository",
    "LogWriter",
    "MetricFilters",
    "MetricRepository",
    "MetricWriter",
    "NotFoundError",
    "Page",
    "PoolTimeoutError",
    "QueueFullError",
    "RedisIngestQueue",
    "RejectedRowError",
    "RetentionPolicy",
    "SpanFilters",
    "StorageConfig",
    "StorageError",
    "StoragePool",
    "TailFilters",
    "TimeSeriesQuery",
    "TraceDetail",
    "TraceFilters",
    "TraceRepository",
    "TraceWriter",
    "UnavailableError",
    "UnitOfWork",
    "UsageQuery",
    "UsageRepository",
    "WriteError",
    "WriteMethod",
    "WriterConfig",
]

# A worker that only writes needs neither the repositories nor Alembic: what is not used costs no start-up time.
_HOMES: Final = {
    "BufferFullError": "errors",
    "ConfigurationError": "errors",
    "CopyWriter": "writers",
    "DecodeError": "errors",
    "IngestWorker": "writers",
    "IntegrityError": "errors",
    "InvalidFilterError": "errors",
    "LlmSpan": "llm",
    "LogFilters": "repositories",
    "LogRepository": "repositories",
    "LogWriter": "writers",
    "MetricFilters": "repositories",
    "MetricRepository": "repositories",
    "MetricWriter": "writers",
    "NotFoundError": "errors",
    "Page": "repositories",
    "PoolTimeoutError": "errors",
    "QueueFullError": "errors",
    "RedisIngestQueue": "realtime",
    "RejectedRowError": "errors",
    "RetentionPolicy": "policies",
    "SpanFilters": "repositories",
    "StorageConfig": "config",
    "StorageError": "errors",
    "StoragePool": "pool",
    "TailFilters": "realtime",
    "TimeSeriesQuery": "repositories",
    "TraceDetail": "repositories",
    "TraceFilters": "repositories",
    "TraceRepository": "repositories",
    "TraceWriter": "writers",
    "UnavailableError": "errors",
    "UnitOfWork": "unit_of_work",
    "UsageQuery": "repositories",
    "UsageRepository": "repositories",
    "WriteError": "errors",
    "WriteMethod": "writers",
    "WriterConfig": "writers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
