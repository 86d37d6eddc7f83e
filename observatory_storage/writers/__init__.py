"""Writing: `TraceWriter`, `MetricWriter` and `LogWriter` for telemetry, `CopyWriter` for bare COPY."""

from observatory_storage.writers.buffer import BufferStats
from observatory_storage.writers.config import WriteMethod, WriterConfig
from observatory_storage.writers.copy import CopyWriter
from observatory_storage.writers.log import LogWriter, LogWriteStats
from observatory_storage.writers.metric import MetricWriter, MetricWriteStats
from observatory_storage.writers.trace import TraceWriter, WriteStats
from observatory_storage.writers.worker import IngestWorker, WorkerStats

__all__ = [
    "BufferStats",
    "CopyWriter",
    "IngestWorker",
    "LogWriteStats",
    "LogWriter",
    "MetricWriteStats",
    "MetricWriter",
    "TraceWriter",
    "WorkerStats",
    "WriteMethod",
    "WriteStats",
    "WriterConfig",
]
