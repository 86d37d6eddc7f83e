"""The statements that read traces, spans and events: one function for each.

A trace's spans and events are always bounded by the trace's own times, so that PostgreSQL looks at its days
alone. A bound that the trace lacks is left out: nothing is lost, and every partition is looked at.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar, TypeVarTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Dialect,
    Double,
    Integer,
    Numeric,
    Select,
    Uuid,
    any_,
    cast,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.orm import InstrumentedAttribute, defer
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.types import TypeDecorator, TypeEngine

from observatory_storage.models import Resource, Trace, TraceEvent, TraceSpan
from observatory_storage.repositories.conditions import (
    HAS_ERROR,
    model_conditions,
    span_conditions,
    trace_conditions,
    within,
)
from observatory_storage.repositories.cursor import SpanCursor
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.name_search import Names, newest_of_each
from observatory_storage.repositories.results import TraceTimes

_Number = TypeVar("_Number", int, Decimal)
_Columns = TypeVarTuple("_Columns")

_TRACE_CONTENT: Final = (Trace.attributes,)
_NEWEST_FIRST: Final = (Trace.start_time.desc().nulls_last(), Trace.id.desc())
_SPAN_CONTENT: Final = (TraceSpan.input, TraceSpan.output, TraceSpan.attributes, TraceSpan.content_refs)


class _Whole(TypeDecorator[int]):
    """A sum of bigint, which is numeric in PostgreSQL and so cannot overflow, as an integer."""

    impl = Numeric
    cache_ok = True

    def process_result_value(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


def trace_by_id(trace_id: uuid.UUID) -> Select[Trace]:
    """Select one trace."""
    return select(Trace).where(Trace.id == trace_id)


def trace_times(trace_id: uuid.UUID) -> Select[dt.datetime | None, dt.datetime | None, int | None]:
    """Select the bounds of a trace's spans, and its duration."""
    return select(Trace.start_time, Trace.end_time, Trace.duration_us).where(Trace.id == trace_id)


def spans_of_trace(
    trace_id: uuid.UUID,
    times: TraceTimes,
    *,
    include_content: bool = True,
    limit: int | None = None,
    offset: int = 0,
) -> Select[TraceSpan]:
    """Select a trace's spans in start order."""
    statement = select(TraceSpan).where(*_spans_within(trace_id, times))
    statement = statement.order_by(TraceSpan.start_time, TraceSpan.span_id).options(*_span_options(include_content))
    return statement.limit(limit).offset(offset or None)


def span_by_id(trace_id: uuid.UUID, span_id: str | bytes, times: TraceTimes) -> Select[TraceSpan]:
    """Select the earliest of a trace's spans with this id."""
    statement = select(TraceSpan).where(*_spans_within(trace_id, times), TraceSpan.span_id == span_id)
    return statement.order_by(TraceSpan.start_time).limit(1)


def events_of_trace(trace_id: uuid.UUID, times: TraceTimes, span_id: str | bytes | None = None) -> Select[TraceEvent]:
    """Select a trace's events, or one span's, in the order of the spans and of the events in each."""
    statement = select(TraceEvent).where(TraceEvent.trace_id == trace_id, *within(TraceEvent.span_start_time, times))
    if span_id is not None:
        statement = statement.where(TraceEvent.span_id == span_id)
    return statement.order_by(TraceEvent.span_start_time, TraceEvent.span_id, TraceEvent.event_index)


def resources_by_id(ids: Sequence[uuid.UUID]) -> Select[Resource]:
    """Select resources."""
    return select(Resource).where(Resource.id == any_(literal(list(ids), ARRAY(Uuid))))


