"""What tests of the cache write, compare and look for."""

from __future__ import annotations

from typing import Any

from observatory_storage import TraceWriter
from observatory_storage.models.base import Base
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import ReadCache

Row = dict[str, Any]


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
