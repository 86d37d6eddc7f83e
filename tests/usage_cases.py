"""Random trees of spans with nested model calls, and what usage they make by the definition alone."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

BASE = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0) - dt.timedelta(hours=6)
DIMENSIONS = ("project", "service_name", "provider", "model", "operation")
TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)
Span = dict[str, Any]


def make_tree(dice: random.Random, spans: int) -> list[Span]:
    """One trace: any span may be a model call, with or without usage, and parents may be missing or go in circles."""
    trace_id = dice.randbytes(16)
    ids = [dice.randbytes(8) for _ in range(spans)]
    rows: list[Span] = []
    for place, span_id in enumerate(ids):
        start = BASE + dt.timedelta(minutes=dice.randrange(180), microseconds=dice.randrange(10**6))
        parent = dice.choice(ids[max(0, place - 3) : place]) if place and dice.random() < 0.85 else None
        if dice.random() < 0.03:
            parent = dice.choice([*ids, dice.randbytes(8)])
        row: Span = {
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_span_id": parent,
            "name": f"step {place}",
            "service_name": dice.choice(["api", "worker", None]),
            "start_time": start,
            "end_time": start + dt.timedelta(microseconds=dice.choice([0, 1, 7, 950, 10**4, 10**7])),
            "status": dice.choice(["ok", "ok", "error"]),
            "counts_usage": False,
        }
        if dice.random() < 0.6:
            row |= {
                "counts_usage": True,
                "operation": dice.choice(["chat", "embeddings"]),
                "provider": dice.choice(["openai", None]),
                "model": dice.choice(["gpt-4o", "gpt-4o-mini", None]),
            }
            if dice.random() < 0.7:
                row |= {
                    "input_tokens": dice.randrange(2000),
                    "output_tokens": dice.randrange(300),
                    "cached_input_tokens": dice.choice([None, 10]),
                    "cache_write_input_tokens": dice.choice([None, 3]),
                    "reasoning_tokens": dice.choice([None, 7]),
                    "cost_usd": dice.choice([None, Decimal(dice.randrange(10**9)).scaleb(-12)]),
                    "ttft_us": dice.choice([None, 0, 45_000, 120_000]),
                }
        rows.append(row)
    return rows


def opened(span: Span, dice: random.Random) -> Span:
    """The same span as it was before it ended: with less usage, of another model, or no call yet."""
    return {
        **span,
        "end_time": None,
        "status": "unset",
        "output_tokens": None,
        "cost_usd": dice.choice([None, Decimal("0.000001")]),
        "model": dice.choice([span.get("model"), "unknown"]),
        "counts_usage": span["counts_usage"] and dice.random() < 0.7,
        "parent_span_id": span["parent_span_id"] if dice.random() < 0.9 else None,
    }


def stored_versions(delivered: Iterable[Span]) -> list[Span]:
    """What is stored of all that was delivered: a finished version before an open one."""
    found: dict[tuple[Any, ...], Span] = {}
    for span in delivered:
        key = (span["trace_id"], span["span_id"], span["start_time"])
        if key not in found or (found[key]["end_time"] is None and span["end_time"] is not None):
            found[key] = span
    return list(found.values())


def counted(spans: Sequence[Span]) -> list[Span]:
    """The model calls that count, by the definition: each asks all others of its trace."""
    traces: dict[bytes, list[Span]] = {}
    for span in spans:
        traces.setdefault(span["trace_id"], []).append(span)
    return [span for trace in traces.values() for span in trace if _counts(span, trace)]


def _counts(span: Span, trace: Sequence[Span]) -> bool:
    if not span["counts_usage"]:
        return False
    inside = [other for other in trace if other["counts_usage"] and span["span_id"] in _above(other, trace)]
    if _has_usage(span):
        return not any(map(_has_usage, inside))
    around = [other for other in trace if other["counts_usage"] and other["span_id"] in _above(span, trace)]
    return not inside and not any(_has_usage(other) and _counts(other, trace) for other in around)


def _above(span: Span, trace: Sequence[Span]) -> list[bytes]:
    parents = {other["span_id"]: other["parent_span_id"] for other in trace}

    def way(span_id: bytes) -> list[bytes]:
        found: list[bytes] = []
        at = parents[span_id]
        while at in parents and at not in found:
            found.append(at)
            at = parents[at]
        return found

    on_circles = {span_id for span_id in parents if span_id in way(span_id)}
    found: list[bytes] = []
    at = span["span_id"]
    while at not in on_circles and parents[at] in parents:
        at = parents[at]
        found.append(at)
    return found


def _has_usage(span: Span) -> bool:
    return any(span.get(name) for name in ("input_tokens", "output_tokens", "total_tokens", "cost_usd"))


def expected_usage(spans: Sequence[Span], names: Sequence[str] = ("hour", *DIMENSIONS)) -> dict[Any, dict[str, Any]]:
    """Sums over the calls that count, by hour and dimensions, with the values that the histograms are of."""
    groups: dict[Any, dict[str, Any]] = {}
    for span in counted(spans):
        start = span["start_time"]
        known = {name: span.get(name) or "" for name in DIMENSIONS} | {
            "hour": start.replace(minute=0, second=0, microsecond=0),
            "project": span.get("project") or "default",
        }
        group = groups.setdefault(
            tuple(known[name] for name in names),
            {
                **dict.fromkeys(("calls", "errors", "unpriced_calls", *TOKENS), 0),
                "cost_usd": Decimal(0),
                "latency": Counter(),
                "ttft": Counter(),
            },
        )
        group["calls"] += 1
        group["errors"] += span["status"] == "error"
        group["unpriced_calls"] += span.get("cost_usd") is None
        tokens = {**span}
        if tokens.get("input_tokens") is not None or tokens.get("output_tokens") is not None:
            tokens["total_tokens"] = (span.get("input_tokens") or 0) + (span.get("output_tokens") or 0)
        for name in TOKENS:
            group[name] += tokens.get(name) or 0
        group["cost_usd"] += span.get("cost_usd") or Decimal(0)
        if span["end_time"] is not None:
            group["latency"][(span["end_time"] - start) // dt.timedelta(microseconds=1)] += 1
        if span.get("ttft_us") is not None:
            group["ttft"][span["ttft_us"]] += 1
    return groups


def stored_usage(url: str) -> dict[Any, dict[str, Any]]:
    """The sum over all parts of the rollups, by hour and dimensions; groups without anything are left out."""
    found: dict[Any, dict[str, Any]] = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        for row in connection.execute("SELECT * FROM usage_rollups").fetchall():
            key = tuple(row[name] for name in ("hour", *DIMENSIONS))
            group = found.setdefault(key, {"latency": Counter(), "ttft": Counter()})
            for name in ("calls", "errors", "unpriced_calls", *TOKENS, "cost_usd"):
                group[name] = group.get(name, 0) + row[name]
            for name in ("latency", "ttft"):
                for bucket, size in zip(row[f"{name}_buckets"], row[f"{name}_counts"], strict=True):
                    group[name][bucket] += size
    for group in found.values():
        for name in ("latency", "ttft"):
            assert min(group[name].values(), default=0) >= 0
            group[name] = +group[name]
    return {key: group for key, group in found.items() if any(group.values())}


def in_buckets(usage: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The same with the values of the histograms replaced by their buckets."""
    from observatory_storage.usage.buckets import bucket_of

    def bucketed(values: Counter[int]) -> Counter[int]:
        counts: Counter[int] = Counter()
        for value, size in values.items():
            counts[bucket_of(value)] += size
        return counts

    return {
        key: {**group, "latency": bucketed(group["latency"]), "ttft": bucketed(group["ttft"])}
        for key, group in usage.items()
    }


