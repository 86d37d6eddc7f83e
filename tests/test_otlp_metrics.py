"""Metrics of every type become data point rows: what was sent exactly, and nothing that was not."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.errors import DecodeError
from observatory_storage.models.metric import METRIC_TYPES, TEMPORALITIES
from observatory_storage.models.rows import DataPointRow
from observatory_storage.otlp import DecodedMetrics, Signal, decode_metrics, iter_json_lines
from tests.otlp_requests import (
    END,
    START,
    TRACE_ID,
    as_otlp_json,
    examples,
    metric_request,
    metrics_service,
    pairs,
    recorded,
    request,
    sent_span,
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
JSON = "application/json"


def time(nanoseconds: int) -> dt.datetime:
    return EPOCH + dt.timedelta(microseconds=nanoseconds // 1000)


def parsed(data: bytes) -> Any:
    return metrics_service.ExportMetricsServiceRequest.FromString(data)


def sent_points(message: Any) -> list[tuple[Any, Any]]:
    return [
        (metric, point)
        for group in message.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


def decoded(*metrics: Any, **members: Any) -> DecodedMetrics:
    return decode_metrics(metric_request(*metrics, **members), JSON)


def one(metric: dict[str, Any], **members: Any) -> DataPointRow:
    found = decoded({"name": "m"} | metric, **members)
    assert not found.rejected
    (point,) = found.data_points
    return point


def gauge(**members: Any) -> dict[str, Any]:
    return {"gauge": {"dataPoints": [{"timeUnixNano": str(END), "asDouble": 1} | members]}}


def histogram(**members: Any) -> dict[str, Any]:
    return {"histogram": {"aggregationTemporality": 2, "dataPoints": [{"timeUnixNano": str(END)} | members]}}


def exponential(**members: Any) -> dict[str, Any]:
    return {"exponentialHistogram": {"dataPoints": [{"timeUnixNano": str(END), "count": 3} | members]}}


def reason(metric: dict[str, Any]) -> str:
    """Why a data point is rejected; the one sent next to it lands."""
    found = decoded({"name": "m"} | metric, {"name": "other"} | gauge())
    assert [point["metric"]["name"] for point in found.data_points] == ["other"]
    (error,) = found.rejected
    assert (error.row or {})["metric"] == "m"
    return error.reason


@pytest.mark.parametrize("path", recorded("*.metrics.pb"), ids=lambda path: path.name)
def test_every_recorded_data_point_lands(path: Path) -> None:
    data = path.read_bytes()
    found = decode_metrics(data)
    sent = sent_points(parsed(data))
    assert found.rejected == []
    assert found.empty_metrics == 0
    assert len(found.data_points) == len(sent) > 0
    for row, (metric, point) in zip(found.data_points, sent, strict=True):
        assert (row["metric"]["name"], row["metric"]["unit"]) == (metric.name, metric.unit)
        assert (row["timestamp"], row["start_time"]) == (
            time(point.time_unix_nano),
            time(point.start_time_unix_nano),
        )
        assert set(row["attributes"] or {}) == {pair.key for pair in point.attributes}
        assert len(row.get("exemplars") or ()) == len(point.exemplars)
        if metric.HasField("histogram"):
            assert (row["count"], row["sum"], row["min"], row["max"]) == (point.count, point.sum, point.min, point.max)
            assert row["bucket_counts"] == list(point.bucket_counts)
            assert row["bucket_bounds"] == list(point.explicit_bounds)
        else:
            assert row["value_int"] == point.as_int
        assert row["metric"]["temporality"] == "cumulative"


@pytest.mark.parametrize("path", recorded("*.metrics.pb"), ids=lambda path: path.name)
@pytest.mark.parametrize("snake_case", [False, True])
def test_json_gives_the_same_rows_as_protobuf(path: Path, snake_case: bool) -> None:
    data = path.read_bytes()
    from_json = decode_metrics(as_otlp_json(parsed(data), snake_case=snake_case), JSON)
    assert from_json.rejected == []
    assert from_json.data_points == decode_metrics(data).data_points


def test_examples_of_opentelemetry() -> None:
    for path in examples():
        body = path.read_bytes()
        if b"resourceMetrics" in body:
            found = decode_metrics(body, JSON)
            assert (len(found.data_points), found.rejected, found.empty_metrics) == (4, [], 0)
            types = [point["metric"]["metric_type"] for point in found.data_points]
            assert types == ["counter", "gauge", "histogram", "exponential_histogram"]


def test_a_metric_and_a_resource_are_one_object_each() -> None:
    (path,) = recorded("openllmetry.metrics.pb")
    points = decode_metrics(path.read_bytes()).data_points
    assert len({id(point["resource"]) for point in points}) == 2
    assert len({id(point["metric"]) for point in points}) == 14
    metric = points[0]["metric"]
    assert metric == {
        "name": "gen_ai.client.token.usage",
        "description": metric["description"],
        "unit": "token",
        "metric_type": "histogram",
        "temporality": "cumulative",
        "is_monotonic": False,
        "service_name": "capture-openllmetry",
        "scope_name": "opentelemetry.instrumentation.openai.v1",
        "scope_version": metric["scope_version"],
    }
    assert metric["description"]


class TestNumbers:
    @pytest.mark.parametrize(
        ("sent", "value", "exact"),
        [
            ({"asInt": "7"}, 7.0, 7),
            ({"asInt": 7}, 7.0, 7),
            ({"as_int": "-9223372036854775808"}, -(2.0**63), -(2**63)),
            ({"asInt": "9007199254740993"}, 9007199254740992.0, 9007199254740993),
            ({"asInt": 0}, 0.0, 0),
            ({"asDouble": 7}, 7.0, None),
            ({"asDouble": "Infinity"}, math.inf, None),
            ({"asDouble": "-Infinity"}, -math.inf, None),
            ({"as_double": 0.1}, 0.1, None),
        ],
    )
    def test_integer_and_double(self, sent: dict[str, Any], value: float, exact: int | None) -> None:
        row = one({"gauge": {"dataPoints": [{"timeUnixNano": str(END)} | sent]}})
        assert (row["value"], row.get("value_int")) == (value, exact)
        assert type(row["value"]) is float

    def test_not_a_number(self) -> None:
        assert math.isnan(one(gauge(asDouble="NaN"))["value"] or 0.0)

    def test_no_recorded_value(self) -> None:
        row = one({"gauge": {"dataPoints": [{"timeUnixNano": str(END), "flags": 1}]}})
        assert row["flags"] == 1
        assert not {"value", "value_int"} & set(row)
        # A value beside the flag is none either.
        assert "value" not in one(gauge(flags=1))
        stale = one(histogram(flags=1, count="0", bucketCounts=["0"], explicitBounds=[1, 2]))
        assert not {"count", "sum", "bucket_counts", "bucket_bounds"} & set(stale)

    @pytest.mark.parametrize(
        ("sent", "temporality"),
        [
            (0, "unspecified"),
            (1, "delta"),
            (2, "cumulative"),
            ("2", "cumulative"),
            ("AGGREGATION_TEMPORALITY_DELTA", "delta"),
            ("AGGREGATION_TEMPORALITY_CUMULATIVE", "cumulative"),
            ("SOMETHING_NEW", "unspecified"),
            (9, "unspecified"),
            (None, "unspecified"),
        ],
    )
    @pytest.mark.parametrize("monotonic", [True, False, None])
    def test_counters(self, sent: Any, temporality: str, monotonic: bool | None) -> None:
        points = [{"timeUnixNano": str(END), "asInt": 3}]
        metric = one({"sum": {"aggregationTemporality": sent, "isMonotonic": monotonic, "dataPoints": points}})[
            "metric"
        ]
        assert (metric["metric_type"], metric["temporality"]) == ("counter", temporality)
        assert metric["is_monotonic"] is bool(monotonic)

    def test_a_point_without_a_value(self) -> None:
        assert "no value" in reason({"gauge": {"dataPoints": [{"timeUnixNano": str(END)}]}})

    @pytest.mark.parametrize(
        "sent", [{"asInt": "9223372036854775808"}, {"asInt": "x"}, {"asInt": True}, {"asInt": 0.5}]
    )
    def test_integers_that_are_none(self, sent: dict[str, Any]) -> None:
        assert "asInt" in reason({"gauge": {"dataPoints": [sent]}})


class TestTimes:
    def test_nanoseconds_are_floored(self) -> None:
        row = one(gauge(timeUnixNano=str(START + 1999), startTimeUnixNano=START))
        assert (row["timestamp"], row["start_time"]) == (time(START) + dt.timedelta(microseconds=1), time(START))

    def test_missing_times_never_come_from_the_clock(self) -> None:
        assert one(gauge(timeUnixNano=0, startTimeUnixNano=START))["timestamp"] == time(START)
        row = one(gauge(timeUnixNano="0"))
        assert (row["timestamp"], row.get("start_time")) == (EPOCH, None)

    @pytest.mark.parametrize("sent", [-1, 253_402_300_800 * 10**9])
    @pytest.mark.parametrize("member", ["timeUnixNano", "startTimeUnixNano"])
    def test_times_that_cannot_be_stored(self, sent: int, member: str) -> None:
        assert "time lies" in reason(gauge(**{member: sent}))


class TestHistograms:
    def test_all_of_it(self) -> None:
        row = one(
            histogram(
                count="3",
                sum=10.5,
                min=0,
                max="9.5",
                bucketCounts=["1", 2, "0"],
                explicitBounds=[1, 2.5],
            )
        )
        expected = {
            "count": 3,
            "sum": 10.5,
            "min": 0.0,
            "max": 9.5,
            "bucket_counts": [1, 2, 0],
            "bucket_bounds": [1.0, 2.5],
        }
        assert {name: value for name, value in row.items() if name in expected} == expected

    def test_what_is_absent_stays_absent(self) -> None:
        row = one(histogram(count=0))
        assert row["count"] == 0
        absent = {"sum", "min", "max", "bucket_counts", "bucket_bounds", "exemplars", "flags", "start_time", "value"}
        assert not absent & set(row)
        zero = one(histogram(count=1, sum=0, min=0, max=0))
        assert (zero["sum"], zero["min"], zero["max"]) == (0, 0, 0)

    def test_one_bucket_has_no_bounds(self) -> None:
        row = one(histogram(count=4, bucketCounts=["4"]))
        assert (row["bucket_counts"], row["bucket_bounds"]) == ([4], [])

    @pytest.mark.parametrize(
        ("counts", "bounds", "words"),
        [
            ([1, 2], [1, 2], "2 bucket counts and 2 bounds"),
            ([1, 2, 3], [1], "3 bucket counts and 1 bounds"),
            ([], [1], "0 bucket counts and 1 bounds"),
            ([1, 2, 3], [2, 2], "do not ascend"),
            ([1, 2, 3], [3, 2], "do not ascend"),
            ([1, 2, 3], [1, "NaN"], "do not ascend"),
            ([1, 2], ["NaN"], "do not ascend"),
            ([-1, 2], [1], "bucket count"),
            ([1, "x"], [1], "bucket count"),
            ([1, 2**63], [1], "larger than a bigint"),
            ([1, 2**64], [1], "64 bits"),
        ],
    )
    def test_buckets_that_cannot_be_stored(self, counts: list[Any], bounds: list[Any], words: str) -> None:
        assert words in reason(histogram(count=3, bucketCounts=counts, explicitBounds=bounds))

    @pytest.mark.parametrize("count", [2**63, "18446744073709551615"])
    def test_a_count_that_no_bigint_holds(self, count: Any) -> None:
        assert "larger than a bigint" in reason(histogram(count=count))
        assert one(histogram(count=2**63 - 1))["count"] == 2**63 - 1

    def test_exponential(self) -> None:
        row = one(
            exponential(
                sum=10,
                scale=-2,
                zeroCount="1",
                zeroThreshold=0.001,
                positive={"offset": 1, "bucketCounts": ["0", "2"]},
                negative={"offset": -3, "bucketCounts": [1]},
                max=5,
            )
        )
        assert (row["metric"]["metric_type"], row["metric"]["temporality"]) == ("exponential_histogram", "unspecified")
        assert (row["count"], row["sum"], row.get("min"), row["max"]) == (3, 10, None, 5)
        assert (row["scale"], row["zero_count"], row["zero_threshold"]) == (-2, 1, 0.001)
        assert (row["positive_offset"], row["positive_counts"]) == (1, [0, 2])
        assert (row["negative_offset"], row["negative_counts"]) == (-3, [1])

    def test_a_side_without_buckets_is_null(self) -> None:
        row = one(exponential(positive={"offset": 4, "bucketCounts": []}))
        assert not {"positive_offset", "positive_counts", "negative_offset", "negative_counts"} & set(row)
        assert (row["scale"], row["zero_count"], row["zero_threshold"]) == (0, 0, 0.0)

    @pytest.mark.parametrize("sent", [{"scale": 2**31}, {"positive": {"offset": -(2**31) - 1}}, {"zeroCount": 2**63}])
    def test_exponential_that_cannot_be_stored(self, sent: dict[str, Any]) -> None:
        assert reason(exponential(**sent))

    def test_summary(self) -> None:
        quantiles = [{"quantile": 0.5, "value": 2}, {"quantile": 0.99, "value": "NaN"}, {}]
        points = [{"timeUnixNano": str(END), "count": "7", "sum": 14, "quantileValues": quantiles}]
        row = one({"summary": {"dataPoints": points}})
        assert (row["metric"]["metric_type"], row["count"], row["sum"]) == ("summary", 7, 14.0)
        assert repr(row["quantiles"]) == "[[0.5, 2.0], [0.99, nan], [0.0, 0.0]]"


def test_exemplars() -> None:
    sent = [
        {
            "timeUnixNano": str(START),
            "asInt": "9007199254740993",
            "traceId": TRACE_ID.upper(),
            "spanId": "00" * 8,
            "filteredAttributes": pairs({"user": "u"}),
        },
        {"asDouble": 0.5, "spanId": "EEE19B7EC3C1B174"},
    ]
    assert one(gauge(exemplars=sent))["exemplars"] == [
        {
            "time": "2023-11-14T22:13:20.000000+00:00",
            "value": 9007199254740993,
            "trace_id": TRACE_ID,
            "attributes": {"user": "u"},
        },
        {"value": 0.5, "span_id": "eee19b7ec3c1b174"},
    ]


def test_attributes_resource_and_project() -> None:
    resource = {"service.name": "s", "observatory.project": "p"}
    row = one(gauge(attributes=pairs({"model": "m", "n": 2})), resource=resource)
    assert row["attributes"] == {"model": "m", "n": 2}
    assert (row["project"], row["metric"]["project"], row["metric"]["service_name"]) == ("p", "p", "s")
    assert row["resource"] == {
        "service_name": "s",
        "schema_url": None,
        "attributes": resource,
        "project": "p",
    }
    assert "project" not in one(gauge())


def test_scopes_that_differ_in_attributes_have_series_of_their_own() -> None:
    scope = {"name": "n", "version": "1", "attributes": pairs({"shard": 3}), "droppedAttributesCount": 2}
    row = one(gauge(attributes=pairs({"a": 1})), scope=scope)
    assert row["attributes"] == {"a": 1, "otel.scope.shard": 3}
    assert (row["metric"]["scope_name"], row["metric"]["scope_version"]) == ("n", "1")


class TestMetricsWithoutPoints:
    @pytest.mark.parametrize(
        "metric",
        [
            {"name": "m"},
            {"name": "m", "gauge": {}},
            {"name": "m", "sum": {"dataPoints": []}},
            {"name": "m", "gauge": None},
            {"name": "m", "somethingNew": {"dataPoints": [{}]}},
        ],
    )
    def test_in_json(self, metric: dict[str, Any]) -> None:
        found = decoded(metric, {"name": "other"} | gauge())
        assert (found.empty_metrics, len(found.data_points), found.rejected) == (1, 1, [])

    def test_in_protobuf(self) -> None:
        message = metrics_service.ExportMetricsServiceRequest()
        metrics = message.resource_metrics.add().scope_metrics.add().metrics
        metrics.add(name="none")
        metrics.add(name="empty").gauge.SetInParent()
        metrics.add(name="one").gauge.data_points.add(as_int=1)
        # Field 40: a type that does not exist yet.
        unknown = metrics_service.ExportMetricsServiceRequest()
        unknown.resource_metrics.add().scope_metrics.add().metrics.add().MergeFromString(b"\x0a\x01x\xc2\x02\x00")
        found = decode_metrics(message.SerializeToString() + unknown.SerializeToString())
        assert (found.empty_metrics, len(found.data_points), found.rejected) == (3, 1, [])


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
