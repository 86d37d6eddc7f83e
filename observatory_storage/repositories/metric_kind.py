"""What kind of metric a query is about, and what can be asked of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.repositories.metric_filters import Aggregation, MetricQuery
from observatory_storage.repositories.metric_increases import Family, family_of
from observatory_storage.repositories.metric_statements import metrics_of_query


class MetricKind(NamedTuple):
    """The metrics that a query is about, which are of one type and one unit."""

    name: str
    ids: Sequence[uuid.UUID]
    metric_type: str
    unit: str | None
    is_monotonic: bool
    is_delta: bool

    @property
    def family(self) -> Family:
        """Whether its points are one number or describe many values."""
        return family_of(self.metric_type)

    @property
    def is_counter(self) -> bool:
        """Whether it is a number that only rises."""
        return self.metric_type == "counter" and self.is_monotonic


def find_kind(session: Session, query: MetricQuery) -> MetricKind:
    """Return what a query is about; raises InvalidFilterError where that is not of one type and one unit."""
    metrics = session.execute(metrics_of_query(query)).scalars().all()
    if not metrics:
        if query.name is None:
            raise NotFoundError(f"no metric is stored with the id {query.metric_id} that the filters let through")
        raise NotFoundError(absent(query.name))
    first = metrics[0]
    types = sorted({metric.metric_type for metric in metrics})
    if len(types) > 1:
        raise InvalidFilterError(f"{first.name} names metrics of several types, {_either(types)}: give metric_type")
    units = {_spelled(metric.unit): metric.unit or "none" for metric in metrics}
    if len(units) > 1:
        raise InvalidFilterError(f"{first.name} names metrics of several units, {_either(units.values())}: give unit")
    return MetricKind(
        first.name,
        [metric.id for metric in metrics],
        first.metric_type,
        first.unit,
        all(metric.is_monotonic for metric in metrics),
        all(metric.temporality == "delta" for metric in metrics),
    )


def refuse_aggregation(kind: MetricKind, aggregation: Aggregation) -> None:
    """Raise InvalidFilterError for a figure that such a metric does not have."""
    if aggregation in ("rate", "increase") and kind.family == "value" and not kind.is_counter:
        what = "a gauge" if kind.metric_type == "gauge" else "a counter that may fall"
        raise InvalidFilterError(f"{kind.name} is {what}, which has no {aggregation}: take avg, min or max")
    if aggregation in ("min", "max") and kind.family == "distribution":
        if kind.metric_type == "summary":
            raise InvalidFilterError(f"{kind.name} is a summary, which has no {aggregation}")
        if not kind.is_delta:
            raise InvalidFilterError(
                f"{kind.name} is a cumulative histogram, whose {aggregation} is of all time since its start: "
                "take avg, or its percentiles"
            )


def absent(name: str) -> str:
    """Say that no metric has a name."""
    return f"no metric is stored with the name {name or repr(name)} that the filters let through"


def _spelled(unit: str | None) -> str:
    # {token} is how UCUM writes what others call token.
    return (unit or "").strip("{}")


def _either(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
