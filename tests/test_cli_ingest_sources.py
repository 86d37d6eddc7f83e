"""Which signals a file holds: as it is told, by the keys of its JSON, by its name, else traces."""

from __future__ import annotations

import gzip
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.cli.sources import Part, Source
from observatory_storage.otlp import DecodedLogs, DecodedMetrics, DecodedTraces, Signal
from tests.otlp_requests import log_request, metric_request, pairs, recorded, request, sent_span

LINE: dict[str, Any] = {"body": {"stringValue": "a line"}}
BODIES = {
    Signal.TRACES: request(sent_span()),
    Signal.METRICS: metric_request({"name": "m", "gauge": {"dataPoints": [{"asInt": 1}]}}),
    Signal.LOGS: log_request(LINE),
}


def rows(parts: list[Part]) -> dict[Signal, int]:
    """The number of rows of each signal; nothing could not be read."""
    found: dict[Signal, int] = {}
    for part in parts:
        decoded = part.decoded
        assert decoded is not None, part.reason
        if isinstance(decoded, DecodedTraces):
            number = len(decoded.spans)
        elif isinstance(decoded, DecodedMetrics):
            number = len(decoded.data_points)
        else:
            assert isinstance(decoded, DecodedLogs)
            number = len(decoded.logs)
        found[part.signal] = found.get(part.signal, 0) + number
    return found


def read(path: Path | str, signal: Signal | None = None) -> dict[Signal, int]:
    return rows(list(Source(str(path), signal).parts()))


@pytest.mark.parametrize("name", ["app.{}.pb", "{}", "{}-2026-11-22.json.gz", "otel_{}.pb"])
@pytest.mark.parametrize("signal", Signal)
def test_by_the_name(signal: Signal, name: str, tmp_path: Path) -> None:
    path = recorded(f"openllmetry*.{signal}.pb")[0]
    file = tmp_path / name.format(signal)
    file.write_bytes(gzip.compress(path.read_bytes()) if name.endswith("gz") else path.read_bytes())
    assert read(file) == {signal: {"traces": 8, "metrics": 36, "logs": 20}[signal]}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("signal", Signal)
def test_by_the_top_key_of_its_json(signal: Signal, zipped: bool, tmp_path: Path) -> None:
    line = BODIES[signal]
    pretty = line.replace(b"{", b"{\n ").replace(b"[", b"[\n")
    late = b'{\n"first": "' + b"x" * 500 + b'",\n' + line[1:]
    for body, number in ((line, 1), (pretty, 1), (late, 1), (line + b"\n" + line + b"\n", 2), (b"\n" + line, 1)):
        file = tmp_path / "capture"
        file.write_bytes(gzip.compress(body) if zipped else body)
        assert read(file) == {signal: number}


@pytest.mark.parametrize("name", ["capture.jsonl", "app.metrics.json"])
def test_what_is_told_goes_before_the_keys_and_these_before_the_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(BODIES[Signal.LOGS])
    assert read(file) == {Signal.LOGS: 1}
    (part,) = Source(str(file), Signal.METRICS).parts()
    assert part.reason == "expected OTLP/JSON metrics: this is an OTLP request of logs"
    # What does not say what it is.
    file.write_bytes(b"{}")
    assert read(file) == {Signal.METRICS if "metrics" in name else Signal.TRACES: 0}


def test_without_any_hint_a_file_holds_traces(tmp_path: Path) -> None:
    file = tmp_path / "capture.pb"
    file.write_bytes(recorded("openllmetry.traces.pb")[0].read_bytes())
    assert read(file) == {Signal.TRACES: 8}


def test_standard_input_holds_traces_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(body: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(body)))

    given(BODIES[Signal.TRACES])
    assert read("-") == {Signal.TRACES: 1}
    given(BODIES[Signal.LOGS])
    (part,) = Source("-").parts()
    assert part.reason is not None
    assert part.reason.endswith("this is an OTLP request of logs; --signal says what a file holds")
    given(BODIES[Signal.LOGS])
    assert read("-", Signal.LOGS) == {Signal.LOGS: 1}


def test_a_pipe_is_read_as_it_arrives(tmp_path: Path) -> None:
    """A first line that says what it is does not wait for the second."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen = threading.Event()

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(BODIES[Signal.LOGS] + b"\n")
            assert seen.wait(20)
            file.write(BODIES[Signal.LOGS] + b"\n")

    writer = threading.Thread(target=write)
    writer.start()
    parts = Source(str(pipe)).parts()
    first = next(parts)
    seen.set()
    assert rows([first, *parts]) == {Signal.LOGS: 2}
    writer.join()


@pytest.mark.parametrize("signal", [Signal.METRICS, Signal.LOGS])
def test_lines_that_cannot_be_read_cost_themselves(signal: Signal, tmp_path: Path) -> None:
    file = tmp_path / f"{signal}.jsonl"
    file.write_bytes(b"\n".join([BODIES[signal], b"{]", BODIES[Signal.TRACES], BODIES[signal]]))
    parts = list(Source(str(file), signal).parts())
    assert [(part.line, part.reason is None) for part in parts] == [(1, True), (2, False), (3, False), (4, True)]
    assert "request of traces" in str(parts[2].reason)


@pytest.mark.parametrize(
    ("signal", "body"),
    [
        (Signal.LOGS, lambda: recorded("openllmetry-events.logs.pb")[0].read_bytes()),
        (Signal.METRICS, lambda: recorded("openllmetry.metrics.pb")[0].read_bytes()),
    ],
)
def test_requests_that_are_put_together(signal: Signal, body: Callable[[], bytes], tmp_path: Path) -> None:
    file = tmp_path / f"many.{signal}.pb"
    file.write_bytes(body() * 300)
    assert read(file) == {signal: 300 * {"logs": 20, "metrics": 36}[signal]}


def test_rejected_rows_keep_their_names(tmp_path: Path) -> None:
    point = {"name": "m", "gauge": {"dataPoints": [{"attributes": pairs({"a": 1})}]}}
    file = tmp_path / "metrics.json"
    file.write_bytes(metric_request(point))
    (part,) = Source(str(file)).parts()
    assert part.decoded is not None
    assert [error.row for error in part.decoded.rejected] == [{"metric": "m"}]
