"""Decides, under the locks of their traces, which stored model calls count, and what that changes."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psycopg

from observatory_storage.usage import statements
from observatory_storage.usage.nesting import Node, find_repeats
from observatory_storage.usage.sums import AMOUNTS, DIMENSIONS, Key, UsageSums, hour_of

Connection = psycopg.Connection[Any]


class _Span(NamedTuple):
    trace_id: bytes
    span_id: bytes
    start_time: dt.datetime
    parent_id: bytes | None
    counts: bool
    repeats: bool | None
    has_usage: bool

    @property
    def key(self) -> tuple[bytes, bytes, dt.datetime]:
        return self[:3]

    @property
    def is_call(self) -> bool:
        return self.counts or self.repeats is True

    @property
    def is_summed(self) -> bool:
        """Whether the rollups have its usage."""
        return self.counts and self.repeats is not None


def recount(connection: Connection, trace_ids: Iterable[bytes], sums: UsageSums) -> int:
    """Apply the rule to traces that the caller has locked; what changes goes to `sums`. Returns how many spans did.

    To be called in a statement that is younger than the locks. Spans that the rollups do not have yet are added.
    """
    ids = [uuid.UUID(bytes=key) for key in sorted(set(trace_ids))]
    if not ids:
        return 0
    with connection.cursor(binary=True) as cursor:
        cursor.execute(statements.SPANS_OF_TRACES, {"ids": ids})
        spans = sorted(map(_Span._make, cursor.fetchall()), key=lambda span: span.trace_id)
    changes: dict[tuple[bytes, bytes, dt.datetime], tuple[bool, int]] = {}
    for _, group in itertools.groupby(spans, key=lambda span: span.trace_id):
        changes |= _changes(list(group))
    if not changes:
        return 0
    _mark(connection, changes, sums)
    changed = sorted({uuid.UUID(bytes=key[0]) for key in changes})
    connection.execute(statements.RECOUNT_TRACES, {"ids": changed, "now": dt.datetime.now(dt.UTC)})
    return len(changes)


def insert_parts(connection: Connection, sums: UsageSums) -> None:
    """Append the sums to the rollups; the caller commits them with what they are sums of."""
    rows = sums.encode()
    if rows is not None:
        connection.execute(statements.INSERT_PARTS, {"rows": rows.decode(), "part": uuid.uuid4()})


def add_calls(sums: UsageSums, found: Iterable[tuple[int, int, Sequence[Any]]]) -> None:
    """Add calls, each with its sign, the number of its hour, and its `DIMENSIONS` and `AMOUNTS`."""
    width = len(DIMENSIONS)
    groups: dict[tuple[Any, ...], list[Sequence[Any]]] = {}
    for sign, hour, values in found:
        groups.setdefault((sign, hour, *values[:width]), []).append(values[width:])
    for (sign, *key), calls in groups.items():
        sums.add(Key(*key), dict(zip(AMOUNTS, zip(*calls, strict=True), strict=True)), len(calls), sign)


def _changes(spans: Sequence[_Span]) -> dict[tuple[bytes, bytes, dt.datetime], tuple[bool, int]]:
    """Return by key whether a call counts, and what that adds to the rollups, where it is not noted so."""
    nodes = [Node(span.span_id, span.parent_id, span.is_call, span.has_usage) for span in spans]
    return {
        span.key: (not is_repeat, (not is_repeat) - span.is_summed)
        for span, is_repeat in zip(spans, find_repeats(nodes), strict=True)
        if span.is_call and (span.repeats is None or span.repeats != is_repeat)
    }


def _mark(
    connection: Connection, changes: dict[tuple[bytes, bytes, dt.datetime], tuple[bool, int]], sums: UsageSums
) -> None:
    given = {
        "trace_ids": [uuid.UUID(bytes=key[0]) for key in changes],
        "span_ids": [key[1] for key in changes],
        "start_times": [key[2] for key in changes],
        "counts": [counts for counts, _ in changes.values()],
    }
    with connection.cursor(binary=True) as cursor:
        cursor.execute(statements.MARK_SPANS.encode(), given)
        changed = ((changes[row[:3]][1], row) for row in cursor)
        add_calls(sums, ((sign, hour_of(row[2]), row[3:]) for sign, row in changed if sign))
