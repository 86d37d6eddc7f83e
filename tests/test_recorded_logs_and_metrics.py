"""Recorded logs and metrics of real clients, from OTLP bytes to tables: complete, and the same however they arrive."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.otlp import Signal, decode, decode_logs, decode_metrics, decode_traces
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriteMethod, WriterConfig
from tests.otlp_requests import examples, json_format, logs_service, metrics_service, recorded, trace_service
from tests.signals import LOG_TABLES, METRIC_TABLES, comparable, deadlocks, empty, stored_rows, write_logs, write_points
from tests.under_fire import output_of, run_python

ROOT = Path(__file__).parent.parent
LOGS = recorded("*.logs.pb")
METRICS = recorded("*.metrics.pb")
REQUESTS = {
    Signal.TRACES: trace_service.ExportTraceServiceRequest,
    Signal.METRICS: metrics_service.ExportMetricsServiceRequest,
    Signal.LOGS: logs_service.ExportLogsServiceRequest,
}


def records_in(request: Any) -> list[Any]:
    return [record for rl in request.resource_logs for sl in rl.scope_logs for record in sl.log_records]


def spans_in(request: Any) -> list[Any]:
    return [span for rs in request.resource_spans for ss in rs.scope_spans for span in ss.spans]


def points_in(request: Any) -> list[tuple[Any, Any]]:
    """The data points of a request, each with its metric."""
    found = []
    for group in request.resource_metrics:
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                found += [(metric, point) for point in data.data_points]
    return found


def keys_of(request: Any) -> Counter[bytes]:
    """How often each point's key comes: resource, scope, metric, attributes and time."""
    keys: Counter[bytes] = Counter()
    for group in request.resource_metrics:
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    attributes = sorted(pair.SerializeToString(deterministic=True) for pair in point.attributes)
                    parts = [
                        group.resource.SerializeToString(deterministic=True),
                        scope.scope.SerializeToString(deterministic=True),
                        f"{metric.name} {metric.unit} {kind}".encode(),
                        *attributes,
                        str(point.time_unix_nano // 1000).encode(),
                    ]
                    keys[b"\0".join(parts)] += 1
    return keys


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_every_record_of_a_file_lands_and_a_second_time_changes_nothing(
    pool: StoragePool, database_url: str, path: Path
) -> None:
    request = REQUESTS[Signal.LOGS].FromString(path.read_bytes())
    sent = records_in(request)
    decoded = decode_logs(path.read_bytes())
    assert decoded.rejected == []
    stats, rejected = write_logs(pool, decoded.logs)
    assert (stats.logs_written, rejected) == (len(sent), [])
    tables = stored_rows(database_url, *LOG_TABLES)
    assert len(tables["logs"]) == len(sent) > 0
    assert len(tables["resources"]) == len({rl.resource.SerializeToString() for rl in request.resource_logs})
    for name in ("trace_id", "span_id"):
        stored = Counter(bytes(getattr(row[name], "bytes", row[name] or b"")) for row in tables["logs"])
        assert stored == Counter(getattr(record, name) for record in sent)
    assert Counter(row["severity_number"] or 0 for row in tables["logs"]) == Counter(
        record.severity_number for record in sent
    )
    for method in (WriteMethod.COPY, WriteMethod.INSERT):
        stats, rejected = write_logs(pool, decode_logs(path.read_bytes()).logs, method=method)
        assert (stats.logs_written, stats.logs_duplicate, rejected) == (0, len(sent), [])
    assert stored_rows(database_url, *LOG_TABLES) == tables


@pytest.mark.parametrize("path", METRICS, ids=lambda path: path.name)
def test_every_point_of_a_file_lands_and_a_second_time_changes_nothing(
    pool: StoragePool, database_url: str, path: Path
) -> None:
    request = REQUESTS[Signal.METRICS].FromString(path.read_bytes())
    keys = keys_of(request)
    decoded = decode_metrics(path.read_bytes())
    assert decoded.rejected == []
    stats, rejected = write_points(pool, decoded.data_points)
    assert rejected == []
    assert (stats.data_points_written, stats.data_points_duplicate) == (len(keys), keys.total() - len(keys))
    tables = stored_rows(database_url, *METRIC_TABLES)
    assert len(tables["metric_data_points"]) == len(keys) > 0
    assert len(tables["resources"]) == len({rm.resource.SerializeToString() for rm in request.resource_metrics})
    assert {row["name"] for row in tables["metrics"]} == {metric.name for metric, _ in points_in(request)}
    for method in (WriteMethod.COPY, WriteMethod.INSERT):
        stats, rejected = write_points(pool, decode_metrics(path.read_bytes()).data_points, method=method)
        assert (stats.data_points_written, stats.data_points_duplicate, rejected) == (0, keys.total(), [])
    assert comparable(stored_rows(database_url, *METRIC_TABLES)) == comparable(tables)


@pytest.mark.parametrize("path", METRICS, ids=lambda path: path.name)
def test_numbers_of_a_file_come_back_exactly(pool: StoragePool, database_url: str, path: Path) -> None:
    points = points_in(REQUESTS[Signal.METRICS].FromString(path.read_bytes()))
    write_points(pool, decode_metrics(path.read_bytes()).data_points)
    stored = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    sent = {
        (point.time_unix_nano // 1000, point.count, point.sum, tuple(point.bucket_counts), tuple(point.explicit_bounds))
        for metric, point in points
        if metric.HasField("histogram")
    }
    found = {
        (
            round(row["timestamp"].timestamp() * 10**6),
            row["count"],
            row["sum"],
            tuple(row["bucket_counts"] or ()),
            tuple(row["bucket_bounds"] or ()),
        )
        for row in stored
        if row["count"] is not None
    }
    assert found == sent
    whole = {p.as_int for metric, p in points if metric.HasField("sum") and p.WhichOneof("value") == "as_int"}
    assert {row["value_int"] for row in stored if row["value_int"] is not None} >= whole


# Where the examples are not, small recordings take their place.
@pytest.mark.parametrize("path", examples() or [LOGS[0], METRICS[0]], ids=lambda path: path.name)
def test_every_example_of_opentelemetry_lands_and_a_second_time_changes_nothing(
    pool: StoragePool, database_url: str, path: Path
) -> None:
    tables = ("resources", "traces", "trace_spans", "logs", "metrics", "metric_series", "metric_data_points")
    kind = Signal.METRICS if "metrics" in path.name else {"trace.json": Signal.TRACES}.get(path.name, Signal.LOGS)
    is_json = path.suffix == ".json"
    found: list[Any] = []
    for method in (WriteMethod.COPY, WriteMethod.INSERT):
        decoded: Any = decode(path.read_bytes(), kind, "application/json" if is_json else "application/x-protobuf")
        assert decoded.rejected == []
        config = WriterConfig(method=method)
        with (
            TraceWriter(pool, config) as traces,
            MetricWriter(pool, config) as metrics,
            LogWriter(pool, config) as logs,
        ):
            traces.write_spans(getattr(decoded, "spans", []))
            metrics.write_data_points(getattr(decoded, "data_points", []))
            logs.write_logs(getattr(decoded, "logs", []))
        assert [writer.write_stats().rows_rejected for writer in (traces, metrics, logs)] == [0, 0, 0]
        found.append(stored_rows(database_url, *tables))
    assert comparable(found[0]) == comparable(found[1])
    # Protobuf's own reader takes ids for base64: numbers of records are all that is compared.
    request = REQUESTS[kind]
    sent = json_format.Parse(path.read_bytes(), request()) if is_json else request.FromString(path.read_bytes())
    in_all = {Signal.TRACES: spans_in, Signal.METRICS: points_in, Signal.LOGS: records_in}[kind](sent)
    table = {Signal.TRACES: "trace_spans", Signal.METRICS: "metric_data_points", Signal.LOGS: "logs"}[kind]
    assert len(found[0][table]) == len(in_all) > 0


@pytest.mark.every_server
@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_deliveries_split_at_random_leave_what_one_does(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    small = [path for path in (*LOGS, *METRICS) if path.stat().st_size < 100_000]
    requests: list[tuple[bool, list[Any]]] = []
    for path in small:
        if path in LOGS:
            requests.append((True, decode_logs(path.read_bytes()).logs))
        else:
            requests.append((False, decode_metrics(path.read_bytes()).data_points))
    found: list[str] = []
    dice = random.Random(7)
    for batch_size in (5_000, 3, 50):
        dice.shuffle(requests)
        empty(database_url, *LOG_TABLES, *METRIC_TABLES[1:])
        for _ in range(2):
            for is_log, rows in requests:
                write = write_logs if is_log else write_points
                assert write(pool, rows, method=method, batch_size=batch_size)[1] == []
        found.append(comparable(stored_rows(database_url, *LOG_TABLES, *METRIC_TABLES[1:])))
    assert found[0] == found[1] == found[2]


INGEST = """
import random, sys
from pathlib import Path
from observatory_storage import StoragePool
from observatory_storage.otlp import decode_logs, decode_metrics, decode_traces
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriterConfig
url, method, seed, *paths = sys.argv[1:]
dice = random.Random(seed)
dice.shuffle(paths)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    config = WriterConfig(method=method, batch_size=97)
    with TraceWriter(pool, config) as traces, MetricWriter(pool, config) as metrics, LogWriter(pool, config) as logs:
        for path in paths:
            data = Path(path).read_bytes()
            if path.endswith(".logs.pb"):
                logs.write_logs(decode_logs(data).logs)
            elif path.endswith(".metrics.pb"):
                metrics.write_data_points(decode_metrics(data).data_points)
            else:
                traces.write_spans(decode_traces(data).spans)
            for writer in dice.sample([traces, metrics, logs], 2):
                writer.flush()
    for writer in (traces, metrics, logs):
        assert writer.write_stats().rows_rejected == writer.write_stats().failures == 0, writer.write_stats()
"""


def test_four_processes_with_all_files_at_once_leave_what_one_does(pool: StoragePool, database_url: str) -> None:
    tables = ("resources", "traces", "trace_spans", "logs", "metrics", "metric_series", "metric_data_points")
    paths = [*LOGS, *METRICS, *recorded("*.traces.pb")]
    with TraceWriter(pool) as traces, MetricWriter(pool) as metrics, LogWriter(pool) as logs:
        for path in paths:
            data = path.read_bytes()
            if path in LOGS:
                logs.write_logs(decode_logs(data).logs)
            elif path in METRICS:
                metrics.write_data_points(decode_metrics(data).data_points)
            else:
                traces.write_spans(decode_traces(data).spans)
    once = comparable(stored_rows(database_url, *tables))
    empty(database_url, *tables, "trace_events")
    processes = [
        run_python(INGEST, database_url, method, str(seed), *map(str, paths))
        for seed, method in enumerate(["copy", "insert", "copy", "insert"])
    ]
    assert [output_of(process) for process in processes] == [""] * 4
    assert deadlocks(database_url) == 0
    assert comparable(stored_rows(database_url, *tables)) == once
