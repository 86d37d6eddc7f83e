"""OTLP metrics in JSON: shapes that are none, lines, and whatever protobuf may hold as the same rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.errors import DecodeError
from observatory_storage.models.metric import METRIC_TYPES, TEMPORALITIES
from observatory_storage.otlp import Signal, decode_metrics, iter_json_lines
from tests.otlp_metrics import decoded, gauge, sent_points
from tests.otlp_requests import (
    JSON,
    as_otlp_json,
    metric_request,
    metrics_service,
    recorded,
    request,
    sent_span,
    time,
)


@pytest.mark.parametrize(
    "metric",
    [
        7,
        {"name": "m", "gauge": 7},
        {"name": "m", "gauge": {"dataPoints": {}}},
        {"name": "m", "gauge": {"dataPoints": [7]}},
        {"name": 7, "gauge": {"dataPoints": [{"asInt": 1}]}},
        {"name": "m", "sum": {"isMonotonic": "yes", "dataPoints": [{"asInt": 1}]}},
        {"name": "m", "histogram": {"dataPoints": [{"exemplars": [{"asInt": "x"}]}]}},
    ],
)
def test_a_metric_of_another_shape_costs_itself_alone(metric: Any) -> None:
    found = decoded(metric, {"name": "other"} | gauge())
    assert [point["metric"]["name"] for point in found.data_points] == ["other"]
    assert len(found.rejected) == 1


@pytest.mark.parametrize("group", [7, {"resource": 7}, {"scopeMetrics": {}}, {"instrumentationLibraryMetrics": [{}]}])
def test_a_resource_or_scope_of_another_shape_refuses_the_payload(group: Any) -> None:
    with pytest.raises(DecodeError, match="OTLP/JSON of metrics"):
        decode_metrics(json.dumps({"resourceMetrics": [group]}).encode(), JSON)


def test_other_signals_are_refused() -> None:
    for path in [*recorded("*.traces.pb"), *recorded("*.logs.pb")]:
        with pytest.raises(DecodeError, match="expected OTLP metrics in protobuf: this is an OTLP request of"):
            decode_metrics(path.read_bytes())
    with pytest.raises(DecodeError, match="this is an OTLP request of traces"):
        decode_metrics(request(sent_span()), JSON)


def test_json_lines() -> None:
    line = metric_request({"name": "m"} | gauge(), {"name": "none"})
    found = decode_metrics(line + b"\n{broken\n" + line, None)
    assert (len(found.data_points), found.empty_metrics) == (2, 2)
    assert [(error.row or {})["line"] for error in found.rejected] == [2]
    assert [len(part.data_points) for part in iter_json_lines([line, line], Signal.METRICS)] == [1, 1]


# What protobuf may hold in a data point of any type.
doubles = st.floats(allow_nan=False)
counts = st.integers(0, 2**63 - 1)
times = st.integers(0, 2**63 - 1)
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    message = metrics_service.ExportMetricsServiceRequest()
    group = message.resource_metrics.add()
    group.resource.attributes.add(key="service.name").value.string_value = draw(names)
    metrics = group.scope_metrics.add().metrics
    for kind in draw(
        st.lists(st.sampled_from(sorted(("gauge", "sum", "histogram", "exponential_histogram", "summary"))), max_size=4)
    ):
        metric = metrics.add(name=draw(names), unit=draw(names), description=draw(names))
        data = getattr(metric, kind)
        data.SetInParent()
        if kind not in ("gauge", "summary"):
            data.aggregation_temporality = draw(st.integers(0, 3))
        if kind == "sum":
            data.is_monotonic = draw(st.booleans())
        for _ in range(draw(st.integers(0, 2))):
            fill(draw, kind, data.data_points.add())
    return message


def fill(draw: st.DrawFn, kind: str, point: Any) -> None:
    point.time_unix_nano = draw(times)
    point.start_time_unix_nano = draw(times)
    point.flags = draw(st.integers(0, 3))
    point.attributes.add(key=draw(names)).value.string_value = draw(names)
    if kind in ("gauge", "sum"):
        if draw(st.booleans()):
            point.as_int = draw(st.integers(-(2**63), 2**63 - 1))
        else:
            point.as_double = draw(doubles)
    else:
        point.count = draw(counts)
        point.sum = draw(doubles)
    if kind in ("histogram", "exponential_histogram") and draw(st.booleans()):
        point.min, point.max = draw(doubles), draw(doubles)
    if kind == "histogram":
        bounds = sorted(draw(st.sets(doubles, max_size=4)))
        point.explicit_bounds.extend(bounds)
        point.bucket_counts.extend(draw(counts) for _ in range(len(bounds) + 1))
    if kind == "exponential_histogram":
        point.scale = draw(st.integers(-(2**31), 2**31 - 1))
        point.zero_count = draw(counts)
        point.zero_threshold = draw(doubles)
        point.positive.offset = draw(st.integers(-(2**31), 2**31 - 1))
        point.positive.bucket_counts.extend(draw(st.lists(counts, max_size=3)))
    if kind == "summary":
        for _ in range(draw(st.integers(0, 2))):
            point.quantile_values.add(quantile=draw(doubles), value=draw(doubles))
    else:
        for _ in range(draw(st.integers(0, 2))):
            exemplar = point.exemplars.add(time_unix_nano=draw(times), as_double=draw(doubles))
            exemplar.trace_id, exemplar.span_id = draw(st.binary(max_size=17)), draw(st.binary(max_size=9))


@given(requests())
@settings(max_examples=150, deadline=None)
def test_any_metrics_give_the_same_rows_from_protobuf_and_json(message: Any) -> None:
    found = decode_metrics(message.SerializeToString())
    from_json = decode_metrics(as_otlp_json(message), JSON)
    assert found.rejected == from_json.rejected == []
    assert repr(found.data_points) == repr(from_json.data_points)
    assert found.empty_metrics == from_json.empty_metrics
    sent = sent_points(message)
    assert len(found.data_points) == len(sent)
    for row, (metric, point) in zip(found.data_points, sent, strict=True):
        assert row["metric"]["metric_type"] in METRIC_TYPES
        assert row["metric"]["temporality"] in TEMPORALITIES
        assert row["timestamp"] == time(point.time_unix_nano or point.start_time_unix_nano)
        if point.flags & 1:
            assert not {"value", "count"} & set(row)
        elif metric.WhichOneof("data") in ("gauge", "sum"):
            kept = row["value_int"] if point.HasField("as_int") else row["value"]
            assert kept == getattr(point, point.WhichOneof("value"))
        else:
            assert (row["count"], row["sum"]) == (point.count, point.sum)
