"""An example of each statement that reads or deletes metrics, for the test that prepares them all."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from typing import Any, NamedTuple

from sqlalchemy import Select
from sqlalchemy.sql.dml import Delete

from observatory_storage.repositories import metric_activity, span_figures
from observatory_storage.repositories import metric_deletion as deletion
from observatory_storage.repositories import metric_figures as figures
from observatory_storage.repositories import metric_statements as statements
from observatory_storage.repositories.metric_cursor import MetricCursor, PointCursor
from observatory_storage.repositories.metric_filters import (
    SPAN_LABELS,
    Aggregation,
    CostQuery,
    DataPointFilters,
    LatencyQuery,
    MetricFilters,
    MetricQuery,
    TimeSeriesQuery,
)
from observatory_storage.repositories.metric_increases import Family
from observatory_storage.repositories.metric_results import MetricTypeStats
from tests.trace_rows import at

ID = uuid.uuid4()
LABELS: dict[str, Any] = {"model": ("x", None), "service": "api", "port": 80, "stream": True, "ratio": 0.5}
WINDOW: dict[str, Any] = {"start": at(), "end": at(60)}
PLAIN: dict[str, Any] = {"name": "m", **WINDOW}
FULL: dict[str, Any] = {
    **WINDOW,
    "metric_id": ID,
    "project": "default",
    "service_name": "api",
    "metric_type": "counter",
    "unit": "s",
    "labels": LABELS,
    "group_by": ("model", "service", 'it\'s "odd" %(a)s'),
}
EVERY_FILTER: dict[str, Any] = {
    "project": "default",
    "service_name": "api",
    "metric_type": "counter",
    "unit": "s",
    "timestamp_from": at(),
    "timestamp_before": at(60),
}
EVERY_POINT = DataPointFilters(
    **EVERY_FILTER, name="m", metric_id=ID, labels=LABELS, cursor=PointCursor(at(), ID, ID).encode()
)
EVERY_METRIC = MetricFilters(
    **EVERY_FILTER, name="m", scope_name="lib", temporality="delta", cursor=MetricCursor("m", ID).encode()
)
EVERY_SPAN: dict[str, Any] = {
    **WINDOW,
    "project": "default",
    "labels": {**dict.fromkeys(SPAN_LABELS[:4], ("x", None)), "model": 5, "user": True},
    "group_by": SPAN_LABELS[:8],
}
OLD, ANY_OLD = deletion.Expired(at(), "default"), deletion.Expired(at(), None)
POINT = (ID, ID, at())

AGGREGATIONS: dict[Family, tuple[Aggregation, ...]] = {
    "value": ("avg", "sum", "min", "max", "count", "rate", "increase"),
    "distribution": ("avg", "sum", "min", "max", "count", "rate", "increase"),
}

METRIC_MODULES = (statements, figures, deletion, span_figures, metric_activity)
METRIC_EXAMPLES: list[tuple[str, Select[*tuple[Any, ...]] | Delete]] = [
    ("metric_by_id", statements.metric_by_id(ID)),
    ("metrics_by_name", statements.metrics_by_name("m", None)),
    ("metrics_by_name", statements.metrics_by_name("m", "default")),
    ("metrics_of_query", statements.metrics_of_query(MetricQuery(**PLAIN))),
    ("metrics_of_query", statements.metrics_of_query(MetricQuery(**FULL))),
    ("list_metrics", statements.list_metrics(MetricFilters())),
    ("list_metrics", statements.list_metrics(EVERY_METRIC)),
    ("list_metrics", statements.list_metrics(MetricFilters(offset=1))),
    ("list_points", statements.list_points(DataPointFilters())),
    ("list_points", statements.list_points(EVERY_POINT, include_exemplars=True)),
    ("list_points", statements.list_points(DataPointFilters(offset=1))),
    ("latest_point", statements.latest_point(EVERY_POINT)),
    ("metric_totals", statements.metric_totals(None, None, None)),
    ("metric_totals", statements.metric_totals("default", at(), at(60))),
    *(
        ("time_series", figures.time_series(TimeSeriesQuery(**asked, aggregation=aggregation), [ID], family))
        for family, aggregations in AGGREGATIONS.items()
        for aggregation, asked in itertools.product(aggregations, (PLAIN, FULL))
    ),
    ("aggregates", figures.aggregates(MetricQuery(**PLAIN), [ID], "value", increases=False)),
    ("aggregates", figures.aggregates(MetricQuery(**FULL), [ID], "value", increases=True)),
    ("aggregates", figures.aggregates(MetricQuery(**FULL), [ID], "distribution", increases=True)),
    ("explicit_counts", figures.explicit_counts(LatencyQuery(**PLAIN), [ID])),
    ("explicit_counts", figures.explicit_counts(LatencyQuery(**FULL), [ID])),
    ("exponential_counts", figures.exponential_counts(LatencyQuery(**PLAIN), [ID])),
    ("exponential_counts", figures.exponential_counts(LatencyQuery(**FULL), [ID])),
    ("cost_summary", span_figures.cost_summary(CostQuery(**WINDOW))),
    ("cost_summary", span_figures.cost_summary(CostQuery(**EVERY_SPAN, every_span=True))),
    ("span_percentiles", span_figures.span_percentiles(LatencyQuery(**WINDOW))),
    (
        "span_percentiles",
        span_figures.span_percentiles(LatencyQuery(**EVERY_SPAN, measure="time_to_first_token", every_span=True)),
    ),
    ("expired_points", deletion.expired_points(OLD, None, 5)),
    ("expired_points", deletion.expired_points(ANY_OLD, POINT, 5)),
    ("delete_points", deletion.delete_points(OLD, None, POINT)),
    ("delete_points", deletion.delete_points(ANY_OLD, POINT, POINT)),
    ("unused_series", deletion.unused_series(OLD, None, 5)),
    ("unused_series", deletion.unused_series(ANY_OLD, (ID, ID), 5)),
    ("unused_metrics", deletion.unused_metrics(OLD, None, 5)),
    ("unused_metrics", deletion.unused_metrics(ANY_OLD, ID, 5)),
    ("activity_of", metric_activity.activity_of([ID], None, None)),
    ("activity_of", metric_activity.activity_of([ID], at(), at(60))),
    ("delete_series", deletion.delete_series([(ID, ID)])),
    ("delete_metrics", deletion.delete_metrics([ID])),
]
METRIC_ROWS: list[tuple[type[NamedTuple], Select[*tuple[Any, ...]]]] = [
    (MetricTypeStats, statements.metric_totals(None, dt.datetime.min, None)),
]
