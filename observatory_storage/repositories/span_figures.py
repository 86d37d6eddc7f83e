"""The statements that compute figures from spans of many traces: what they cost, how long they took."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Double, Numeric, Select, cast, func, literal, select, true
from sqlalchemy.orm import InstrumentedAttribute

from observatory_storage.models import TraceSpan
from observatory_storage.repositories.columns import Whole, counted, total
from observatory_storage.repositories.metric_figures import MAX_ROWS
from observatory_storage.repositories.metric_filters import CostQuery, LatencyQuery
from observatory_storage.repositories.metric_labels import span_conditions, span_labels


def cost_summary(query: CostQuery) -> Select[*tuple[Any, ...]]:
    """Sum what spans cost and used, by labels: the labels, then the columns of `CostSummary`."""
    labels = span_labels(query.group_by)

    def tokens(column: InstrumentedAttribute[int | None]) -> ColumnElement[int]:
        return total(func.sum(column), Whole)

    return (
        select(
            *labels,
            counted().label("call_count"),
            counted(TraceSpan.status == "error").label("error_count"),
            counted(TraceSpan.cost_usd.is_(None)).label("unpriced_count"),
            tokens(TraceSpan.input_tokens).label("input_tokens"),
            tokens(TraceSpan.output_tokens).label("output_tokens"),
            tokens(TraceSpan.cached_input_tokens).label("cached_input_tokens"),
            tokens(TraceSpan.cache_write_input_tokens).label("cache_write_input_tokens"),
            tokens(TraceSpan.reasoning_tokens).label("reasoning_tokens"),
            tokens(TraceSpan.total_tokens).label("total_tokens"),
            total(func.sum(TraceSpan.input_cost_usd), Numeric).label("input_cost_usd"),
            total(func.sum(TraceSpan.output_cost_usd), Numeric).label("output_cost_usd"),
            total(func.sum(TraceSpan.cost_usd), Numeric).label("cost_usd"),
        )
        .where(*_conditions(query))
        .group_by(*labels)
        .limit(MAX_ROWS + 1)
    )


def span_percentiles(query: LatencyQuery) -> Select[*tuple[Any, ...]]:
    """Compute the percentiles of spans by labels: the labels, `value_count`, and `percentiles` in order."""
    labels = span_labels(query.group_by)
    measured = TraceSpan.duration_us if query.measure == "duration" else TraceSpan.ttft_us
    fractions = literal(list(query.percentiles), ARRAY(Double))
    values = func.percentile_cont(fractions).within_group(cast(measured, Double))
    return (
        select(*labels, counted().label("value_count"), cast(values, ARRAY(Double)).label("percentiles"))
        .where(*_conditions(query), measured.is_not(None))
        .group_by(*labels)
        .having(counted() > 0)
        .limit(MAX_ROWS + 1)
    )


def _conditions(query: CostQuery | LatencyQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        TraceSpan.start_time >= query.start,
        TraceSpan.start_time < query.end,
        *span_conditions(query.labels),
    ]
    if query.project is not None:
        conditions.append(TraceSpan.project == query.project)
    if not query.every_span:
        conditions.append(TraceSpan.counts_usage.is_(true()))
    return conditions
