"""`ingest`: every form of OTLP file, what is counted, what is rejected, what cannot be read."""

from __future__ import annotations

import base64
import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.cli.sources import Source
from observatory_storage.otlp import DecodedTraces
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository
from tests.command_line import invoke
from tests.otlp_requests import json_format, recorded, request, sent_span, trace_service

CAPTURE = next(path for path in recorded() if path.name == "openinference.traces.pb")
FIGURES = {"traces": 1, "spans": 10, "events": 2, "rejected": 0}
NOTHING_ELSE = {"metrics": 0, "data_points": 0, "logs": 0, "conflicting": 0, "spans_filled": 0, "passed_over": 0}


def messages() -> Any:
    return trace_service.ExportTraceServiceRequest.FromString(CAPTURE.read_bytes())


def as_json(message: Any, indent: int | None = None) -> bytes:
    """OTLP/JSON: as protobuf's own JSON, save that ids are hex digits."""
    text = json_format.MessageToJson(message, indent=indent)

    def as_hex(match: re.Match[str]) -> str:
        return f'{match[1]}"{base64.b64decode(match[2]).hex()}"'

    return re.sub(r'("(?:traceId|spanId|parentSpanId)": )"([^"]*)"', as_hex, text).encode()


def pretty_json() -> bytes:
    return as_json(messages(), indent=2)


def one_line_json() -> bytes:
    return as_json(messages())


def json_lines() -> bytes:
    """A request a line, as the Collector's file exporter writes them: here one span each."""
    lines = []
    (group,) = messages().resource_spans
    for scope in group.scope_spans:
        for span in scope.spans:
            single = trace_service.ExportTraceServiceRequest()
            single.resource_spans.add(resource=group.resource).scope_spans.add(scope=scope.scope).spans.append(span)
            lines.append(as_json(single))
    return b"\n".join(lines) + b"\n"


