"""Labels as SQL: what tells the series of a metric, or spans, apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, func, literal, or_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute

from observatory_storage.models import Metric, MetricSeries, Resource, TraceSpan
from observatory_storage.repositories.metric_filters import LabelValue

# What clients call it, the current convention first. An attribute that has the short name itself comes before.
_KNOWN_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("gen_ai.request.model", "gen_ai.response.model"),
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "operation": ("gen_ai.operation.name",),
    "token_type": ("gen_ai.token.type",),
    "environment": ("deployment.environment.name", "deployment.environment"),
    "service": ("service.name",),
}

SPAN_COLUMNS: Final[Mapping[str, InstrumentedAttribute[Any]]] = {
    "project": TraceSpan.project,
    "service": TraceSpan.service_name,
    "environment": TraceSpan.environment,
    "operation": TraceSpan.operation,
    "provider": TraceSpan.provider,
    "model": TraceSpan.model,
    "response_model": TraceSpan.response_model,
    "user": TraceSpan.user_id,
    "session": TraceSpan.session_id,
    "name": TraceSpan.name,
    "status": TraceSpan.status,
}


def series_labels(labels: Sequence[str]) -> list[ColumnElement[str | None]]:
    """Return labels of series as columns of text, named by their place: a label itself can have any name."""
    return [_series_text(label).label(name) for label, name in zip(labels, label_names(labels), strict=True)]


def span_labels(labels: Sequence[str]) -> list[ColumnElement[str | None]]:
    """Return labels of spans as `series_labels` does."""
    return [SPAN_COLUMNS[label].label(name) for label, name in zip(labels, label_names(labels), strict=True)]


def label_names(labels: Sequence[str]) -> list[str]:
    """Return the names of the columns that `series_labels` and `span_labels` make."""
    return [f"label_{number}" for number in range(len(labels))]


def series_conditions(labels: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return what a series must fulfil: each label has one of the values that are asked for."""
    return [or_(*(_series_has(label, value) for value in values)) for label, values in labels.items()]


def span_conditions(labels: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return what a span must fulfil: each label has one of the values that are asked for."""
    return [or_(*(SPAN_COLUMNS[label] == _as_text(value) for value in values)) for label, values in labels.items()]


def labels_of(row: Sequence[Any], names: Sequence[str]) -> dict[str, str | None]:
    """Return the labels that a row begins with."""
    return dict(zip(names, row, strict=False))


def label_order(labels: Mapping[str, str | None]) -> list[tuple[bool, str]]:
    """Return what results are ordered by: label by label, an absent one first."""
    return [(value is not None, value or "") for value in labels.values()]


def _series_has(label: str, value: LabelValue) -> ColumnElement[bool]:
    if value is None or isinstance(value, str):
        return _series_text(label) == value
    values = (column.op("->", return_type=JSONB())(literal(key, Text)) for column, key in _places(label))
    return func.coalesce(*values, type_=JSONB) == literal(value, JSONB)


def _series_text(label: str) -> ColumnElement[str | None]:
    texts = (column.op("->>", return_type=Text())(literal(key, Text)) for column, key in _places(label))
    # A metric can be told its service without a resource.
    service = (Metric.service_name,) if label in ("service", "service.name") else ()
    return func.coalesce(*texts, *service, type_=Text)


def _places(label: str) -> Iterator[tuple[InstrumentedAttribute[dict[str, Any]], str]]:
    for column in (MetricSeries.attributes, Resource.attributes):
        for key in (label, *_KNOWN_AS.get(label, ())):
            yield column, key


def _as_text(value: LabelValue) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
