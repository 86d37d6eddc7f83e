"""The statements that compute figures from data points: series by time, totals, merged histograms."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Select,
    and_,
    case,
    cast,
    column,
    distinct,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.selectable import TableValuedAlias

from observatory_storage.models import MetricDataPoint
from observatory_storage.repositories.columns import Whole, counted
from observatory_storage.repositories.metric_filters import Aggregation, MetricQuery, TimeSeriesQuery
from observatory_storage.repositories.metric_increases import (
    Family,
    added,
    bucket_of,
    marked_points,
    points_in_window,
    weight,
)
from observatory_storage.repositories.metric_labels import label_names

MAX_ROWS: Final = 100_000
"""How many buckets of all series, or how many groups, a statement may give; it stops after one more."""

_VALUE: Final = (MetricDataPoint.value, MetricDataPoint.value_int)
_DISTRIBUTION: Final = (MetricDataPoint.count, MetricDataPoint.sum, MetricDataPoint.min, MetricDataPoint.max)
_EXPLICIT: Final = (MetricDataPoint.bucket_bounds, MetricDataPoint.bucket_counts)
_EXPONENTIAL: Final = (
    MetricDataPoint.scale,
    MetricDataPoint.zero_count,
    MetricDataPoint.zero_threshold,
    MetricDataPoint.positive_offset,
    MetricDataPoint.positive_counts,
    MetricDataPoint.negative_offset,
    MetricDataPoint.negative_counts,
)


class _Figure(NamedTuple):
    """A figure in two forms: exact where all that it comes from is an integer, and as floating point."""

    exact: ColumnElement[int | None]
    value: ColumnElement[float | None]


def needs_increase(family: Family, aggregation: Aggregation) -> bool:
    """Tell whether points are compared with their predecessors."""
    return aggregation in ("rate", "increase") or (family == "distribution" and aggregation not in ("min", "max"))


def time_series(query: TimeSeriesQuery, ids: Sequence[uuid.UUID], family: Family) -> Select[*tuple[Any, ...]]:
    """Compute a figure by labels and bucket: the labels, `bucket`, `point_count`, `exact` and `value`.

    A rate is given as its increase. Buckets without points are not there, and neither is an order.
    """
    increases = needs_increase(family, query.aggregation)
    rows = _rows(query, ids, family, increases=increases)
    figures = _figures(rows, family, increases=increases)
    figure = figures["increase" if query.aggregation == "rate" else query.aggregation]
    keys = [*_labels(rows, query), rows.c.bucket]
    statement = select(*keys, counted().label("point_count"), figure.exact.label("exact"), figure.value.label("value"))
    return statement.group_by(*keys).limit(MAX_ROWS + 1)


def aggregates(
    query: MetricQuery, ids: Sequence[uuid.UUID], family: Family, *, increases: bool
) -> Select[*tuple[Any, ...]]:
    """Compute all figures by labels: the labels, counts, first and last time, and each figure in both forms.

    `increases` says whether there are any; a distribution always has them.
    """
    rows = _rows(query, ids, family, increases=increases)
    keys = _labels(rows, query)
    figures = _figures(rows, family, increases=increases)
    series = func.count(distinct(tuple_(rows.c.metric_id, rows.c.series_id)))
    statement = select(
        *keys,
        type_coerce(series, BigInteger).label("series_count"),
        counted().label("point_count"),
        func.min(rows.c.timestamp).label("first_timestamp"),
        func.max(rows.c.timestamp).label("last_timestamp"),
        *(figure.exact.label(f"exact_{name}") for name, figure in figures.items()),
        *(figure.value.label(f"value_{name}") for name, figure in figures.items()),
    )
    return statement.group_by(*keys).having(counted() > literal_column("0")).limit(MAX_ROWS + 1)


def explicit_counts(query: MetricQuery, ids: Sequence[uuid.UUID]) -> Select[*tuple[Any, ...]]:
    """Merge what explicit histograms added: `value_count` by labels, `bounds` and `position`, from 1 on.

    A histogram without buckets has one, with all its values.
    """
    kept = _weighted(query, ids, (*_DISTRIBUTION, *_EXPLICIT), ("count", "bucket_bounds"))
    has_buckets = func.cardinality(kept.c.bucket_counts) > literal_column("0")
    counts = case((has_buckets, kept.c.bucket_counts), else_=array([kept.c.count]))
    bounds = func.coalesce(kept.c.bucket_bounds, literal_column("'{}'::float8[]"), type_=ARRAY(Double))
    bucket = _unnested(counts)
    position = type_coerce(bucket.c.position, BigInteger).label("position")
    keys = [*_labels(kept, query), bounds.label("bounds"), position]
    statement = select(*keys, _sum_of(kept.c.weight * bucket.c.n).label("value_count"), *_extremes(kept))
    statement = statement.select_from(kept).join(bucket, true()).group_by(*keys)
    return statement.order_by(*keys).limit(MAX_ROWS + 1)


def exponential_counts(query: MetricQuery, ids: Sequence[uuid.UUID]) -> Select[*tuple[Any, ...]]:
    """Merge what exponential histograms added, at the smallest scale: `value_count` by labels, `sign` and `position`.

    `sign` is 1 or -1 for buckets of positive or negative values, whose index is `position`, and 0 for the
    zero bucket.
    """
    kept = _weighted(query, ids, (*_DISTRIBUTION, *_EXPONENTIAL), ("count",))
    at, labels = kept.c, _labels(kept, query)
    used = func.coalesce(func.cardinality(at.positive_counts), 0) + func.coalesce(
        func.cardinality(at.negative_counts), 0
    )
    # A point without buckets has no say, whatever its scale.
    smallest = func.min(at.scale).filter(used > literal_column("0")).over(partition_by=labels)
    scaled = select(*at, smallest.label("smallest")).cte("scaled")
    parts = []
    for sign, counts, offset in (
        (1, scaled.c.positive_counts, scaled.c.positive_offset),
        (-1, scaled.c.negative_counts, scaled.c.negative_offset),
    ):
        bucket = _unnested(counts)
        index = cast(func.coalesce(offset, literal_column("0")), BigInteger) + bucket.c.position - literal_column("1")
        # The bucket of a scale that is n smaller holds 2**n neighbours; more than 63 places mean the same as 63.
        places = func.least(cast(scaled.c.scale, BigInteger) - scaled.c.smallest, literal_column("63"))
        parts.append(
            select(
                *scaled.c, _constant(sign), index.bitwise_rshift(cast(places, Integer)).label("position"), bucket.c.n
            )
            .select_from(scaled)
            .join(bucket, true())
        )
    zero = func.coalesce(scaled.c.zero_count, literal_column("0"))
    parts.append(
        select(*scaled.c, _constant(0), cast(literal_column("0"), BigInteger).label("position"), zero.label("n"))
    )
    merged = union_all(*parts).cte("merged")
    keys = [*_labels(merged, query), merged.c.sign, merged.c.position]
    statement = select(
        *keys,
        _sum_of(merged.c.weight * merged.c.n).label("value_count"),
        func.min(merged.c.smallest).label("scale"),
        func.max(merged.c.zero_threshold).label("zero_threshold"),
        *_extremes(merged),
    )
    return statement.group_by(*keys).order_by(*keys).limit(MAX_ROWS + 1)


def _rows(query: MetricQuery, ids: Sequence[uuid.UUID], family: Family, *, increases: bool) -> CTE:
    """Select the points of the window with what they add and the bucket they lie in."""
    points = points_in_window(query, ids, _VALUE if family == "value" else _DISTRIBUTION, before=increases)
    if not increases:
        return select(*points.c, *_bucket(points, query)).cte("rows")
    compared = ("value", "value_int") if family == "value" else ("count", "sum")
    marked = marked_points(points, query, compared)
    adding = [added(marked, name).label(f"added_{name}") for name in compared]
    return select(*marked.c, *adding, *_bucket(marked, query)).where(marked.c.in_window).cte("rows")


def _bucket(points: CTE, query: MetricQuery) -> list[ColumnElement[Any]]:
    return [bucket_of(points, query).label("bucket")] if isinstance(query, TimeSeriesQuery) else []


def _figures(rows: CTE, family: Family, *, increases: bool) -> Mapping[str, _Figure]:
    return _value_figures(rows, increases) if family == "value" else _distribution_figures(rows, increases)


def _value_figures(rows: CTE, increases: bool) -> dict[str, _Figure]:
    value, whole = rows.c.value, rows.c.value_int
    figures = {
        "count": _Figure(cast(func.count(), Whole), _unknown()),
        "avg": _Figure(_unknown_whole(), cast(func.avg(value), Double)),
        "sum": _Figure(_all_whole(func.sum(whole), whole), func.sum(value)),
        "min": _Figure(_all_whole(func.min(whole), whole), func.min(value)),
        "max": _Figure(_all_whole(func.max(whole), whole), func.max(value)),
    }
    if increases:
        gain, whole_gain = rows.c.added_value, rows.c.added_value_int
        figures["increase"] = _Figure(_all_whole(func.sum(whole_gain), whole_gain), func.sum(gain))
    return figures


def _distribution_figures(rows: CTE, increases: bool) -> dict[str, _Figure]:
    figures = {
        name: _Figure(_unknown_whole(), case((_tells_extreme(rows, rows.c[name]), pick(rows.c[name]))))
        for name, pick in (("min", func.min), ("max", func.max))
    }
    if increases:
        # A point need not have a sum.
        summed = func.sum(rows.c.added_count).filter(rows.c.added_sum.is_not(None))
        mean = cast(func.sum(rows.c.added_sum) / cast(func.nullif(summed, literal_column("0")), Double), Double)
        all_summed = func.bool_and(rows.c.added_sum.is_not(None))
        count = _Figure(cast(func.sum(rows.c.added_count), Whole), _unknown())
        figures["count"] = figures["increase"] = count
        figures["sum"] = _Figure(_unknown_whole(), case((all_summed, func.sum(rows.c.added_sum))))
        figures["avg"] = _Figure(_unknown_whole(), mean)
    return figures


def _tells_extreme(rows: CTE, extreme: ColumnElement[float | None]) -> ColumnElement[bool]:
    # The extremes of a cumulative point are of all time since its start.
    is_empty = rows.c.count == literal_column("0")
    return func.bool_and(and_(rows.c.is_delta, or_(extreme.is_not(None), is_empty)))


def _weighted(
    query: MetricQuery,
    ids: Sequence[uuid.UUID],
    columns: Sequence[InstrumentedAttribute[Any]],
    compared: Sequence[str],
) -> CTE:
    """Select the points whose counts make up what was added, with their weight."""
    marked = marked_points(points_in_window(query, ids, columns, before=True), query, compared)
    weighted = select(*marked.c, weight(marked).label("weight")).cte("weighted")
    return select(*weighted.c).where(weighted.c.weight != literal_column("0")).cte("kept")


def _extremes(kept: CTE) -> list[ColumnElement[Any]]:
    """Return `lowest` and `highest`, absent unless all points have them, `non_negative`, and how many they are.

    They hold for what was added, too, because that is a part of what the points describe.
    """
    # OpenTelemetry asks for no sum where a value can be negative.
    return [
        case((_all_known(kept, kept.c.min), func.min(kept.c.min).filter(_has_values(kept)))).label("lowest"),
        case((_all_known(kept, kept.c.max), func.max(kept.c.max).filter(_has_values(kept)))).label("highest"),
        func.coalesce(_all_known(kept, kept.c.sum), literal_column("false", Boolean)).label("non_negative"),
        counted(_has_values(kept)).label("point_count"),
    ]


def _all_known(kept: CTE, value: ColumnElement[Any]) -> ColumnElement[bool]:
    return func.bool_and(value.is_not(None)).filter(_has_values(kept))


def _has_values(kept: CTE) -> ColumnElement[bool]:
    # An empty point has no extremes. One that others continue is a part of them.
    return kept.c.count > literal_column("0")


def _unnested(counts: ColumnElement[Any]) -> TableValuedAlias:
    function = func.unnest(counts).table_valued(column("n", BigInteger), with_ordinality="position")
    return function.render_derived()


def _length(counts: ColumnElement[Any]) -> ColumnElement[int]:
    return func.coalesce(func.cardinality(counts), literal_column("0"), type_=Integer)


def _labels(rows: CTE, query: MetricQuery) -> list[ColumnElement[str | None]]:
    return [rows.c[name] for name in label_names(query.group_by)]


def _sum_of(value: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(func.sum(value), Whole)


def _all_whole(figure: ColumnElement[Any], whole: ColumnElement[Any]) -> ColumnElement[int | None]:
    return case((func.bool_and(whole.is_not(None)), cast(figure, Whole)))


def _unknown() -> ColumnElement[float | None]:
    return cast(null(), Double)


def _unknown_whole() -> ColumnElement[int | None]:
    return cast(null(), Whole)


def _constant(sign: int) -> ColumnElement[int]:
    return literal_column(str(sign), Integer).label("sign")
