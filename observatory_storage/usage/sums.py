"""Adds up what model calls used, by hour and dimensions, into rows of `usage_rollups`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from observatory_storage.identity import content_id
from observatory_storage.usage.buckets import arrays, count_buckets

HOUR_US: Final = 3_600_000_000
DIMENSIONS: Final = ("project", "service_name", "provider", "model", "operation")
"""What usage is told apart by."""

TOKENS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)
AMOUNTS: Final = ("status", *TOKENS, "cost_usd", "duration_us", "ttft_us")
"""The columns of spans that usage is summed up from."""

_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_HOUR: Final = dt.timedelta(hours=1)
# Amounts have at most 15 digits before the point and 30 behind it: no sum is rounded.
_EXACT: Final = Context(prec=100)
# Beyond, a dimension is cut: it is a name, and stands in every row.
_LONGEST: Final = 255


class Key(NamedTuple):
    """Where a call's usage belongs; `hour` counts from 2000 on."""

    hour: int
    project: str
    service_name: str | None = None
    provider: str | None = None
    model: str | None = None
    operation: str | None = None


@dataclass(slots=True)
class _Cell:
    calls: int = 0
    errors: int = 0
    unpriced_calls: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    cost_usd: Decimal = Decimal(0)
    latency: Counter[int] = field(default_factory=Counter)
    ttft: Counter[int] = field(default_factory=Counter)

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing would change by it: as many calls came as went, and with the same amounts."""
        plain = (self.calls, self.errors, self.unpriced_calls, self.cost_usd)
        return not (any(plain) or any(any(one.values()) for one in (self.tokens, self.latency, self.ttft)))


class UsageSums:
    """Signed sums of usage. Integers and decimals: the order in which calls are added does not matter."""

    def __init__(self) -> None:
        self._cells: dict[Key, _Cell] = {}
        self._encoded: bytes | None = None

    def add(self, key: Key, columns: Mapping[str, Sequence[Any]], calls: int, sign: int = 1) -> None:
        """Add some calls, whose `AMOUNTS` are given by column, or take them out; an absent column is all null."""
        self._encoded = None
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
        cell.calls += sign * calls
        if "status" in columns:
            cell.errors += sign * columns["status"].count("error")
        for name in TOKENS:
            if name in columns:
                cell.tokens[name] += sign * sum(filter(None, columns[name]))
        costs = [cost for cost in columns.get("cost_usd", ()) if cost is not None]
        cell.unpriced_calls += sign * (calls - len(costs))
        if costs:
            with localcontext(_EXACT):
                cell.cost_usd += sign * sum(costs, Decimal(0))
        for counts, name in ((cell.latency, "duration_us"), (cell.ttft, "ttft_us")):
            if name in columns:
                found = count_buckets(columns[name])
                if sign > 0:
                    counts.update(found)
                else:
                    counts.subtract(found)

    def clear(self) -> None:
        """Forget all calls."""
        self._cells.clear()
        self._encoded = None

    def encode(self) -> bytes | None:
        """Return the rows as JSON, as `statements.INSERT_PARTS` takes them; None where there is none.

        They are encoded once, until something is added.
        """
        if self._encoded is None:
            rows = [_row(key, cell) for key, cell in sorted(self._cells.items(), key=_order) if not cell.is_empty]
            self._encoded = orjson.dumps(rows) if rows else None
        return self._encoded


def hour_of(time: dt.datetime) -> int:
    """Return the number of the hour that a time lies in."""
    return (time - _EPOCH) // _HOUR


def _row(key: Key, cell: _Cell) -> dict[str, Any]:
    names = tuple((name or "")[:_LONGEST] for name in key[1:])
    latency_buckets, latency_counts = arrays(cell.latency)
    ttft_buckets, ttft_counts = arrays(cell.ttft)
    return {
        "key_id": key_id(*names),
        "hour": (_EPOCH + key.hour * _HOUR).isoformat(),
        **dict(zip(DIMENSIONS, names, strict=True)),
        "calls": cell.calls,
        "errors": cell.errors,
        "unpriced_calls": cell.unpriced_calls,
        **{name: cell.tokens[name] for name in TOKENS},
        "cost_usd": str(cell.cost_usd),
        "latency_buckets": latency_buckets,
        "latency_counts": latency_counts,
        "ttft_buckets": ttft_buckets,
        "ttft_counts": ttft_counts,
    }


@lru_cache(maxsize=4096)
def key_id(*dimensions: str) -> str:
    """Return the content address of `DIMENSIONS`, of which an absent one is empty."""
    return str(uuid.UUID(bytes=content_id("usage", *dimensions)))


def _order(item: tuple[Key, _Cell]) -> tuple[Any, ...]:
    return tuple((name or "") for name in item[0][1:]), item[0].hour
