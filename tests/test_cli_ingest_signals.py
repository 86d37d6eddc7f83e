"""`ingest`: metrics and logs beside traces; what each file held; ingesting again changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.command_line import invoke
from tests.otlp_requests import (
    START,
    examples,
    log_request,
    logs_service,
    metric_request,
    metrics_service,
    recorded,
    request,
    sent_span,
)
from tests.telemetry import count

KINDS = ("traces", "spans", "events", "metrics", "data_points", "logs")


def sent(path: Path) -> int:
    """The number of data points or log records in a file, counted by OpenTelemetry's own messages."""
    if ".logs." in path.name:
        groups = logs_service.ExportLogsServiceRequest.FromString(path.read_bytes()).resource_logs
        return sum(len(scope.log_records) for group in groups for scope in group.scope_logs)
    groups = metrics_service.ExportMetricsServiceRequest.FromString(path.read_bytes()).resource_metrics
    metrics = [metric for group in groups for scope in group.scope_metrics for metric in scope.metrics]
    return sum(len(getattr(metric, metric.WhichOneof("data")).data_points) for metric in metrics)


def small(pattern: str) -> list[Path]:
    return [path for path in recorded(pattern) if path.stat().st_size < 1_000_000]


@pytest.mark.parametrize("method", ["auto", "insert", "copy"])
def test_all_recorded_files_land_once(method: str, database_url: str) -> None:
    metrics, logs = small("*.metrics.pb"), small("*.logs.pb")
    arguments = ("ingest", "--json", "--method", method, "--database-url", database_url, *metrics, *logs)
    first = invoke(*arguments)
    assert (first.status, first.stderr) == (0, "")
    figures = first.json
    assert figures["data_points"] == sum(map(sent, metrics)) == count(database_url, "metric_data_points")
    assert figures["logs"] == sum(map(sent, logs)) == count(database_url, "logs")
    assert figures["metrics"] == count(database_url, "metrics")
    assert (figures["rejected"], figures["duplicates"], figures["conflicting"]) == (0, 0, 0)
    for path, held in zip((*metrics, *logs), figures["files"], strict=True):
        rows = held.get("logs", held.get("data_points"))
        assert (held["file"], rows) == (str(path), sent(path))
        assert held["signals"] == ["logs" if ".logs." in path.name else "metrics"]
    second = invoke(*arguments).json
    assert {name: second[name] for name in KINDS} == {name: figures[name] for name in KINDS}
    assert second["duplicates"] == figures["data_points"] + figures["logs"]
    assert (second["rejected"], second["conflicting"]) == (0, 0)
    assert count(database_url, "metric_data_points") == figures["data_points"]
    assert count(database_url, "logs") == figures["logs"]


def test_examples_of_opentelemetry(database_url: str) -> None:
    paths = examples()
    if paths:
        done = invoke("ingest", "--json", "--database-url", database_url, *paths)
        assert (done.status, done.stderr) == (0, "")
        found = {name: done.json[name] for name in KINDS}
        assert found == {"traces": 1, "spans": 1, "events": 0, "metrics": 4, "data_points": 4, "logs": 2}


