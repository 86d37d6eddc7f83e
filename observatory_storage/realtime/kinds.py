"""What is cached: a kind of value with the time it may live, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import orjson

from observatory_storage.caching import Cached
from observatory_storage.config import RedisConfig
from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource, Trace, TraceEvent, TraceSpan
from observatory_storage.realtime.codec import Codec, Rows, shape_of, to_json, typed
from observatory_storage.repositories.metric_results import DataPoint
from observatory_storage.repositories.results import TraceDetail, TraceStatistics
from observatory_storage.repositories.usage_results import UsageResult, UsageTotals

_TRACES: Final = Rows(Trace)
_SPANS: Final = Rows(TraceSpan)
_EVENTS: Final = Rows(TraceEvent)
_RESOURCES: Final = Rows(Resource)
_POINT_PARTS: Final[tuple[Rows[Any], ...]] = (Rows(MetricDataPoint), Rows(MetricSeries), Rows(Metric), _RESOURCES)


@dataclass(frozen=True, slots=True)
class CacheKind:
    """How long values live, in seconds from before they were read; 0 means that they are not kept."""

    ttl_seconds: float
    codec: Codec[Any]


def cache_kinds(config: RedisConfig) -> dict[Cached, CacheKind]:
    """Return the kinds that repositories name, with the times of the configuration."""
    trace, figures = config.cache_trace_ttl_seconds, config.cache_figures_ttl_seconds
    return {
        Cached.TRACE: CacheKind(trace, _trace_codec()),
        Cached.TRACE_DETAIL: CacheKind(trace, _detail_codec()),
        Cached.TRACE_STATISTICS: CacheKind(trace, _statistics_codec()),
        Cached.LATEST_POINT: CacheKind(figures, _point_codec()),
        Cached.USAGE_TOTALS: CacheKind(figures, typed(UsageResult[UsageTotals])),
    }


def _trace_codec() -> Codec[Trace]:
    def encode(trace: Trace) -> bytes:
        return to_json(_TRACES.to_columns([trace]))

    def decode(data: bytes) -> Trace:
        return _TRACES.from_columns(orjson.loads(data))[0]

    return Codec(shape_of("trace", _TRACES.shape), encode, decode)


def _detail_codec() -> Codec[TraceDetail]:
    tables: tuple[Rows[Any], ...] = (_TRACES, _SPANS, _EVENTS, _RESOURCES)

    def encode(detail: TraceDetail) -> bytes:
        events = [event for of_span in detail.events.values() for event in of_span]
        parts: tuple[Sequence[Any], ...] = ([detail.trace], detail.spans, events, [*detail.resources.values()])
        return to_json([table.to_columns(rows) for table, rows in zip(tables, parts, strict=True)])

    def decode(data: bytes) -> TraceDetail:
        trace, spans, events, resources = orjson.loads(data)
        found = _SPANS.from_columns(spans)
        by_span: dict[str, tuple[TraceEvent, ...]] = dict.fromkeys((span.span_id for span in found), ())
        for span_id, group in groupby(_EVENTS.from_columns(events), lambda event: event.span_id):
            by_span[span_id] = tuple(group)
        by_id = {resource.id: resource for resource in _RESOURCES.from_columns(resources)}
        return TraceDetail(_TRACES.from_columns(trace)[0], tuple(found), by_span, by_id)

    return Codec(shape_of("detail", *(table.shape for table in tables)), encode, decode)


def _statistics_codec() -> Codec[TraceStatistics]:
    plain = typed(TraceStatistics)

    def encode(statistics: TraceStatistics) -> bytes:
        return plain.encode(replace(statistics, usage=list(statistics.usage)))

    def decode(data: bytes) -> TraceStatistics:
        statistics = plain.decode(data)
        return replace(statistics, usage=tuple(statistics.usage))

    return Codec(plain.shape, encode, decode)


def _point_codec() -> Codec[DataPoint]:
    def encode(point: DataPoint) -> bytes:
        return to_json(
            [
                None if part is None else table.to_columns([part])
                for table, part in zip(_POINT_PARTS, point, strict=True)
            ]
        )

    def decode(data: bytes) -> DataPoint:
        stored = orjson.loads(data)
        parts: list[Any] = [
            None if columns is None else table.from_columns(columns)[0]
            for table, columns in zip(_POINT_PARTS, stored, strict=True)
        ]
        return DataPoint(*parts)

    return Codec(shape_of("point", *(table.shape for table in _POINT_PARTS)), encode, decode)
