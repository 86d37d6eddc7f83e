"""Every suite runs, at a size whose figures mean nothing; the report is made of what suites found."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from benchmarks import charts, command, figures, interleaved, markdown
from benchmarks.distributions import QUANTILES, Distribution, Zipf, recorded
from benchmarks.figures import Suite
from benchmarks.interleaved import TimingsBetween, Way
from benchmarks.targets import BY_KEY, TARGETS, shown

ROOT = Path(__file__).parent.parent
# These three take as long as all others together; they are run as well with OBSERVATORY_TEST_LONG=1.
LONG: frozenset[str] = frozenset(
    () if os.environ.get("OBSERVATORY_TEST_LONG") == "1" else ("writer_throughput", "footprint", "concurrent_writes")
)

# What the README tells of the report.
README_FIGURES: Final = {
    "`CopyWriter`, spans, of the limit": "copy_writer_spans",
    "`CopyWriter`, log records, of the limit": "copy_writer_logs",
    "`TraceWriter` by COPY: exact under replay, summaries and usage included, of the limit": "trace_writer_copy",
    "OTLP bytes to committed in one process, of the limit": "otlp",
    "`TraceWriter` by INSERT, against `insert().values()`": "insert_against_values",
    "`TraceWriter` by INSERT, against Core executemany with ON CONFLICT": "insert_against_executemany",
    "two processes that write, against one": "two_processes",
    "writing into 5,000,000 spans, against empty tables": "ingest_when_large",
    "newest 50 traces with the dearest filter, p95 at 5,000,000 spans against 50,000": "newest_when_large",
    "one trace with spans and events, p95 at 5,000,000 spans against 50,000": "one_trace_when_large",
    "text in traces' names, p95 at 5,000,000 spans against 50,000": "name_search_when_large",
    "text in log records, the dearest of nine kinds, p95 at 1,005,000 records against 55,000": "text_search_when_large",
    "one trace with its 20 spans, against one SELECT by primary key in SQLAlchemy": "one_trace",
}


@pytest.fixture
def suite() -> Suite:
    """Figures of a suite, as one is left by a run."""
    facts = {
        "cpus": 2,
        "cpu": "a CPU",
        "memory_gb": 24,
        "system": "Linux x86_64",
        "postgresql": "18.6",
        "python": "3.13.0",
        "libpq": "binary",
        "libraries": {"psycopg": "3.3.9", "asyncpg": None},
        "psql": None,
        "settings": {"fsync": "on"},
        "file_system": "ext4",
        "socket_kb": 4096,
    }
    found = Suite({"size": "quick", "date": "2026-01-31", "machine": facts, "machine_line": "2 CPUs", "seconds": 1.0})
    found.table("Rows", ["", "of the limit"], [["CopyWriter", "0.93 (0.91–0.95)"]], "A note.")
    found.add("Some text", "first line", "second line")
    found.bars("rows", "Part of the limit", {"CopyWriter": (0.91, 0.93, 0.95), "limit": (1.0, 1.0, 1.0)})
    found.lines("sizes", "By size", ["1", "10"], {"COPY": [1.0, 2.0], "INSERT": [0.5, None]})
    found.measure("copy_writer_spans", 0.93)
    found.measure("replay", 0.5, "a note", spread=(0.45, 0.55))
    found.slower("It is slower at this.")
    return found


def test_every_suite_runs_and_says_what_it_found(server_url: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    names = [name for name in command.suites() if name not in LONG]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *names, "--smoke", "--json", str(path)],
        cwd=ROOT,
        env={**os.environ, "OBSERVATORY_TEST_DATABASE_URL": server_url},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stderr}{done.stdout}"
    suites = json.loads(path.read_text())["suites"]
    assert sorted(suites) == names
    for name, found in suites.items():
        assert f"== {name}" in done.stdout
        assert found["blocks"], name
    measured = {key for found in suites.values() for key in found["measures"]}
    known = {target.key for target in TARGETS}
    assert measured == known if not LONG else measured and measured < known


def test_the_report_names_machine_targets_tables_charts_and_what_is_slower(suite: Suite, tmp_path: Path) -> None:
    drawn = {chart["name"]: charts.draw(chart, tmp_path / "charts") for chart in suite.data["charts"]}
    text = markdown.report({"copy_vs_insert": suite.data}, drawn, tmp_path)
    assert "| CopyWriter, spans, 5,000 a batch, of the server limit | ≥ 0.92 | 0.93 | met |  |" in text
    assert "| replay of all spans, of the first delivery | ≥ 0.8 | 0.50 (0.45–0.55) | **not met** | a note |" in text
    assert "| not measured | suite `growth` |" in text
    assert "2 CPUs (a CPU), 24 GB, Linux x86_64, net.core.wmem_max 4,096 kB." in text
    assert "no psql on this machine" in text
    assert "| CopyWriter | 0.93 (0.91–0.95) |" in text
    assert "- It is slower at this." in text
    assert "![Part of the limit](charts/rows.svg)" in text
    for path in drawn.values():
        assert ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")
        assert b"<script" not in path.read_bytes()


def test_figures_of_one_run_join_those_of_others(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert figures.read(path) == {}
    figures.write(path, {"copy_vs_insert": suite.data})
    figures.write(path, figures.read(path) | {"growth": suite.data})
    assert [*figures.read(path)] == ["copy_vs_insert", "growth"]


def test_missed_targets_are_named(suite: Suite) -> None:
    assert command.missed_targets({"copy_vs_insert": suite.data}) == ["replay"]


def test_an_unknown_suite_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["copy_vs_inserts"])
    assert "no suite copy_vs_inserts; there are auto_crossover, " in capsys.readouterr().err


def test_the_report_in_the_tree_is_made_of_the_figures_in_the_tree() -> None:
    stored = figures.read(figures.STORE)
    directory = figures.STORE.parent / "charts"
    drawn = {
        chart["name"]: directory / f"{chart['name']}.svg" for found in stored.values() for chart in found["charts"]
    }
    assert all(path.exists() for path in drawn.values())
    assert command.REPORT.read_text() == markdown.report(stored, drawn, figures.STORE.parent)


def test_sizes_without_recordings_are_like_those_with_them() -> None:
    dice = random.Random(1)
    for name, values in QUANTILES.items():
        own, found = Distribution(values), getattr(recorded(), name)
        assert own.median == pytest.approx(found.median, rel=0.02), name
        assert own.mean == pytest.approx(found.mean, rel=0.02), name
        assert own.values[0] <= own.draw(dice) <= own.values[-1]


def test_a_few_users_have_most_of_the_traffic() -> None:
    zipf, dice = Zipf(2_000), random.Random(1)
    drawn = [zipf.draw(dice) for _ in range(5_000)]
    assert sum(place < 20 for place in drawn) > len(drawn) * 0.35
    assert len(set(drawn)) > 500


def test_the_readme_has_the_figures_of_the_report() -> None:
    measures = {
        key: found for suite in figures.read(figures.STORE).values() for key, found in suite["measures"].items()
    }
    section = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| (.+) \| (.+) \|$", section, re.M))
    assert told == {
        label: f"{shown(measures[key]['value'])}{BY_KEY[key].unit}" for label, key in README_FIGURES.items()
    }


def between(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Way], float], rounds: int) -> TimingsBetween:
    """Rounds of two ways and the limit, which take so many seconds."""
    monkeypatch.setattr(interleaved, "timed", seconds)
    limit, one, other = (Way(name, 1, lambda: None, lambda: None) for name in ("limit", "one", "other"))
    timings = TimingsBetween(limit, [one, other])
    timings.run_round(keep=False)
    for _ in range(rounds):
        timings.run_round()
    return timings


def test_a_machine_that_becomes_slower_does_so_for_the_limit_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1.0

    def seconds(way: Way) -> float:
        nonlocal moment
        moment *= 1.1
        return moment if "limit" in way.name else 2 * moment

    timings = between(monkeypatch, seconds, 5)
    assert timings.ratios("one", "limit") == pytest.approx([0.5] * 5)
    records = {record["way"]: record for record in timings.summary({"of the limit": "limit"})}
    assert {name: record["ratios"]["of the limit"] for name, record in records.items()} == {
        "limit": 1.0,
        "limit, once more": 1.0,
        "one": 0.5,
        "other": 0.5,
    }
    # Each run of the limit counts for its rate.
    assert {name: record["rounds"] for name, record in records.items()} == {
        "limit": 20,
        "limit, once more": 5,
        "one": 5,
        "other": 5,
    }


def test_noise_favours_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow runs are further from the usual than fast ones: a way like the limit has 1 all the same."""
    dice = random.Random(3)
    timings = between(monkeypatch, lambda way: dice.lognormvariate(0, 0.4), 20_000)
    for name in ("one", "other", timings.control):
        assert timings.ratio(name, "limit") == pytest.approx(1, abs=0.01)