def test_the_summary_for_people(database_url: str, tmp_path: Path) -> None:
    bodies = {
        "a.json": request(sent_span()),
        "b.json": metric_request({"name": "m", "gauge": {"dataPoints": [{"timeUnixNano": str(START), "asInt": 1}]}}),
        "c.json": log_request({"timeUnixNano": str(START), "body": {"stringValue": "a line"}}),
        "d.json": b"",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    files = [tmp_path / name for name in bodies]
    done = invoke("ingest", "--database-url", database_url, *files)
    lines = done.stdout.splitlines()
    assert lines[:-1] == [
        f"{files[0]}: 1 trace, 1 span and 0 events",
        f"{files[1]}: 1 data point of 1 metric",
        f"{files[2]}: 1 log record",
        f"{files[3]}: nothing",
    ]
    assert lines[-1].startswith("stored 1 trace, 1 span and 0 events, 1 data point of 1 metric, 1 log record in ")
    assert lines[-1].endswith(" s; 0 rejected")
    again = invoke("ingest", "--database-url", database_url, *files[1:3]).stdout.splitlines()[-1]
    assert "1 of the data points and 1 of the log records were there already; 0 rejected" in again


def test_standard_input_of_another_signal(database_url: str) -> None:
    body = recorded("openllmetry.metrics.pb")[0].read_bytes()
    done = invoke("ingest", "-", "--signal", "metrics", "--json", "--database-url", database_url, stdin=body)
    assert (done.status, done.json["data_points"], done.json["spans"]) == (0, 36, 0)
    assert done.json["files"] == [
        {"file": "standard input", "signals": ["metrics"], "metrics": 7, "data_points": 36},
    ]


def gauge(value: float, **members: Any) -> dict[str, Any]:
    return {"name": "m", "gauge": {"dataPoints": [{"timeUnixNano": str(START), "asDouble": value} | members]}}


def test_points_that_differ_from_what_is_stored_are_rejected(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    for value, status, stored in ((1.5, 0, 1), (2.5, 3, 0)):
        file.write_bytes(metric_request(gauge(value)))
        done = invoke("ingest", "--json", "--database-url", database_url, file)
        assert (done.status, done.json["data_points"], done.json["duplicates"]) == (status, stored, 0)
        assert done.json["conflicting"] == done.json["rejected"] == 1 - stored
    assert done.sentence.startswith(f"rejected: {file}: data point of 'm': ")
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT value FROM metric_data_points").fetchall() == [(1.5,)]


def test_rejected_points_and_records_are_named(database_url: str, tmp_path: Path) -> None:
    points = tmp_path / "metrics.json"
    points.write_bytes(
        metric_request(gauge(1), gauge(1) | {"name": "late"}, {"name": "n", "gauge": {"dataPoints": [{}]}})
    )
    records = tmp_path / "logs.json"
    records.write_bytes(log_request({}, {"spanId": "eee19b7ec3c1b174", "timeUnixNano": -1}))
    kept = tmp_path / "kept.jsonl"
    done = invoke("ingest", "--json", "--rejected", kept, "--database-url", database_url, points, records)
    assert done.status == 3
    assert (done.json["data_points"], done.json["logs"], done.json["rejected"]) == (2, 1, 2)
    first, second = done.stderr.splitlines()
    assert first.startswith(f"rejected: {points} line 1: data point of 'n': the data point has no value")
    assert second.startswith(f"rejected: {records} line 1: log record of span eee19b7ec3c1b174: the time lies before")
    assert [json.loads(line)["file"] for line in kept.read_text().splitlines()] == [str(points), str(records)]


def test_project(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(metric_request(gauge(1)))
    (tmp_path / "logs.json").write_bytes(log_request({"body": {"stringValue": "x"}}))
    files = [tmp_path / "metrics.json", tmp_path / "logs.json"]
    assert invoke("ingest", "--project", "mine", "--database-url", database_url, *files).status == 0
    with psycopg.connect(database_url) as connection:
        for table in ("metrics", "metric_series", "metric_data_points", "logs"):
            assert connection.execute(f"SELECT project FROM {table}").fetchall() == [("mine",)]


@pytest.mark.parametrize("traces_first", [True, False])
def test_content_of_events_fills_spans(traces_first: bool, database_url: str) -> None:
    files = [*recorded("otel-openai-v2-events.traces.pb"), *recorded("otel-openai-v2-events.logs.pb")]
    done = invoke("ingest", "--json", "--database-url", database_url, *(files if traces_first else files[::-1]))
    assert (done.status, done.json["spans_filled"]) == (0, 6)
    with psycopg.connect(database_url) as connection:
        statement = "SELECT count(*), count(input), count(output) FROM trace_spans WHERE operation = 'chat'"
        assert connection.execute(statement).fetchone() == (6, 6, 5)


def test_help_says_all_keys_of_the_json() -> None:
    shown = " ".join(invoke("ingest", "--help").stdout.split())
    for key in (*KINDS, "rejected", "duplicates", "conflicting", "spans_filled", "passed_over", "seconds", "files"):
        assert key in shown
    assert "--signal" in shown
