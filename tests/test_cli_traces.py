"""`traces`: the table of the newest, its filters, pages and widths."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import pytest
from rich.cells import cell_len

from observatory_storage.cli import formats
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests.command_line import invoke, run
from tests.otlp_requests import recorded

# Set afresh for each test: a whole run takes longer than ages are told apart.
NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(autouse=True)
def _present() -> None:
    global NOW
    NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def store(pool: StoragePool, count: int = 5, **columns: Any) -> None:
    """Traces of one span each, every one ten minutes older than the one before."""

    def span(number: int) -> SpanRow:
        start = NOW - dt.timedelta(minutes=10 * number)
        row: dict[str, Any] = {
            "trace_id": f"{number:032x}",
            "span_id": f"{number:016x}",
            "name": f"trace {number}",
            "start_time": start,
            "end_time": start + dt.timedelta(milliseconds=1500),
            "service_name": f"service-{number}",
            "status": "error" if number == 3 else "ok",
            "model": f"model-{number}",
            "provider": f"provider-{number}",
            "user_id": f"user-{number}",
            "session_id": f"session-{number}",
            "project": f"project-{number % 10}",
            "input_tokens": 1_000 * number,
            "output_tokens": 10,
            "counts_usage": True,
        }
        return cast("SpanRow", row | columns)

    with TraceWriter(pool) as writer:
        writer.write_spans(map(span, range(1, count + 1)))


def names(url: str, *arguments: str) -> list[str]:
    done = invoke("traces", "--json", "--database-url", url, *arguments)
    assert done.status == 0
    return [trace["name"] for trace in done.json["traces"]]


@pytest.mark.parametrize("kind", ["service", "model", "provider", "user", "session", "project"])
def test_filters_by_a_text(kind: str, database_url: str, pool: StoragePool) -> None:
    store(pool)
    assert names(database_url, f"--{kind}", f"{kind}-2") == ["trace 2"]
    assert names(database_url, f"--{kind}", f"{kind}-9") == []


def test_filters_by_status_time_and_name(database_url: str, pool: StoragePool) -> None:
    store(pool)
    everything = [f"trace {number}" for number in range(1, 6)]
    assert names(database_url) == everything
    assert names(database_url, "--status", "error") == ["trace 3"]
    assert "trace 3" not in names(database_url, "--status", "ok")
    assert names(database_url, "--search", "TRACE 4") == ["trace 4"]
    assert names(database_url, "--since", "25m") == everything[:2]
    assert names(database_url, "--since", "1h") == everything
    assert names(database_url, "--since", (NOW - dt.timedelta(minutes=20)).isoformat()) == everything[:2]
    assert names(database_url, "--since", "2099-01-01") == []


def test_pages_follow_by_cursor(database_url: str, pool: StoragePool) -> None:
    store(pool)
    first = invoke("traces", "--json", "-n", "2", "--database-url", database_url).json
    assert [trace["name"] for trace in first["traces"]] == ["trace 1", "trace 2"]
    assert names(database_url, "--cursor", first["next_cursor"]) == ["trace 3", "trace 4", "trace 5"]
    shown = invoke("traces", "-n", "2", "--database-url", database_url).stdout
    assert shown.splitlines()[-1] == f"more: --cursor {first['next_cursor']}"


def test_a_limit_beyond_one_page(database_url: str, pool: StoragePool) -> None:
    store(pool, 1_203)
    assert len(names(database_url, "--limit", "1202")) == 1_202
    done = invoke("traces", "--json", "--limit", "5000", "--database-url", database_url).json
    assert (len(done["traces"]), done["next_cursor"]) == (1_203, None)


def test_json_holds_the_figures(database_url: str, pool: StoragePool) -> None:
    store(pool, 1)
    (trace,) = invoke("traces", "--json", "--database-url", database_url).json["traces"]
    assert trace["id"] == f"{1:032x}"
    assert (trace["input_tokens"], trace["output_tokens"], trace["span_count"]) == (1_000, 10, 1)
    assert trace["duration_us"] == 1_500_000
    assert dt.datetime.fromisoformat(trace["start_time"]) == NOW - dt.timedelta(minutes=10)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_table_fits_its_width(width: int, database_url: str, pool: StoragePool) -> None:
    store(pool, name="a name that is rather long, with 漢字 in it, and does not fit anywhere " * 3)
    done = invoke("traces", "--database-url", database_url, environment={"COLUMNS": str(width)})
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(cell_len(line) <= width for line in lines)
    assert all(f"{number:032x}" in line for number, line in enumerate(lines[1:], 1))
    assert "✗" in lines[3]
    if width >= 80:
        assert "1.50 s" in lines[1]
        assert "a name that" in lines[1]
    if width >= 120:
        assert "1,010" in lines[1]
        assert "service-1" in lines[1]


def test_a_name_cannot_move_the_cursor(database_url: str, pool: StoragePool) -> None:
    store(pool, 1, name="evil \x1b[2J\x07 [bold]markup[/bold] \u202e line\nbreak")
    done = invoke("traces", "--database-url", database_url, environment={"COLUMNS": "200"})
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[bold]markup[/bold]" in done.stdout
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    "settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_output_in_ascii(settings: dict[str, str], database_url: str, pool: StoragePool) -> None:
    store(pool, 3, name="naïve 漢字 ✓")
    done = run("traces", "--database-url", database_url, **settings)
    assert done.status == 0
    assert done.stdout.isascii()
    assert "na\\xefve" in done.stdout
    assert "x na" in done.stdout.splitlines()[3]
    trace = run("traces", "--json", "--database-url", database_url, **settings).json["traces"][0]
    assert trace["name"] == "naïve 漢字 ✓"


def test_color_only_where_it_is_wanted(database_url: str, pool: StoragePool) -> None:
    store(pool, 3)
    assert "\x1b[" not in run("traces", "--database-url", database_url).stdout
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[1;31m" in run("traces", "--database-url", database_url, **forced).stdout
    assert "31m" not in run("traces", "--database-url", database_url, NO_COLOR="1", **forced).stdout


@pytest.mark.parametrize("wrong", [["--since", "1y"], ["--limit", "0"], ["--status", "bad"], ["--cursor", "x"]])
def test_wrong_values_are_wrong_usage(wrong: list[str], database_url: str) -> None:
    done = invoke("traces", "--database-url", database_url, *wrong)
    assert (done.status, done.stdout) == (2, "")
    assert wrong[0].strip("-") in done.stderr


def test_nothing_matches(database_url: str, pool: StoragePool) -> None:
    store(pool, 1)
    assert invoke("traces", "--service", "none", "--database-url", database_url).stdout == "no trace matches\n"


def test_real_captures(database_url: str) -> None:
    assert invoke("ingest", "--database-url", database_url, *recorded("o*.traces.pb")).status == 0
    shown = invoke("traces", "--database-url", database_url).stdout
    assert "agent-run" in invoke("traces", "-n", "99", "--database-url", database_url).stdout
    assert "TOKENS" in shown


@pytest.mark.parametrize(
    ("microseconds", "shown"),
    [
        (None, ""),
        (0, "0 µs"),
        (999, "999 µs"),
        (1_000, "1.0 ms"),
        (9_999, "9.9 ms"),
        (10_000, "10 ms"),
        (999_999, "999 ms"),
        (1_000_000, "1.00 s"),
        (59_999_999, "59.99 s"),
        (60_000_000, "1m 00s"),
        (3_599_999_999, "59m 59s"),
        (3_600_000_000, "1h 00m"),
        (10 * 86_400_000_000, "10d 00h"),
    ],
)
def test_durations_are_never_rounded_up(microseconds: int | None, shown: str) -> None:
    assert formats.duration(microseconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (999_999, "999.9k"), (2_500_000, "2.5M")],
)
def test_counts(value: int | None, shown: str) -> None:
    assert formats.count(value) == shown