def assert_usage_exact(url: str, delivered: Iterable[Span]) -> None:
    """Compare rollups, traces' totals and the spans' own columns with the definition."""
    spans = stored_versions(delivered)
    assert stored_usage(url) == in_buckets(expected_usage(spans))
    totals: dict[bytes, list[Any]] = {span["trace_id"]: [0, 0, 0, Decimal(0)] for span in spans}
    for span in counted(spans):
        has_tokens = span.get("input_tokens") is not None or span.get("output_tokens") is not None
        amounts = (span.get("input_tokens") or 0, span.get("output_tokens") or 0)
        total = sum(amounts) if has_tokens else span.get("total_tokens") or 0
        for place, amount in enumerate((*amounts, total, span.get("cost_usd") or 0)):
            totals[span["trace_id"]][place] += amount
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT id, input_tokens, output_tokens, total_tokens, cost_usd FROM traces"
        ).fetchall()
        marked = connection.execute(
            "SELECT trace_id, span_id, start_time FROM trace_spans WHERE counts_usage"
        ).fetchall()
        undecided = connection.execute("SELECT count(*) FROM trace_spans WHERE repeats_usage IS NULL").fetchall()
    assert {row[0].bytes: [*row[1:]] for row in rows} == totals
    keys = {(row[0].bytes, bytes(row[1]), row[2]) for row in marked}
    assert keys == {(span["trace_id"], span["span_id"], span["start_time"]) for span in counted(spans)}
    assert undecided == [(0,)]
