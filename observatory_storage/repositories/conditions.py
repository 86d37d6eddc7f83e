"""Filters as conditions of SQL."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, Text, func, literal, literal_column, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from observatory_storage.models import Trace, TraceSpan
from observatory_storage.repositories.attributes import span_attributes, trace_attributes
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.results import TraceTimes

# Written out and not as parameters, so that every plan can prove the partial index on errors.
_ERROR: Final = literal_column("'error'", Text)
# A trace that only log events name has neither; it is there to be locked, and nothing to be read.
_IS_KNOWN: Final = or_(Trace.start_time.is_not(None), Trace.name.is_not(None), Trace.own_status, Trace.own_attributes)
HAS_ERROR: Final = or_(Trace.status == _ERROR, Trace.error_count > literal_column("0"))


def within(column: InstrumentedAttribute[dt.datetime], times: TraceTimes) -> list[ColumnElement[bool]]:
    """Return that a span's start lies within the times of traces; a bound that they lack is left out."""
    conditions: list[ColumnElement[bool]] = []
    if times.start_time is not None:
        conditions.append(column >= times.start_time)
    if times.end_time is not None:
        conditions.append(column <= times.end_time)
    return conditions


def trace_conditions(
    filters: TraceFilters, *, by_span_index: bool, since: dt.datetime | None = None
) -> list[ColumnElement[bool]]:
    """Return what a trace must fulfil; `by_span_index` finds the spans of the model before their traces.

    With `since` it must have begun by then or later, and only such spans are looked at.
    """
    conditions = [*_common_conditions(Trace, filters), _IS_KNOWN]
    if since is not None:
        # By a subquery, whose value no plan knows: where the statistics are older than the newest traces PostgreSQL
        # would expect a handful in the place of a thousand, probe all of them and sort.
        conditions.append(Trace.start_time >= select(_moment(since)).scalar_subquery())
    if filters.attributes is not None:
        conditions += trace_attributes(filters.attributes, filters)
    if filters.has_error is not None:
        conditions.append(HAS_ERROR if filters.has_error else ~HAS_ERROR)
    if filters.model is None and filters.provider is None:
        return conditions
    if by_span_index:
        spans = select(TraceSpan.trace_id).where(*model_conditions(filters))
        return [*conditions, Trace.id.in_(spans)]
    span = (
        select(literal_column("1", Integer))
        .select_from(TraceSpan)
        .where(
            TraceSpan.trace_id == Trace.id,
            TraceSpan.start_time >= func.coalesce(Trace.start_time, literal_column("'-infinity'::timestamptz")),
            TraceSpan.start_time <= func.coalesce(Trace.end_time, literal_column("'infinity'::timestamptz")),
            *model_conditions(filters),
            # As a value, so that the plan is of the partitions since then alone.
            *([] if since is None else [TraceSpan.start_time >= _moment(since)]),
        )
        # OFFSET keeps the planner from making a join of it: it takes the order of the index on traces for
        # worthless then, and reads them all (60 ms in the place of 2 ms, 200,000 traces in 60 partitions).
        .offset(literal_column("0"))
    )
    return [*conditions, span.exists()]


def _moment(time: dt.datetime) -> ColumnElement[dt.datetime]:
    return literal(time, Trace.start_time.type)


def span_conditions(filters: SpanFilters) -> list[ColumnElement[bool]]:
    """Return what a span must fulfil."""
    conditions = _common_conditions(TraceSpan, filters)
    if filters.attributes is not None:
        conditions += span_attributes(filters.attributes, filters)
    for column, value in (
        (TraceSpan.model, filters.model),
        (TraceSpan.provider, filters.provider),
        (TraceSpan.operation, filters.operation),
        (TraceSpan.environment, filters.environment),
    ):
        if value is not None:
            conditions.append(column == value)
    return conditions


def model_conditions(filters: TraceFilters) -> list[ColumnElement[bool]]:
    """Return what a span of a trace must fulfil for the filters on model and provider."""
    conditions: list[ColumnElement[bool]] = []
    if filters.project is not None:
        conditions.append(TraceSpan.project == filters.project)
    if filters.model is not None:
        conditions.append(TraceSpan.model == filters.model)
    if filters.provider is not None:
        conditions.append(TraceSpan.provider == filters.provider)
    if filters.start_time_from is not None:
        # No span starts before its trace.
        conditions.append(TraceSpan.start_time >= filters.start_time_from)
    return conditions


def contains_text(column: ColumnElement[Any] | InstrumentedAttribute[Any], text: str) -> ColumnElement[bool]:
    """Return that a column contains a text in any case."""
    return column.ilike(pattern_of(text), escape="\\")


def pattern_of(text: str) -> str:
    """Return the pattern of texts that contain a text, with a backslash before what would mean something else."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _common_conditions(
    table: type[Trace | TraceSpan], filters: TraceFilters | SpanFilters
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.project is not None:
        conditions.append(table.project == filters.project)
    if filters.service_name is not None:
        conditions.append(table.service_name == filters.service_name)
    if filters.status is not None:
        conditions.append(table.status == (_ERROR if filters.status == "error" else filters.status))
    if filters.start_time_from is not None:
        conditions.append(table.start_time >= filters.start_time_from)
    if filters.start_time_before is not None:
        conditions.append(table.start_time < filters.start_time_before)
    if filters.min_duration_us is not None:
        conditions.append(table.duration_us >= filters.min_duration_us)
    if filters.max_duration_us is not None:
        conditions.append(table.duration_us <= filters.max_duration_us)
    if filters.user_id is not None:
        conditions.append(table.user_id == filters.user_id)
    if filters.session_id is not None:
        conditions.append(table.session_id == filters.session_id)
    if filters.name is not None:
        conditions.append(contains_text(table.name, filters.name))
    return conditions
