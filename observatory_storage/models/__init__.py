"""The tables as declarative models."""

from observatory_storage.models.base import Base
from observatory_storage.models.log import LogRecord
from observatory_storage.models.message import Message, MessagePack, MessageUse
from observatory_storage.models.metric import Metric, MetricDataPoint, MetricSeries
from observatory_storage.models.rows import (
    DataPointRow,
    EventRow,
    LogRow,
    MetricRow,
    ResourceRow,
    SpanRow,
    TraceRow,
)
from observatory_storage.models.trace import Resource, Trace, TraceEvent, TraceSpan
from observatory_storage.models.usage import UsageRollup

__all__ = [
    "Base",
    "DataPointRow",
    "EventRow",
    "LogRecord",
    "LogRow",
    "Message",
    "MessagePack",
    "MessageUse",
    "Metric",
    "MetricDataPoint",
    "MetricRow",
    "MetricSeries",
    "Resource",
    "ResourceRow",
    "SpanRow",
    "Trace",
    "TraceEvent",
    "TraceRow",
    "TraceSpan",
    "UsageRollup",
]
