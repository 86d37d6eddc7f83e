"""`ingest`: JSON that holds several signals, in one object or line by line; none is dropped in silence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.otlp import Signal
from tests.command_line import Outcome, invoke
from tests.otlp_requests import START, log_request, metric_request, request, sent_span
from tests.telemetry import count

POINT = {"name": "m", "gauge": {"dataPoints": [{"timeUnixNano": str(START), "asInt": 1}]}}
LINE = {"timeUnixNano": str(START), "body": {"stringValue": "a line"}}
OTHER_LINE = LINE | {"body": {"stringValue": "another line"}}
BODIES = {
    Signal.TRACES: request(sent_span()),
    Signal.METRICS: metric_request(POINT),
    Signal.LOGS: log_request(LINE, OTHER_LINE),
}
ROWS = {Signal.TRACES: "spans", Signal.METRICS: "data_points", Signal.LOGS: "logs"}
TABLES = {Signal.TRACES: "trace_spans", Signal.METRICS: "metric_data_points", Signal.LOGS: "logs"}
ALL = {"traces": 1, "metrics": 1, "logs": 2}


def together(*signals: Signal, **members: Any) -> bytes:
    """One object with several signals, in this order."""
    merged: dict[str, Any] = {}
    for signal in signals:
        merged |= json.loads(BODIES[signal])
    return json.dumps(merged | members).encode()


def stored(database_url: str) -> dict[str, int]:
    return {signal.value: count(database_url, table) for signal, table in TABLES.items()}


def told(done: Outcome) -> dict[str, int]:
    return {signal.value: done.json[name] for signal, name in ROWS.items()}


def ingest(database_url: str, file: object, *options: object, stdin: bytes = b"") -> Outcome:
    return invoke("ingest", "--json", "--database-url", database_url, file, *options, stdin=stdin)


@pytest.mark.parametrize("name", ["capture.json", "app.logs.json", "capture.json.gz"])
@pytest.mark.parametrize("order", [(*Signal,), (*reversed(Signal),)])
def test_an_object_with_several_signals_is_stored_whole(
    order: tuple[Signal, ...], name: str, database_url: str, tmp_path: Path
) -> None:
    body = json.dumps(json.loads(together(*order)), indent=1).encode()
    file = tmp_path / name
    file.write_bytes(gzip.compress(body) if name.endswith("gz") else body)
    done = ingest(database_url, file)
    assert (done.status, done.stderr) == (0, "")
    assert told(done) == stored(database_url) == ALL
    (held,) = done.json["files"]
    assert held["signals"] == ["traces", "metrics", "logs"]
    assert (held["spans"], held["data_points"], held["logs"]) == (1, 1, 2)
    again = ingest(database_url, file)
    assert (told(again), again.json["duplicates"], stored(database_url)) == (ALL, 4, ALL)


@pytest.mark.parametrize("name", ["capture.jsonl", "traces.jsonl"])
@pytest.mark.parametrize("order", [(*Signal,), (*reversed(Signal),)])
def test_each_line_says_what_it_is(order: tuple[Signal, ...], name: str, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"\n".join([BODIES[signal] for signal in order] + [b"{}", b"{]"] + [together(*order)]))
    done = ingest(database_url, file)
    assert (done.status, told(done), stored(database_url)) == (1, {"traces": 2, "metrics": 2, "logs": 4}, ALL)
    assert done.sentence.startswith(f"{file} line 5: expected OTLP/JSON")


@pytest.mark.parametrize("signal", Signal)
def test_one_signal_that_is_asked_for_and_the_others_are_counted(
    signal: Signal, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "capture.jsonl"
    file.write_bytes(b"\n".join([together(*Signal)] * 3))
    done = ingest(database_url, file, "--signal", signal)
    own = {name: number if name == signal else 0 for name, number in ALL.items()}
    assert (done.status, stored(database_url)) == (0, own)
    assert done.json["passed_over"] == 3 * (4 - ALL[signal])
    assert done.json["files"][0]["signals"] == [signal]
    others = {Signal.TRACES: "3 spans", Signal.METRICS: "3 data points", Signal.LOGS: "6 log records"}
    said = " and ".join(words for other, words in others.items() if other is not signal)
    assert done.sentence == f"{file}: passed over {said}, which --signal does not ask for"


def test_members_without_content_are_nothing(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "capture.json"
    file.write_bytes(together(Signal.LOGS, resourceSpans=[], resourceMetrics=None))
    done = ingest(database_url, file)
    assert (done.status, done.stderr, done.json["files"][0]["signals"]) == (0, "", ["logs"])
    done = ingest(database_url, file, "--signal", "traces")
    assert (done.status, done.json["passed_over"]) == (0, 2)
    assert done.sentence == f"{file}: passed over 2 log records, which --signal does not ask for"


def test_of_an_object_one_signal_may_be_broken(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "capture.json"
    file.write_bytes(together(Signal.TRACES, resourceLogs="none"))
    done = ingest(database_url, file)
    reason = "this is no OTLP/JSON of logs: resourceLogs is text; OTLP/JSON has a list"
    assert (done.status, done.json["spans"], done.sentence) == (1, 1, f"{file} line 1: {reason}")
    done = ingest(database_url, file, "--signal", "traces")
    assert (done.status, done.json["spans"], done.sentence) == (0, 1, f"{file} line 1: passed over: {reason}")


def test_standard_input_takes_what_stands_beside_traces(database_url: str) -> None:
    done = ingest(database_url, "-", stdin=together(Signal.LOGS, Signal.TRACES))
    assert (done.status, done.stderr, told(done)) == (0, "", {"traces": 1, "metrics": 0, "logs": 2})
    done = ingest(database_url, "-", stdin=together(Signal.METRICS, resourceSpans=[]))
    assert (done.status, done.stderr, done.json["data_points"]) == (0, "", 1)
    done = ingest(database_url, "-", stdin=together(Signal.METRICS, Signal.LOGS))
    assert (done.status, stored(database_url)) == (1, ALL)
    assert done.sentence.endswith("this is an OTLP request of metrics; --signal says what a file holds")


def test_rejected_rows_are_named_by_their_own_signal(database_url: str, tmp_path: Path) -> None:
    """A span that only the database can refuse, while log records of the same file are written."""
    file = tmp_path / "capture.json"
    file.write_bytes(BODIES[Signal.TRACES])
    assert ingest(database_url, file, "--project", "first").status == 0
    file.write_bytes(together(*Signal))
    done = ingest(database_url, file, "--project", "second")
    assert (done.status, done.json["rejected"]) == (3, 1)
    assert done.sentence.startswith(f"rejected: {file}: span ")
