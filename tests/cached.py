"""What tests of the cache write, compare and look for."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

from observatory_storage import TraceWriter
from observatory_storage.models.base import Base
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import ReadCache

Row = dict[str, Any]
TIMEOUT = 0.2
"""How long the cache of a pool that `pool_on` makes waits for Redis, in seconds."""


def write(pool: StoragePool, rows: list[Row]) -> None:
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)


def columns_of(one: Base) -> Row:
    return {name: value for name, value in vars(one).items() if not name.startswith("_sa_")}


def key_of(pool: StoragePool, trace_id: bytes, kind: bytes) -> bytes:
    return f"observatory:{pool.config.postgres.database}:trace:".encode() + trace_id + kind


def cache_of(pool: StoragePool) -> ReadCache:
    assert pool.cache is not None
    return pool.cache


def pool_on(database_url: str, redis_url: str, **more: Any) -> StoragePool:
    settings: dict[str, Any] = {"redis_cache_timeout_seconds": TIMEOUT, "min_connections": 1, "max_connections": 10}
    return StoragePool.from_url(database_url, redis_url=redis_url, **settings, **more)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_child(work: Callable[[], int]) -> int:
    """What a small number that a forked child computes is."""
    with warnings.catch_warnings():
        # That there are threads is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        status = 255
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
