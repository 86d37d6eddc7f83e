"""Metrics of every type become data point rows: what was sent exactly, and nothing that was not."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.otlp import decode_metrics
from tests.otlp_metrics import decoded, exponential, gauge, histogram, one, sent_points
from tests.otlp_requests import (
    END,
    EPOCH,
    JSON,
    START,
    TRACE_ID,
    as_otlp_json,
    examples,
    metrics_service,
    pairs,
    recorded,
    time,
)


def parsed(data: bytes) -> Any:
    return metrics_service.ExportMetricsServiceRequest.FromString(data)


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
