"""What Redis is good for, where there is one: a cache of reads, a stream of what was committed, a queue for ingest."""

from observatory_storage.realtime.cache import CacheStats, ReadCache
from observatory_storage.realtime.link import Realtime

__all__ = ["CacheStats", "ReadCache", "Realtime"]
