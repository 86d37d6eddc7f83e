"""What Redis is good for, where there is one: a cache of reads, a stream of what was committed, a queue for ingest."""

from observatory_storage.realtime.cache import CacheStats, ReadCache
from observatory_storage.realtime.events import Event, LogEvent, PointEvent, SpanEvent
from observatory_storage.realtime.link import Realtime
from observatory_storage.realtime.publisher import PublishStats
from observatory_storage.realtime.queue import DeadLetter, QueuedBatch, QueueStats, RedisIngestQueue
from observatory_storage.realtime.stream import EventStream, EventTail, LogWatch
from observatory_storage.realtime.tail_filters import TailFilters

__all__ = [
    "CacheStats",
    "DeadLetter",
    "Event",
    "EventStream",
    "EventTail",
    "LogEvent",
    "LogWatch",
    "PointEvent",
    "PublishStats",
    "QueueStats",
    "QueuedBatch",
    "ReadCache",
    "Realtime",
    "RedisIngestQueue",
    "SpanEvent",
    "TailFilters",
]
