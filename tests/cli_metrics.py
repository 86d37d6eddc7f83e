"""Metrics for tests of the command `metrics`: points of the last minutes, and what the command says of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from observatory_storage.pool import StoragePool
from tests.command_line import Outcome, invoke
from tests.signals import write_points

BOUNDS = [0.5, 1.0, 2.0, 4.0]
_now = dt.datetime.now(dt.UTC)


def begin_minute() -> None:
    """Let the present minute be that of the clock; each test begins with it."""
    global _now
    _now = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)


def now() -> dt.datetime:
    """When the present minute began."""
    return _now


def point(metric: dict[str, Any], minutes: float, model: str | None = None, **columns: Any) -> dict[str, Any]:
    """A point so many minutes ago."""
    return {
        "metric": {"service_name": "api", "temporality": "unspecified", "is_monotonic": False, **metric},
        "attributes": {} if model is None else {"gen_ai.request.model": model},
        "timestamp": _now - dt.timedelta(minutes=minutes),
        "start_time": _now - dt.timedelta(hours=5),
        **columns,
    }


def counter(minutes: float, total: int, model: str | None = None, name: str = "llm.tokens") -> dict[str, Any]:
    metric = {"name": name, "metric_type": "counter", "unit": "{token}", "is_monotonic": True}
    return point(metric | {"temporality": "cumulative"}, minutes, model, value=float(total), value_int=total)


def gauge(minutes: float, value: float, model: str | None = None, name: str = "queue", **metric: Any) -> dict[str, Any]:
    return point({"name": name, "metric_type": "gauge", "unit": "1", **metric}, minutes, model, value=value)


def histogram(minutes: float, counts: list[int], total: float, model: str | None = None) -> dict[str, Any]:
    metric = {"name": "llm.duration", "metric_type": "histogram", "unit": "s", "temporality": "delta"}
    figures = {"bucket_bounds": BOUNDS, "bucket_counts": counts, "count": sum(counts), "sum": total}
    return point(metric, minutes, model, **figures)


def store(pool: StoragePool, *rows: dict[str, Any]) -> None:
    _, rejected = write_points(pool, rows)
    assert rejected == []


def rising(model: str, by: int, minutes: Iterable[int] = range(30, -1, -1)) -> list[dict[str, Any]]:
    """A counter that rises by so much a minute."""
    return [counter(minute, by * place, model) for place, minute in enumerate(minutes, 1)]


def metrics(url: str, *arguments: str, **settings: str) -> Outcome:
    return invoke("metrics", "--database-url", url, *arguments, environment=settings)


def drawn(url: str, *arguments: str) -> Any:
    """The JSON of a metric."""
    done = metrics(url, "--json", *arguments)
    assert (done.status, done.stderr) == (0, "")
    return done.json


def values(series: dict[str, Any]) -> list[float]:
    return [point["value"] for point in series["points"] if point["value"] is not None]
