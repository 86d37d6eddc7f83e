"""Several processes writing the same spans at once: identical tables, exact summaries, no error for a caller."""

from __future__ import annotations

import pytest

from tests.telemetry import assert_summaries_exact, make_spans, stored
from tests.under_fire import in_processes

WRITE = """
import datetime, json, random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.telemetry import make_spans

url, method, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
finished = make_spans(traces=60, spans=8, start=datetime.datetime.fromisoformat(sys.argv[4]))
opened = [{**span, "end_time": None, "output_tokens": None, "events": []} for span in finished]
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with TraceWriter(pool, WriterConfig(method=method, batch_size=200)) as writer:
        for round in range(4):
            spans = opened + finished
            dice.shuffle(spans)
            while spans:
                size = dice.randrange(1, 150)
                writer.write_spans(spans[:size])
                del spans[:size]
                writer.flush()
        stats = writer.write_stats()
print(json.dumps([stats.spans_written, stats.spans_replaced, stats.rows_rejected, stats.failures]))
"""


@pytest.mark.every_server
@pytest.mark.parametrize("methods", [["copy"] * 4, ["insert"] * 4, ["copy", "insert", "copy", "insert"]])
def test_processes_with_the_same_spans_leave_what_one_would(database_url: str, methods: list[str]) -> None:
    counts = in_processes(WRITE, database_url, methods)
    finished = make_spans(traces=60, spans=8)
    tables = stored(database_url)
    assert len(tables["trace_spans"]) == len(finished)
    assert all(span["end_time"] is not None for span in tables["trace_spans"])
    assert len(tables["trace_events"]) == sum(len(span["events"]) for span in finished)
    assert_summaries_exact(database_url)
    assert sum(written for written, *_ in counts) == len(finished)
    assert all(rejected == 0 and failures == 0 for *_, rejected, failures in counts)
