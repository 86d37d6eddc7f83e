"""Filters on attributes of spans, of which some may be stored once, among the messages."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Integer, and_, cast, column, func, literal_column, or_, select, true
from sqlalchemy.dialects.postgresql import JSONB

from observatory_storage.models import MessagePack, Trace, TraceSpan
from observatory_storage.models.message import ATTRIBUTES, may_be_shared
from observatory_storage.repositories.content import first_period, holds
from observatory_storage.repositories.filters import SpanFilters, TraceFilters


def span_attributes(wanted: Mapping[str, Any], filters: SpanFilters) -> list[ColumnElement[bool]]:
    """Return what the attributes of a span must fulfil, wherever they are stored."""
    own, shared = _parted(wanted)
    conditions: list[ColumnElement[bool]] = [TraceSpan.attributes.contains(own)] if own or not shared else []
    for one in shared:
        referring = _refers_to(one, filters, before=filters.start_time_before)
        conditions.append(or_(TraceSpan.attributes.contains(one), referring))
    return conditions


def trace_attributes(wanted: Mapping[str, Any], filters: TraceFilters) -> list[ColumnElement[bool]]:
    """Return what the attributes of a trace must fulfil: its own where it was given some, else those of its root."""
    own, shared = _parted(wanted)
    conditions: list[ColumnElement[bool]] = [Trace.attributes.contains(own)] if own or not shared else []
    for one in shared:
        # A root may start later than its trace, and so than the later bound of the filters, but not earlier.
        since = [] if filters.start_time_from is None else [TraceSpan.start_time >= filters.start_time_from]
        root = (
            select(literal_column("1", Integer))
            .select_from(TraceSpan)
            .where(
                TraceSpan.trace_id == Trace.id,
                TraceSpan.span_id == Trace.root_span_id,
                TraceSpan.start_time == Trace.root_start_time,
                _refers_to(one, filters, before=None),
                *since,
            )
        )
        conditions.append(or_(Trace.attributes.contains(one), and_(~Trace.own_attributes, root.exists())))
    return conditions


def _parted(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the attributes that are always in a span's own column, and each of the others by itself."""
    own = {name: value for name, value in wanted.items() if not may_be_shared(name)}
    return own, [{name: value} for name, value in wanted.items() if name not in own]


def _refers_to(
    wanted: dict[str, Any], filters: TraceFilters | SpanFilters, *, before: dt.datetime | None
) -> ColumnElement[bool]:
    """Return whether a span refers to an attribute that is stored once and contains what is wanted.

    The packs of the time range are read once a query, when the first span asks; a span is then compared with the ids of
    those that match, and looked at closely where it has one.
    """
    found = (
        func.jsonb_array_elements(MessagePack.messages)
        .table_valued(column("message", JSONB), with_ordinality="place", name="found")
        .render_derived()
    )
    matching = (
        select(MessagePack.id.label("pack_id"), (cast(found.c.place, Integer) - 1).label("position"))
        .select_from(MessagePack)
        .join(found, true())
        .where(MessagePack.messages.contains([wanted]), found.c.message.contains(wanted), *_bounds(filters, before))
        .cte()
    )
    packs = select(func.array_agg(matching.c.pack_id)).scalar_subquery()
    exact = holds(matching.c.pack_id, matching.c.position, part=ATTRIBUTES, among=matching)
    return and_(TraceSpan.content_refs.bool_op("&&")(packs), exact)


def _bounds(filters: TraceFilters | SpanFilters, before: dt.datetime | None) -> Iterator[ColumnElement[bool]]:
    since = first_period(filters.start_time_from)
    if since is not None:
        yield MessagePack.period >= since
    if before is not None:
        yield MessagePack.period < before
    if filters.project is not None:
        yield MessagePack.project == filters.project
