"""Equal log records of one file stay as many as they are, wherever the file is cut while it is read."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from observatory_storage.cli.sources import Source
from observatory_storage.otlp import DecodedLogs, decode_logs
from observatory_storage.otlp.log_pieces import DigestOrdinals
from tests.command_line import invoke
from tests.otlp_requests import START, logs_service, recorded


def resource(*bodies: str, padding: int = 0, name: str = "api", time: int = START) -> bytes:
    """A request of one resource; requests of protobuf are put together by joining their bytes."""
    request = logs_service.ExportLogsServiceRequest()
    group = request.resource_logs.add()
    service = group.resource.attributes.add()
    service.key, service.value.string_value = "service.name", name
    records = group.scope_logs.add().log_records
    for body in bodies:
        record = records.add(time_unix_nano=time, trace_id=b"t" * 16, span_id=b"s" * 8)
        record.body.string_value = body
    if padding:
        records.add(time_unix_nano=time + padding).body.string_value = "x" * padding
    return bytes(request.SerializeToString())


def read(path: Path) -> list[list[dict[str, Any]]]:
    """The rows of each piece into which a file is cut."""
    pieces = []
    for part in Source(str(path)).parts():
        assert isinstance(part.decoded, DecodedLogs), part.reason
        pieces.append([dict(row) for row in part.decoded.logs])
    return pieces


# Equal lines in three pieces; in one with another resource, and at another time, they are not equal.
LARGE = (
    resource("hello", "hello", padding=1_100_000)
    + resource("hello", "other", padding=1_200_000)
    + resource("hello", name="worker")
    + resource("hello", time=START + 1_000)
    + resource("other", "hello")
)


@pytest.mark.parametrize("zipped", [False, True])
def test_equal_records_in_different_pieces_of_a_file_stay_apart(
    zipped: bool, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "app.logs.pb"
    file.write_bytes(gzip.compress(LARGE) if zipped else LARGE)
    for duplicates in (0, 10):
        done = invoke("ingest", "--json", "--database-url", database_url, file)
        assert (done.status, done.json["logs"], done.json["duplicates"]) == (0, 10, duplicates)
    with psycopg.connect(database_url) as connection:
        statement = "SELECT body, count(*) FROM logs WHERE body IN ('hello', 'other') GROUP BY body"
        assert dict(connection.execute(statement).fetchall()) == {"hello": 6, "other": 2}


def test_a_file_that_is_cut_has_the_rows_of_one_that_is_not(tmp_path: Path) -> None:
    file = tmp_path / "app.logs.pb"
    file.write_bytes(LARGE)
    pieces = read(file)
    assert len(pieces) == 3
    assert [row for piece in pieces for row in piece] == decode_logs(LARGE).logs


def test_a_recording_again_and_again_in_one_file(tmp_path: Path) -> None:
    (recording,) = recorded("openllmetry-events.logs.pb")
    times = 2_500_000 // recording.stat().st_size
    file = tmp_path / "many.logs.pb"
    file.write_bytes(recording.read_bytes() * times)
    pieces = read(file)
    assert len(pieces) > 2
    ordinals = Counter(row.get("ordinal", 0) for piece in pieces for row in piece)
    assert ordinals == dict.fromkeys(range(times), 20)


def test_each_file_counts_for_itself(database_url: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.logs.pb").write_bytes(LARGE)
    done = invoke("ingest", "--json", "--database-url", database_url, *tmp_path.iterdir())
    assert (done.json["logs"], done.json["duplicates"]) == (20, 10)


def test_what_is_remembered_is_bounded() -> None:
    ordinals = DigestOrdinals(remembered=3)
    shared: dict[str, Any] = {"attributes": {"service.name": "api"}}

    def number(body: str) -> int | None:
        row: dict[str, Any] = {"resource": shared, "body": body, "span_id": b"12345678"}
        ordinals.number(row)
        found: int | None = row.get("ordinal")
        return found

    assert [number(body) for body in "aabbc"] == [None, 1, None, 1, None]
    assert [number(body) for body in "deaf"] == [None, None, 2, None]
    # Last seen more than three different records ago, and those since then again.
    assert [number(body) for body in "ghijka"] == [None] * 6
    assert len(ordinals._recent) + len(ordinals._older) <= 6
