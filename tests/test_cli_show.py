"""`show`: a trace as a waterfall, whatever its spans say of their parents."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, cast

import pytest
from rich.cells import cell_len

from observatory_storage.cli.tree import Top, arrange
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests.command_line import invoke, run
from tests.otlp_requests import recorded

START = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
TRACE = "ab" * 16
AGENT = "9eb886232652345371a3ea9d75171041"


def span(number: int, parent: int | None, begin_ms: float = 0, took_ms: float | None = 10, **columns: Any) -> SpanRow:
    start = START + dt.timedelta(milliseconds=begin_ms)
    row: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": f"{number:016x}",
        "parent_span_id": None if parent is None else f"{parent:016x}",
        "name": f"span {number}",
        "start_time": start,
        "end_time": None if took_ms is None else start + dt.timedelta(milliseconds=took_ms),
    }
    return cast("SpanRow", row | columns)


def show(pool: StoragePool, spans: list[SpanRow], width: int = 80) -> list[str]:
    with TraceWriter(pool) as writer:
        writer.write_spans(spans)
    done = invoke("show", TRACE, environment={"COLUMNS": str(width), "DATABASE_URL": url_of(pool)})
    assert (done.status, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    waterfall = lines[lines.index("") + 1 :]
    assert all(cell_len(line) <= width for line in waterfall)
    return waterfall


def url_of(pool: StoragePool) -> str:
    postgres = pool.config.postgres
    return f"postgresql://{postgres.username}@/{postgres.database}?host={postgres.host}&port={postgres.port}"


def test_the_tree_with_bars_in_their_places(pool: StoragePool) -> None:
    lines = show(
        pool,
        [
            span(1, None, 0, 100),
            span(3, 1, 50, 50, model="gpt-4o", input_tokens=1200, output_tokens=34, cost_usd=Decimal("0.0125")),
            span(2, 1, 0, 50),
            span(4, 2, 25, 25),
        ],
    )
    assert [line.split("  ")[0].rstrip() for line in lines] == ["span 1", "├ span 2", "│ └ span 4", "└ span 3"]
    bars = [(line.index("━"), line.rindex("━") + 1) for line in lines]
    (begin, end), second, fourth, third = bars
    middle = (begin + end) / 2
    assert second[0] == begin
    assert abs(second[1] - middle) <= 1
    assert abs(third[0] - middle) <= 1
    assert third[1] == end
    assert abs(fourth[0] - (begin + middle) / 2) <= 1
    assert lines[3].endswith("50 ms  gpt-4o  1,200→34  $0.01")


def test_a_failed_span_is_marked_and_says_why(pool: StoragePool) -> None:
    lines = show(
        pool, [span(1, None, 0, 100), span(2, 1, 10, 20, status="error", status_message="rate limit\nreached")]
    )
    assert lines[1].startswith("└ ✗ span 2 ")
    assert lines[2].strip() == "rate limit reached"


def test_orphans_stand_at_the_top(pool: StoragePool) -> None:
    lines = show(pool, [span(1, None), span(2, 99, 5), span(3, 2, 6)])
    assert [line.split("  ")[0] for line in lines if line.strip()[0] in "s└"] == ["span 1", "span 2", "└ span 3"]
    assert lines[2].strip() == f"its parent {99:016x} is not stored"


def test_cycles_do_not_hang_and_lose_nothing(pool: StoragePool) -> None:
    lines = show(pool, [span(1, None), span(2, 2, 1), span(3, 5, 2), span(4, 3, 3), span(5, 4, 4)])
    shown = "\n".join(lines)
    for number in range(1, 6):
        assert shown.count(f"span {number} ") == 1
    assert shown.count("lead back to itself") == 2


def test_an_open_span_and_one_that_ends_before_it_starts(pool: StoragePool) -> None:
    lines = show(pool, [span(1, None, 0, 100), span(2, 1, 50, None), span(3, 1, 80, -30)])
    assert "╺" in lines[1]
    assert lines[1].endswith("open")
    assert lines[2].endswith("0 µs")


def test_a_trace_of_one_instant(pool: StoragePool) -> None:
    assert show(pool, [span(1, None, 0, 0)])[0].startswith("span 1")


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_deep_trees_stay_within_the_width(width: int, pool: StoragePool) -> None:
    deep = [span(number, number - 1 if number > 1 else None, number, 500 - number) for number in range(1, 300)]
    lines = show(pool, deep, width)
    assert len(lines) == 299
    if width >= 80:
        assert "(250) " in lines[250]
        assert "span 251" in lines[250]


def test_arranging_is_fast_and_complete_for_large_traces() -> None:
    spans = [
        TraceSpan(span_id=f"{n:016x}", parent_span_id=f"{n - 1:016x}" if n else None, start_time=START)
        for n in range(10_000)
    ]
    nodes = arrange(spans)
    assert [node.depth for node in nodes] == list(range(10_000))
    flat = [TraceSpan(span_id=f"{n:016x}", parent_span_id=f"{0:016x}", start_time=START) for n in range(10_000)]
    assert len(arrange(flat)) == 10_000


def test_a_span_id_with_two_starts_is_shown_twice() -> None:
    twice = [TraceSpan(span_id="a", start_time=START + dt.timedelta(seconds=n)) for n in (0, 1)]
    child = TraceSpan(span_id="b", parent_span_id="a", start_time=START)
    assert [(node.span.span_id, node.top) for node in arrange([*twice, child])] == [
        ("a", Top.ROOT),
        ("b", None),
        ("a", Top.ROOT),
    ]


def test_a_real_agent_run(database_url: str) -> None:
    assert invoke("ingest", "--database-url", database_url, *recorded("openinference.traces.pb")).status == 0
    done = invoke("show", AGENT, "--database-url", database_url)
    assert done.stdout.startswith(f"agent-run  {AGENT}\n")
    for fact in ("spans 10", "errors 1", "tokens 6,710→876", "user user-42", "session sess-7"):
        assert fact in done.stdout
    assert "├ get_weather" in done.stdout
    assert "✗ ChatCompletion" in done.stdout
    assert "RateLimitError: Error code: 429" in done.stdout
    plain = run("show", AGENT, "--database-url", database_url, PYTHONIOENCODING="ascii")
    assert plain.stdout.isascii()
    assert "` x ChatCompletion" in plain.stdout


def test_json_holds_everything(database_url: str) -> None:
    assert invoke("ingest", "--database-url", database_url, *recorded("openinference.traces.pb")).status == 0
    # Dashed and in capitals, it is the same id.
    dashed = f"{AGENT[:8]}-{AGENT[8:12]}-{AGENT[12:16]}-{AGENT[16:20]}-{AGENT[20:]}".upper()
    shown = invoke("show", dashed, "--json", "--database-url", database_url).json
    assert shown["trace"]["id"] == AGENT
    assert len(shown["spans"]) == 10
    assert sum(len(span["events"]) for span in shown["spans"]) == 2
    assert all(span["attributes"] for span in shown["spans"])
    call = next(span for span in shown["spans"] if span["model"])
    assert call["input"]
    assert call["input_tokens"] == 1117
    assert shown["resources"][0]["service_name"] == "capture-openinference"


def test_an_id_that_is_not_stored(database_url: str) -> None:
    for unknown in ("ff" * 16, "trace_xyz789"):
        done = invoke("show", unknown, "--database-url", database_url)
        assert (done.status, done.stdout) == (1, "")
        assert unknown in done.sentence
    assert invoke("show", "0" * 32, "--database-url", database_url).status == 1
    assert invoke("show", "--database-url", database_url).status == 2


def test_a_trace_without_spans(database_url: str, pool: StoragePool) -> None:
    with TraceWriter(pool) as writer:
        writer.write_trace({"id": "trace_xyz789", "name": "alone"})
    done = invoke("show", "trace_xyz789", "--database-url", database_url)
    assert done.status == 0
    assert done.stdout.startswith("alone  ")
    assert "no span" in done.stdout
