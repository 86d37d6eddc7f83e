"""Writing: `TraceWriter` for telemetry, `CopyWriter` for bare COPY."""

from observatory_storage.writers.buffer import BufferStats
from observatory_storage.writers.config import WriteMethod, WriterConfig
from observatory_storage.writers.copy import CopyWriter
from observatory_storage.writers.trace import TraceWriter, WriteStats

__all__ = ["BufferStats", "CopyWriter", "TraceWriter", "WriteMethod", "WriteStats", "WriterConfig"]