def usage_of_trace(trace_id: uuid.UUID, times: TraceTimes) -> Select[*tuple[Any, ...]]:
    """Sum a trace's spans by operation, provider and model: the columns of `UsageRow`."""
    kinds = (TraceSpan.operation, TraceSpan.provider, TraceSpan.model)

    def counted(column: InstrumentedAttribute[int | None]) -> ColumnElement[int]:
        return _total(func.sum(column).filter(TraceSpan.counts_usage), _Whole)

    return (
        select(
            *kinds,
            _count().label("span_count"),
            _count(TraceSpan.status == "error").label("error_count"),
            _count(TraceSpan.counts_usage).label("usage_count"),
            counted(TraceSpan.input_tokens).label("input_tokens"),
            counted(TraceSpan.output_tokens).label("output_tokens"),
            counted(TraceSpan.cached_input_tokens).label("cached_input_tokens"),
            counted(TraceSpan.reasoning_tokens).label("reasoning_tokens"),
            counted(TraceSpan.total_tokens).label("total_tokens"),
            _total(func.sum(TraceSpan.cost_usd).filter(TraceSpan.counts_usage), Numeric).label("cost_usd"),
            cast(func.sum(TraceSpan.duration_us), _Whole).label("duration_us"),
            func.max(TraceSpan.duration_us).label("max_duration_us"),
            func.max(TraceSpan.ttft_us).label("max_ttft_us"),
        )
        .where(*_spans_within(trace_id, times))
        .group_by(*kinds)
        .order_by(*(kind.asc().nulls_first() for kind in kinds))
    )


def list_traces(
    filters: TraceFilters,
    *,
    by_span_index: bool = False,
    names: Names | None = None,
    undated: int | None = None,
    since: dt.datetime | None = None,
    include_content: bool = False,
) -> Select[Trace]:
    """Select a page of traces and one more: newest first, those without a start last.

    After a cursor that has a start only traces with a start are selected, because no index gives both with
    one condition; `undated` then asks for so many of the rest. With `by_span_index` the spans of the model are
    found first, by their index, and not trace by trace: right where they are few. With `names` the page is taken
    from the newest traces of each of them, which hold what `filters.name` asks for. With `since` only traces that
    began by then or later are selected: the newest page, if it is full of them.
    """
    limit = filters.limit + 1 if undated is None else undated
    if names is None or filters.name is None:
        statement = _newest_first(select(Trace), filters, by_span_index=by_span_index, undated=undated, since=since)
        statement = statement.limit(limit).offset(filters.offset or None)
    else:
        unnamed = filters.model_copy(update={"name": None})
        newest = _newest_first(
            select(Trace.id, Trace.start_time), unnamed, by_span_index=by_span_index, undated=undated
        ).limit(_written_out(limit + filters.offset))
        page = newest_of_each(names, filters.name, newest).limit(_written_out(limit)).offset(filters.offset or None)
        statement = select(Trace).where(Trace.id.in_(page.correlate(None))).order_by(*_NEWEST_FIRST)
    if not include_content:
        statement = statement.options(*(defer(column) for column in _TRACE_CONTENT))
    return statement


def _newest_first(
    statement: Select[*_Columns],
    filters: TraceFilters,
    *,
    by_span_index: bool,
    undated: int | None,
    since: dt.datetime | None = None,
) -> Select[*_Columns]:
    statement = statement.where(*trace_conditions(filters, by_span_index=by_span_index, since=since))
    after = filters.after
    if undated is not None:
        statement = statement.where(Trace.start_time.is_(None))
    if after is not None and after.start_time is not None and undated is None:
        statement = statement.where(_before_in_time(after.start_time, after.id))
    elif after is not None and after.start_time is None:
        statement = statement.where(Trace.start_time.is_(None), Trace.id < after.id)
    return statement.order_by(*_NEWEST_FIRST)


def _written_out(number: int) -> ColumnElement[int]:
    # Of a limit that is a parameter a plan for all parameters thinks as a tenth of all rows.
    return literal_column(str(number), Integer)


def starts_of_newest(project: str | None, number: int) -> Select[int, dt.datetime | None, dt.datetime | None]:
    """Select how many of the newest so many traces have a start, the first and the last of those."""
    newest = select(Trace.start_time).order_by(*_NEWEST_FIRST).limit(_written_out(number))
    if project is not None:
        newest = newest.where(Trace.project == project)
    found = newest.subquery()
    start = found.c.start_time
    number_of = type_coerce(func.count(start), BigInteger).label("trace_count")
    return select(number_of, func.min(start).label("first_start"), func.max(start).label("last_start"))


