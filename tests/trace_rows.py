"""Traces, spans and events for tests of reading: plain rows, stored without the writers."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from observatory_storage.models import Base, Resource, Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool

NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
Row = dict[str, Any]


def at(seconds: float = 0, *, days: int = 0) -> dt.datetime:
    """A time so long after noon of the first day."""
    return NOON + dt.timedelta(days=days, seconds=seconds)


def trace_id(name: object) -> uuid.UUID:
    """An id that looks random, always the same for a name."""
    return uuid.UUID(bytes=hashlib.sha256(str(name).encode()).digest()[:16])


def span_id(number: int) -> str:
    return f"{number:016x}"


def trace(key: object, /, **columns: Any) -> Row:
    """A trace row; with a start it ends 10 s later unless told otherwise."""
    row: Row = {"id": trace_id(key), "name": f"trace {key}", **columns}
    start = row.get("start_time")
    # A trace of which nothing is known but its id is not listed.
    row.setdefault("own_status", start is None and row["name"] is None)
    if start is not None:
        row.setdefault("end_time", start + dt.timedelta(seconds=10))
        if row["end_time"] is not None:
            row.setdefault("duration_us", (row["end_time"] - start) // dt.timedelta(microseconds=1))
    return row


def span(of: Row, number: int, **columns: Any) -> Row:
    """A span row of a trace, which starts with it unless told otherwise."""
    return {
        "trace_id": of["id"],
        "span_id": span_id(number),
        "start_time": of.get("start_time"),
        "project": of.get("project", "default"),
        "name": f"span {number}",
        **columns,
    }


def span_event(of: Row, index: int, **columns: Any) -> Row:
    """An event row of a span, at the span's start unless told otherwise."""
    return {
        "trace_id": of["trace_id"],
        "span_id": of["span_id"],
        "span_start_time": of["start_time"],
        "event_index": index,
        "timestamp": of["start_time"],
        "name": f"event {index}",
        **columns,
    }


def store(
    pool: StoragePool,
    traces: Iterable[Row] = (),
    spans: Iterable[Row] = (),
    events: Iterable[Row] = (),
    resources: Iterable[Row] = (),
) -> None:
    """Insert and commit rows."""
    given: Mapping[type[Base], Iterable[Row]] = {
        Resource: resources,
        Trace: traces,
        TraceSpan: spans,
        TraceEvent: events,
    }
    with pool.session() as session:
        for table, rows in given.items():
            given_rows = list(rows)
            if given_rows:
                session.execute(sa.insert(table), given_rows)
        session.commit()


def count(pool: StoragePool, table: type[Base]) -> int:
    with pool.session() as session:
        return session.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def make_partitions(pool: StoragePool, days: int) -> None:
    """Give spans and events a partition for each of the first days, beside DEFAULT."""
    with pool.session() as session:
        for table in ("trace_spans", "trace_events"):
            for number in range(days):
                day = (NOON + dt.timedelta(days=number)).date()
                session.execute(
                    sa.text(
                        f"CREATE TABLE {table}_p{day:%Y%m%d} PARTITION OF {table} "
                        f"FOR VALUES FROM ('{day} 00:00+00') TO ('{day + dt.timedelta(days=1)} 00:00+00')"
                    )
                )
        session.commit()


def plans_of(pool: StoragePool, call: Callable[[], object]) -> list[str]:
    """Run a call, and return the plan of each statement that it sent, with the same parameters."""
    sent: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:
        sent.append((arguments[2], arguments[3]))

    event.listen(pool.engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        event.remove(pool.engine, "before_cursor_execute", note)
    plans = []
    with pool.session() as session:
        for statement, parameters in sent:
            # Not as small tables are read best.
            session.execute(sa.text("SET LOCAL enable_seqscan = off"))
            session.execute(sa.text("SET LOCAL enable_bitmapscan = off"))
            lines = session.connection().exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters)
            plans.append("\n".join(line for (line,) in lines))
    return plans


def partitions_in(plan: str) -> set[str]:
    """The partitions that a plan reads."""
    return set(re.findall(r"on (trace_(?:spans|events)_\w+)", plan))


def cost(number: int) -> Decimal:
    """An amount that binary floating point cannot hold."""
    return Decimal(number) / Decimal("1000")