FORMS: dict[str, Callable[[], bytes]] = {
    "protobuf": CAPTURE.read_bytes,
    "pretty JSON": pretty_json,
    "JSON in one line": one_line_json,
    "JSON lines": json_lines,
    "JSON lines with a BOM and blank lines": lambda: b"\xef\xbb\xbf\n" + json_lines().replace(b"\n", b"\r\n\n"),
    "pretty JSON after blank lines": lambda: b"\n\n" + pretty_json(),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_figures(form: str, zipped: bool, database_url: str, tmp_path: Path) -> None:
    data = FORMS[form]()
    file = tmp_path / "capture"
    file.write_bytes(gzip.compress(data) if zipped else data)
    done = invoke("ingest", "--json", "--database-url", database_url, file)
    figures = done.json
    assert done.status == 0
    assert figures.pop("seconds") > 0
    assert figures.pop("duplicates") == 0
    held = {"file": str(file), "signals": ["traces"], "traces": 1, "spans": 10, "events": 2}
    assert figures.pop("files") == [held]
    assert figures == FIGURES | NOTHING_ELSE


@pytest.mark.parametrize("method", ["auto", "insert", "copy"])
def test_twice_by_any_method_gives_the_same_figures(method: str, database_url: str, pool: StoragePool) -> None:
    files = recorded()
    first, second = (
        invoke("ingest", "--json", "--method", method, "--database-url", database_url, *files).json for _ in range(2)
    )
    assert first["duplicates"] == 0
    assert second["duplicates"] == second["spans"] == first["spans"]
    assert {**first, "seconds": 0, "duplicates": 0} == {**second, "seconds": 0, "duplicates": 0}
    totals = TraceRepository(pool).get_stats()
    assert (totals.trace_count, totals.span_count) == (first["traces"], first["spans"])


def test_standard_input_and_the_summary_for_people(database_url: str) -> None:
    done = invoke("ingest", "-", "--database-url", database_url, stdin=CAPTURE.read_bytes())
    assert done.status == 0
    assert done.stdout.startswith("stored 1 trace, 10 spans and 2 events in ")
    assert done.stderr == ""
    again = invoke("ingest", "-", "--database-url", database_url, stdin=gzip.compress(json_lines()))
    assert "10 of the spans were there already; 0 rejected" in again.stdout


def test_files_that_cannot_be_read_do_not_stop_the_others(database_url: str, tmp_path: Path) -> None:
    whole = CAPTURE.read_bytes()
    bad = {
        "truncated.pb": whole[:-7],
        "truncated.gz": gzip.compress(whole)[:-9],
        "damaged.gz": b"\x1f\x8b" + b"nonsense" * 8,
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "spaces.json": b" \n" * 100_000,
        "page.html": b"<html>not found</html>",
        "list.json": b"[1, 2]",
        "cut.json": pretty_json()[:-100],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / "missing.pb", tmp_path, *(tmp_path / name for name in bad), CAPTURE]
    done = invoke("ingest", "--json", "--database-url", database_url, *files)
    assert done.status == 1
    assert {name: done.json[name] for name in FIGURES} == FIGURES
    lines = done.stderr.splitlines()
    assert len(lines) == len(files) - 1
    for file, line in zip(files, lines, strict=False):
        assert line.startswith(f"{file}: ")
    assert "No such file" in lines[0]
    assert "is a directory" in lines[1]


def test_nothing_is_said_to_be_stored_where_all_failed(database_url: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pb"
    done = invoke("ingest", "--database-url", database_url, missing)
    assert (done.status, done.stdout) == (1, "")
    assert done.sentence == f"{missing}: cannot be read: No such file or directory"
    several = invoke("ingest", "--database-url", database_url, missing, tmp_path)
    assert (several.status, several.stdout, several.stderr.count("\n")) == (1, "", 2)
    figures = invoke("ingest", "--json", "--database-url", database_url, missing).json
    assert figures["files"] == [{"file": str(missing), "signals": []}]
    both = invoke("ingest", "--database-url", database_url, missing, CAPTURE)
    assert (both.status, "stored 1 trace, 10 spans and 2 events" in both.stdout) == (1, True)


def test_other_signals_are_named(database_url: str, tmp_path: Path) -> None:
    for path in recorded("openllmetry*.metrics.pb") + recorded("openllmetry*.logs.pb"):
        file = tmp_path / "capture.pb"
        file.write_bytes(path.read_bytes())
        signal = "metrics" if "metrics" in path.name else "logs"
        done = invoke("ingest", "--database-url", database_url, file)
        assert done.status == 1
        assert done.sentence.endswith(f"this is an OTLP request of {signal}; --signal says what a file holds")
        done = invoke("ingest", "--signal", "traces", "--database-url", database_url, path)
        assert (done.status, done.sentence.endswith(f"this is an OTLP request of {signal}")) == (1, True)


def test_broken_lines_cost_themselves_alone(database_url: str, tmp_path: Path) -> None:
    lines = json_lines().splitlines()
    broken = [lines[0][:50], lines[1], *([b"{]"] * 30), *lines[2:], b'{"resources": []}']
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\n".join(broken))
    done = invoke("ingest", "--json", "--database-url", database_url, file)
    assert done.status == 1
    assert done.json["spans"] == 9
    assert f"{file} line 1: " in done.stderr
    assert f"{file} line 3: " in done.stderr
    assert "and 22 more lines" in done.stderr
    assert len(done.stderr.splitlines()) == 11


def test_an_empty_file_is_nothing_to_store(database_url: str, tmp_path: Path) -> None:
    for name, data in {
        "empty": b"",
        "zipped.gz": gzip.compress(b""),
        "blank.json": b"\n \n",
        "bom.json": b"\xef\xbb\xbf",
    }.items():
        (tmp_path / name).write_bytes(data)
        done = invoke("ingest", "--json", "--database-url", database_url, tmp_path / name)
        assert (done.status, done.json["spans"]) == (0, 0)
        assert done.sentence == f"{tmp_path / name}: empty, nothing to store"


def rejected_file(tmp_path: Path) -> Path:
    """One good span, and 14 with an id of the wrong length or all zeros."""
    file = tmp_path / "some.json"
    zeros = [sent_span(spanId="0" * 16, name=f"zero {number}") for number in range(13)]
    file.write_bytes(request(sent_span(), sent_span(spanId="abcd", name="short"), *zeros))
    return file


def test_rejected_rows_are_shown_counted_and_kept(database_url: str, tmp_path: Path) -> None:
    file, kept = rejected_file(tmp_path), tmp_path / "kept.jsonl"
    done = invoke("ingest", "--json", "--rejected", kept, "--database-url", database_url, file)
    assert done.status == 3
    assert (done.json["spans"], done.json["rejected"]) == (1, 14)
    lines = done.stderr.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(f"rejected: {file} line 1: span abcd 'short': ")
    assert lines[-1] == f"… and 4 more rejected rows; all are in {kept}"
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(entries) == 14
    assert entries[0].keys() == {"file", "line", "reason", "row"}
    assert (entries[0]["file"], entries[0]["line"]) == (str(file), 1)
    assert entries[0]["row"]["name"] == "short"
    assert all("span" in entry["reason"].lower() for entry in entries)


def test_rows_that_the_database_rejects_belong_to_their_file(database_url: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(request(sent_span(traceId="ab" * 16)))
    assert invoke("ingest", "--project", "first", "--database-url", database_url, CAPTURE).status == 0
    kept = tmp_path / "kept.jsonl"
    done = invoke(
        "ingest", "--json", "--project", "second", "--rejected", kept, "--database-url", database_url, CAPTURE, other
    )
    assert done.status == 3
    assert {name: done.json[name] for name in FIGURES} == {"traces": 1, "spans": 1, "events": 0, "rejected": 10}
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {entry["file"] for entry in entries} == {str(CAPTURE)}
    assert all("project 'first'" in entry["reason"] for entry in entries)
    assert {len(entry["row"]["trace_id"]) for entry in entries} == {32}


def test_without_a_file_the_rest_is_only_counted(database_url: str, tmp_path: Path) -> None:
    done = invoke("ingest", "--database-url", database_url, rejected_file(tmp_path))
    assert done.status == 3
    assert "and 4 more rejected rows; --rejected FILE keeps all" in done.stderr
    assert "14 rejected" in done.stdout


def test_the_file_of_rejected_rows_is_emptied_and_must_not_be_read(database_url: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("from an earlier run\n")
    assert invoke("ingest", "--rejected", kept, "--database-url", database_url, CAPTURE).status == 0
    assert kept.read_text() == ""
    copy = tmp_path / "copy.pb"
    copy.write_bytes(CAPTURE.read_bytes())
    assert invoke("ingest", "--rejected", copy, "--database-url", database_url, copy).status == 2
    assert copy.read_bytes() == CAPTURE.read_bytes()
    done = invoke("ingest", "--rejected", tmp_path / "no" / "such", "--database-url", database_url, copy)
    assert done.status == 1
    assert "No such file or directory" in done.sentence


def test_project_of_the_option_the_environment_and_the_configuration(database_url: str, pool: StoragePool) -> None:
    def stored(project: str) -> int:
        return len(TraceRepository(pool).list(TraceFilters(project=project)))

    def store(number: int, *arguments: str, **settings: str) -> None:
        data = request(sent_span(traceId=f"{number:032x}"))
        assert invoke("ingest", "-", *arguments, stdin=data, environment=settings).status == 0

    store(1, "--project", "a", "--database-url", database_url, OBSERVATORY_PROJECT="b")
    store(2, "--database-url", database_url, OBSERVATORY_PROJECT="b")
    store(3, DATABASE_URL=database_url, OBSERVATORY_PROJECT="b")
    store(4, "--database-url", database_url)
    assert [stored(name) for name in ("a", "b", "default")] == [1, 2, 1]


def test_not_migrated_is_one_sentence(empty_database_url: str) -> None:
    done = invoke("ingest", "--json", "--database-url", empty_database_url, CAPTURE)
    assert (done.status, done.stdout) == (1, "")
    assert "observatory-storage migrate" in done.sentence


def test_no_file_and_standard_input_twice_are_wrong_usage(database_url: str) -> None:
    assert invoke("ingest", "--database-url", database_url).status == 2
    assert invoke("ingest", "--database-url", database_url, "-", "-").status == 2


@pytest.mark.parametrize("form", ["protobuf", "JSON lines"])
def test_a_large_file_is_read_in_pieces(form: str, tmp_path: Path) -> None:
    data = FORMS[form]()
    file = tmp_path / "large"
    with gzip.open(file, "wb", compresslevel=1) as out:
        for _ in range(1 + 18_000_000 // len(data)):
            out.write(data)
    tracemalloc.start()
    try:
        spans = sum(
            len(part.decoded.spans) for part in Source(str(file)).parts() if isinstance(part.decoded, DecodedTraces)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spans == 10 * (1 + 18_000_000 // len(data))
    assert peak < 15_000_000