def count_spans_of_model(filters: TraceFilters, at_most: int) -> Select[int]:
    """Count the spans with the model that the filters ask for, and no further than `at_most`."""
    found = select(literal_column("1", Integer)).select_from(TraceSpan).where(*model_conditions(filters)).limit(at_most)
    return select(_count().label("span_count")).select_from(found.subquery())


def trace_totals(filters: TraceFilters) -> Select[*tuple[Any, ...]]:
    """Sum the summaries of all traces that the filters let through: the columns of `TraceStats`."""

    def percentile(fraction: float) -> ColumnElement[float]:
        return func.percentile_cont(literal(fraction, Double)).within_group(Trace.duration_us)

    return select(
        _count().label("trace_count"),
        _count(HAS_ERROR).label("error_trace_count"),
        _total(func.sum(Trace.span_count), _Whole).label("span_count"),
        _total(func.sum(Trace.error_count), _Whole).label("error_count"),
        _total(func.sum(Trace.input_tokens), _Whole).label("input_tokens"),
        _total(func.sum(Trace.output_tokens), _Whole).label("output_tokens"),
        _total(func.sum(Trace.total_tokens), _Whole).label("total_tokens"),
        _total(func.sum(Trace.cost_usd), Numeric).label("cost_usd"),
        cast(percentile(0.5), Double).label("p50_duration_us"),
        cast(percentile(0.95), Double).label("p95_duration_us"),
        cast(percentile(0.99), Double).label("p99_duration_us"),
    ).where(*trace_conditions(filters, by_span_index=True))


def list_spans(filters: SpanFilters, *, include_content: bool = False) -> Select[TraceSpan]:
    """Select a page of spans and one more: newest first, then by trace id and span id."""
    statement = select(TraceSpan).where(*span_conditions(filters))
    key = (TraceSpan.start_time, TraceSpan.trace_id, TraceSpan.span_id)
    after = filters.after
    if after is not None:
        # The first condition prunes partitions, which a comparison of rows does not.
        statement = statement.where(TraceSpan.start_time <= after.start_time, tuple_(*key) < _place(after))
    statement = statement.order_by(*(column.desc() for column in key)).options(*_span_options(include_content))
    return statement.limit(filters.limit + 1).offset(filters.offset or None)


def _spans_within(trace_id: uuid.UUID, times: TraceTimes) -> list[ColumnElement[bool]]:
    return [TraceSpan.trace_id == trace_id, *within(TraceSpan.start_time, times)]


def _span_options(include_content: bool) -> list[ORMOption]:
    return [] if include_content else [defer(column) for column in _SPAN_CONTENT]


def _before_in_time(start_time: dt.datetime, trace_id: uuid.UUID) -> ColumnElement[bool]:
    # A comparison of rows is one range of the index; the same spelled with OR would read it from its top.
    return tuple_(Trace.start_time, Trace.id) < tuple_(
        literal(start_time, Trace.start_time.type), literal(trace_id, Trace.id.type)
    )


def _place(after: SpanCursor) -> ColumnElement[Any]:
    return tuple_(
        literal(after.start_time, TraceSpan.start_time.type),
        literal(after.trace_id, TraceSpan.trace_id.type),
        literal(after.span_id, TraceSpan.span_id.type),
    )


def _count(*conditions: ColumnElement[bool] | InstrumentedAttribute[bool]) -> ColumnElement[int]:
    counted = func.count().filter(*conditions) if conditions else func.count()
    # SQLAlchemy takes it for a 32-bit integer.
    return type_coerce(counted, BigInteger)


def _total(value: ColumnElement[Any], kind: type[TypeEngine[_Number]]) -> ColumnElement[_Number]:
    return func.coalesce(cast(value, kind), literal_column("0"), type_=kind)
