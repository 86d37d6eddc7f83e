"""The statements that read usage: the sum over all parts, folded or not, in one statement and so exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Interval,
    Numeric,
    Select,
    Text,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute

from observatory_storage.models import Trace, UsageRollup
from observatory_storage.models.types import UtcDateTime
from observatory_storage.repositories.columns import Whole, counted, total
from observatory_storage.repositories.metric_figures import MAX_ROWS
from observatory_storage.repositories.metric_labels import label_names
from observatory_storage.repositories.usage_filters import (
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageSeriesQuery,
)

_DIMENSIONS: Final[Mapping[str, InstrumentedAttribute[str]]] = {
    "project": UsageRollup.project,
    "service": UsageRollup.service_name,
    "provider": UsageRollup.provider,
    "model": UsageRollup.model,
    "operation": UsageRollup.operation,
}


def usage_totals(query: UsageQuery) -> Select[*tuple[Any, ...]]:
    """Sum usage up by dimensions: these, then the figures of `UsageTotals`."""
    labels = _labels(query.group_by)
    statement = select(*labels, *_figures()).where(*_conditions(query)).group_by(*labels)
    return statement.having(func.sum(UsageRollup.calls) != 0).limit(MAX_ROWS + 1)


def usage_series(query: UsageSeriesQuery) -> Select[*tuple[Any, ...]]:
    """Sum usage up by dimensions and bucket of time: dimensions, `bucket`, and the figures of `UsageTotals`."""
    labels = _labels(query.group_by)
    # From the first bucket on: releases of PostgreSQL differ for times before the origin.
    origin = literal(query.first_bucket, UtcDateTime())
    bucket = func.date_bin(literal(query.bucket, Interval), UsageRollup.hour, origin, type_=UtcDateTime)
    statement = select(*labels, bucket.label("bucket"), *_figures()).where(*_conditions(query))
    statement = statement.group_by(*labels, literal_column("bucket")).having(func.sum(UsageRollup.calls) != 0)
    return statement.limit(MAX_ROWS + 1)


def usage_buckets(query: UsagePercentileQuery) -> Select[*tuple[Any, ...]]:
    """Merge histograms by dimensions: these, `bucket` in order, and `size`."""
    if query.measure == "duration":
        buckets, counts = UsageRollup.latency_buckets, UsageRollup.latency_counts
    else:
        buckets, counts = UsageRollup.ttft_buckets, UsageRollup.ttft_counts
    names = label_names(query.group_by)
    # Arrays are laid apart once, and not beside the texts of each row.
    rows = select(*_labels(query.group_by), buckets.label("buckets"), counts.label("counts")).where(*_conditions(query))
    parts = rows.subquery("parts")
    counted_by = func.unnest(parts.c.buckets, parts.c.counts).table_valued("bucket", "size", name="counted")
    apart = counted_by.render_derived(name="counted")
    labels = [parts.c[name] for name in names]
    bucket = literal_column("counted.bucket", Integer)
    size = func.sum(literal_column("counted.size", BigInteger))
    statement = select(*labels, bucket.label("bucket"), total(size, Whole).label("size"))
    statement = statement.select_from(parts.join(apart, true())).group_by(*labels, bucket)
    return statement.having(size != 0).order_by(*labels, bucket).limit(MAX_ROWS + 1)


def top_usage(query: TopUsageQuery, column: InstrumentedAttribute[str | None]) -> Select[*tuple[Any, ...]]:
    """Sum up traces by their user or session, the largest first: the columns of `TopUsage`."""
    figures = {
        "trace_count": counted(),
        "span_count": total(func.sum(Trace.span_count), Whole),
        "error_count": total(func.sum(Trace.error_count), Whole),
        "input_tokens": total(func.sum(Trace.input_tokens), Whole),
        "output_tokens": total(func.sum(Trace.output_tokens), Whole),
        "total_tokens": total(func.sum(Trace.total_tokens), Whole),
        "cost_usd": total(func.sum(Trace.cost_usd), Numeric),
    }
    conditions: list[ColumnElement[bool]] = [
        column.is_not(None),
        Trace.start_time >= query.start,
        Trace.start_time < query.end,
    ]
    if query.project is not None:
        conditions.append(Trace.project == query.project)
    if query.service_name is not None:
        conditions.append(Trace.service_name == query.service_name)
    return (
        select(
            column.label("name"),
            *(figure.label(name) for name, figure in figures.items()),
            func.min(Trace.start_time, type_=UtcDateTime).label("first_time"),
            func.max(Trace.start_time, type_=UtcDateTime).label("last_time"),
        )
        .where(*conditions)
        .group_by(column)
        .order_by(figures[query.order_by].desc(), column)
        .limit(query.limit)
    )


def _labels(names: Sequence[str]) -> list[ColumnElement[str | None]]:
    columns: Iterator[ColumnElement[str | None]] = (
        func.nullif(_DIMENSIONS[name], literal_column("''"), type_=Text) for name in names
    )
    return [column.label(label) for column, label in zip(columns, label_names(names), strict=True)]


def _figures() -> list[ColumnElement[Any]]:
    whole = {
        "call_count": UsageRollup.calls,
        "error_count": UsageRollup.errors,
        "unpriced_count": UsageRollup.unpriced_calls,
        "input_tokens": UsageRollup.input_tokens,
        "output_tokens": UsageRollup.output_tokens,
        "cached_input_tokens": UsageRollup.cached_input_tokens,
        "cache_write_input_tokens": UsageRollup.cache_write_input_tokens,
        "reasoning_tokens": UsageRollup.reasoning_tokens,
        "total_tokens": UsageRollup.total_tokens,
    }
    figures: list[ColumnElement[Any]] = [total(func.sum(column), Whole).label(name) for name, column in whole.items()]
    return [*figures, total(func.sum(UsageRollup.cost_usd), Numeric).label("cost_usd")]


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    wanted = {
        "project": query.project,
        "service": query.service_name,
        "provider": query.provider,
        "model": query.model,
        "operation": query.operation,
    }
    return [
        UsageRollup.hour >= query.first_hour,
        UsageRollup.hour < query.end_hour,
        *(_DIMENSIONS[name] == value for name, value in wanted.items() if value is not None),
    ]
