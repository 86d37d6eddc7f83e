"""Recorded traffic of real clients, from OTLP bytes to tables: complete, and the same however it arrives."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from observatory_storage.errors import RejectedRowError
from observatory_storage.otlp import decode_traces
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import assert_summaries_exact, stored
from tests.under_fire import output_of, run_python

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("OBSERVATORY_SHARED_DATA") or ROOT.parent / "shared" / "data")
FILES = sorted(SHARED.glob("otlp/*.traces.pb")) or sorted((ROOT / "observatory_storage/captures").glob("*.traces.pb"))
SMALL = [path for path in FILES if path.stat().st_size < 100_000]


def ingest(pool: StoragePool, batches: list[list[Any]], method: WriteMethod) -> list[RejectedRowError]:
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        for batch in batches:
            writer.write_spans(batch)
            writer.flush()
    return rejected


def spans_of(paths: list[Path]) -> list[Any]:
    return [span for path in paths for span in decode_traces(path.read_bytes()).spans]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_span_event_link_and_resource_of_a_file_lands(pool: StoragePool, database_url: str, path: Path) -> None:
    request = ExportTraceServiceRequest.FromString(path.read_bytes())
    sent = [span for rs in request.resource_spans for ss in rs.scope_spans for span in ss.spans]
    decoded = decode_traces(path.read_bytes())
    assert decoded.rejected == []
    assert ingest(pool, [list(decoded.spans)], WriteMethod.AUTO) == []
    tables = stored(database_url)
    by_key = {(row["trace_id"].bytes, bytes(row["span_id"])): row for row in tables["trace_spans"]}
    assert len(tables["trace_spans"]) == len(sent) == len(by_key)
    assert len(tables["trace_events"]) == sum(len(span.events) for span in sent)
    assert sum(len(row["links"] or ()) for row in tables["trace_spans"]) == sum(len(span.links) for span in sent)
    assert len(tables["resources"]) == len({rs.resource.SerializeToString() for rs in request.resource_spans})
    assert {row["id"].bytes for row in tables["traces"]} == {span.trace_id for span in sent}
    for span in sent:
        row = by_key[span.trace_id, span.span_id]
        assert row["name"] == span.name.replace("\x00", "\ufffd")
        assert row["resource_id"] is not None
        assert row["scope_name"]
    assert_summaries_exact(database_url)


@pytest.mark.every_server
@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_ten_deliveries_shuffled_and_split_at_random_leave_what_one_does(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    spans = spans_of(SMALL)
    ingest(pool, [spans], method)
    once = stored(database_url)
    dice = random.Random(11)
    for _ in range(9):
        dice.shuffle(spans)
        edges = sorted(dice.sample(range(1, len(spans)), 4))
        parts = [spans[a:b] for a, b in zip([0, *edges], [*edges, len(spans)], strict=True)]
        assert ingest(pool, parts, method) == []
    assert stored(database_url) == once
    with psycopg.connect(database_url) as connection:
        connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
    ingest(pool, [[span] for span in spans], method)
    assert stored(database_url) == once
    assert_summaries_exact(database_url)


INGEST = """
import random, sys
from pathlib import Path
from observatory_storage import StoragePool, TraceWriter, WriterConfig
from observatory_storage.otlp import decode_traces
url, method, seed, *paths = sys.argv[1:]
spans = [span for path in paths for span in decode_traces(Path(path).read_bytes()).spans]
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        for _ in range(2):
            dice.shuffle(spans)
            for first in range(0, len(spans), 97):
                writer.write_spans(spans[first : first + 97])
                writer.flush()
        assert writer.write_stats().rows_rejected == 0
"""


def test_four_processes_with_all_files_at_once_leave_what_one_does(pool: StoragePool, database_url: str) -> None:
    ingest(pool, [spans_of(FILES)], WriteMethod.COPY)
    once = stored(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
    processes = [
        run_python(INGEST, database_url, method, str(seed), *map(str, FILES))
        for seed, method in enumerate(["copy", "insert", "copy", "insert"])
    ]
    assert [output_of(process) for process in processes] == [""] * 4
    assert stored(database_url) == once
    assert_summaries_exact(database_url)
