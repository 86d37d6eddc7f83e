"""`metrics NAME`: the series of one metric, drawn or as JSON."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pty
import re
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from observatory_storage.cli import formats
from observatory_storage.cli.drawing import Scale, draw, fitted
from observatory_storage.cli.terminal import ASCII, UNICODE
from observatory_storage.pool import StoragePool
from tests.cli_metrics import (
    begin_minute,
    counter,
    drawn,
    gauge,
    histogram,
    metrics,
    now,
    point,
    rising,
    store,
    values,
)
from tests.command_line import environment, invoke, program, run
from tests.otlp_requests import recorded


@pytest.fixture(autouse=True)
def _present_minute() -> None:
    begin_minute()


class TestDefaults:
    def test_a_counter_is_drawn_as_a_rate(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("a", 120))
        found = drawn(database_url, "llm.tokens")
        assert (found["aggregation"], found["unit"], found["step_seconds"]) == ("rate", "{token}", 60)
        assert values(found["series"][0])[1:] == [2.0] * 30
        assert "rate in {token}/s by 1m" in metrics(database_url, "llm.tokens").stdout

    def test_a_gauge_as_its_average(self, database_url: str, pool: StoragePool) -> None:
        store(pool, gauge(4, 1.0), gauge(3.75, 2.0), gauge(2, -7.5))
        found = drawn(database_url, "queue")
        assert (found["aggregation"], values(found["series"][0])) == ("avg", [1.5, -7.5])
        assert found["series"][0]["percentiles"] == {}

    @pytest.mark.parametrize(("temporality", "aggregation"), [("delta", "sum"), ("cumulative", "avg")])
    def test_a_counter_that_may_fall(
        self, temporality: str, aggregation: str, database_url: str, pool: StoragePool
    ) -> None:
        metric = {"name": "open", "metric_type": "counter", "temporality": temporality}
        store(pool, point(metric, 2, value=3.0), point(metric, 1.5, value=-1.0))
        found = drawn(database_url, "open")
        assert (found["aggregation"], values(found["series"][0])) == (aggregation, [2.0 if aggregation == "sum" else 1])

    def test_a_histogram_as_its_average_with_percentiles(self, database_url: str, pool: StoragePool) -> None:
        store(pool, histogram(3, [0, 10, 0, 0, 0], 7.0), histogram(2, [0, 0, 10, 0, 0], 15.0))
        found = drawn(database_url, "llm.duration")
        (series,) = found["series"]
        assert (found["aggregation"], values(series)) == ("avg", [0.7, 1.5])
        assert list(series["percentiles"]) == ["p50", "p95", "p99"]
        assert series["percentiles"]["p50"] == pytest.approx(1.0)
        assert 1.0 < series["percentiles"]["p95"] <= 2.0
        shown = metrics(database_url, "llm.duration").stdout
        assert "last 1.5  min 0.7  max 1.5  p50 1  p95 1.9" in shown

    @pytest.mark.parametrize(
        ("since", "step"), [("5m", 60), ("1h", 60), ("6h", 600), ("1d", 1_800), ("30d", 43_200), ("520w", 604_800 * 9)]
    )
    def test_the_step_follows_from_the_window(
        self, since: str, step: int, database_url: str, pool: StoragePool
    ) -> None:
        store(pool, gauge(1, 1.0))
        found = drawn(database_url, "queue", "--since", since)
        assert found["step_seconds"] == step
        (series,) = found["series"]
        assert len(series["points"]) <= 62
        assert values(series) == [1.0]


class TestAsked:
    @pytest.mark.parametrize(
        ("aggregation", "expected"),
        [("avg", 3.0), ("sum", 6.0), ("min", 2.0), ("max", 4.0), ("count", 2)],
    )
    def test_figures_of_a_gauge(self, aggregation: str, expected: float, database_url: str, pool: StoragePool) -> None:
        store(pool, gauge(2, 2.0), gauge(1.5, 4.0))
        found = drawn(database_url, "queue", "--aggregation", aggregation)
        assert [value for value in values(found["series"][0]) if value] == [expected]

    def test_increase(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("a", 5))
        found = drawn(database_url, "llm.tokens", "--aggregation", "increase")
        assert values(found["series"][0])[1:] == [5] * 30

    def test_percentiles_step_by_step(self, database_url: str, pool: StoragePool) -> None:
        slow, fast = [0, 0, 0, 10, 0], [10, 0, 0, 0, 0]
        store(pool, histogram(3, fast, 2.0, "a"), histogram(2, slow, 30.0, "a"), histogram(2, fast, 2.0, "b"))
        found = drawn(database_url, "llm.duration", "--aggregation", "p90", "--by", "model")
        first, second = found["series"]
        assert found["aggregation"] == "p90"
        assert (first["labels"], second["labels"]) == ({"model": "a"}, {"model": "b"})
        low, high = values(first)
        assert 0 < low <= 0.5
        assert 2.0 < high <= 4.0
        assert [point["count"] for point in first["points"] if point["count"]] == [10, 10]
        assert values(second) == [low]

    def test_by_label_and_where(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("a", 60), *rising("b", 120), *rising("c", 180))
        found = drawn(database_url, "llm.tokens", "--by", "model", "--by", "service")
        labels = [series["labels"] for series in found["series"]]
        assert labels == [{"model": model, "service": "api"} for model in "abc"]
        found = drawn(database_url, "llm.tokens", "--by", "model", "--where", "model=a", "--where", "model=c")
        assert [values(series)[-1] for series in found["series"]] == [1.0, 3.0]
        found = drawn(database_url, "llm.tokens", "--where", "model=b", "--where", "service=api")
        assert values(found["series"][0])[-1] == 2.0

    def test_the_window_is_whole_steps(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("a", 5))
        window = ["--since", f"{now() - dt.timedelta(minutes=12):%FT%TZ}", "--until", f"{now():%FT%TZ}"]
        found = drawn(database_url, "llm.tokens", "--step", "5m", *window)
        start, end = (dt.datetime.fromisoformat(found[name]) for name in ("start", "end"))
        assert now() - dt.timedelta(minutes=17) < start <= now() - dt.timedelta(minutes=12)
        assert now() <= end < now() + dt.timedelta(minutes=5)
        times = [dt.datetime.fromisoformat(point["time"]) for point in found["series"][0]["points"]]
        assert times == [start + dt.timedelta(minutes=5 * number) for number in range(len(times))]
        assert times[-1] + dt.timedelta(minutes=5) == end

    def test_narrowed_by_service_type_and_project(self, database_url: str, pool: StoragePool) -> None:
        store(
            pool,
            gauge(1, 1.0, name="same"),
            gauge(1, 2.0, name="same", service_name="web"),
            gauge(1, 4.0, name="same", project="mine"),
            counter(1, 8, name="same"),
        )
        for narrowed, expected in (
            (["--type", "gauge", "--project", "mine"], 4.0),
            (["--type", "gauge", "--service", "web"], 2.0),
            (["--type", "counter", "--aggregation", "max"], 8),
        ):
            assert values(drawn(database_url, "same", *narrowed)["series"][0]) == [expected]
        done = metrics(database_url, "same")
        assert done.status == 1
        assert done.sentence.endswith("same names metrics of several types: give --type counter or gauge")

    def test_numbers_that_json_lacks(self, database_url: str, pool: StoragePool) -> None:
        store(pool, gauge(3, float("inf")), gauge(2, float("-inf")), gauge(1, float("nan")), gauge(0, 1e308))
        found = drawn(database_url, "queue")
        assert values(found["series"][0]) == ["Infinity", "-Infinity", 1e308]
        assert metrics(database_url, "queue").status == 0

    def test_captures(self, database_url: str) -> None:
        assert invoke("ingest", "--database-url", database_url, *recorded("o*.metrics.pb")).status == 0
        names = [metric["name"] for metric in metrics(database_url, "--json").json["metrics"]]
        assert "gen_ai.client.token.usage" in names
        for name in sorted(set(names)):
            done = metrics(database_url, name, "--since", "1500d", "--by", "model", "--type", _type(database_url, name))
            assert (done.status, done.stderr) == (0, "")
            assert name in done.stdout


def _type(url: str, name: str) -> str:
    found = metrics(url, "--json", "--search", name).json["metrics"]
    return str(next(metric["metric_type"] for metric in found if metric["name"] == name))


class TestDrawing:
    def test_one_series_is_a_chart(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *(gauge(9 - number, float(number)) for number in range(10)))
        window = (
            "--since",
            f"{now() - dt.timedelta(minutes=9):%FT%TZ}",
            "--until",
            f"{now() + dt.timedelta(minutes=1):%FT%TZ}",
        )
        lines = metrics(database_url, "queue", *window).stdout.splitlines()
        assert len(lines) == 11
        assert lines[0].startswith("queue  gauge  avg in 1 by 1m  ")
        assert lines[1].startswith("  9  ")
        assert lines[8].startswith("  0  ")
        # Higher from left to right, and nothing but block characters.
        assert re.fullmatch(r"  9 +▁+█+", lines[1])
        assert set(lines[8][5:].strip()) <= set(UNICODE.levels)
        heights = [sum(line[5:].ljust(40)[column] != " " for line in lines[1:9]) for column in range(30)]
        assert heights == sorted(heights)
        assert re.fullmatch(r" +\d\d:\d\d +\d\d:\d\d", lines[9])
        assert lines[10] == "last 9  min 0  max 9"

    def test_several_are_lines_of_one_scale(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("small", 60), *rising("large", 600), *rising("middle", 300))
        lines = metrics(database_url, "llm.tokens", "--by", "model").stdout.splitlines()
        assert [line.split()[0] for line in lines[1:]] == ["model", "large", "middle", "small", "scale"]
        assert lines[1].split()[-3:] == ["LAST", "MIN", "MAX"]
        assert lines[2].split()[-3] == "10"
        assert "█" in lines[2]
        assert "█" not in lines[3]
        assert set(lines[4].split()[1]) <= {"▁", "▂"}
        assert lines[5] == "scale 0 to 10"

    def test_some_of_many(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *(gauge(1, float(number), f"model-{number}") for number in range(5)))
        lines = metrics(database_url, "queue", "--by", "model", "-n", "2").stdout.splitlines()
        assert [line.split()[0] for line in lines[2:4]] == ["model-4", "model-3"]
        assert lines[-1] == "… and 3 more series; -n shows more of them"

    def test_an_absent_label_and_a_strange_one(self, database_url: str, pool: StoragePool) -> None:
        store(pool, gauge(1, 1.0), gauge(1, 2.0, "evil \x1b[2J [bold]x[/bold]"))
        shown = metrics(database_url, "queue", "--by", "model").stdout
        assert "\x1b" not in shown
        assert "[bold]x[/bold]" in shown
        assert re.search(r"^- ", shown, re.MULTILINE)

    @pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
    @pytest.mark.parametrize("arguments", [[], ["--by", "model"], ["--by", "model", "--by", "service"]])
    def test_it_fits_its_width(self, arguments: list[str], width: int, database_url: str, pool: StoragePool) -> None:
        rows = [
            histogram(minute, [1, minute, 2, 0, 1], 3.0 * minute, f"a model with a name that is long {model}")
            for minute in range(50)
            for model in range(3)
        ]
        store(pool, *rows)
        done = metrics(database_url, "llm.duration", *arguments, COLUMNS=str(width))
        lines = done.stdout.splitlines()[1:]
        assert done.status == 0
        assert all(cell_len(line) <= width for line in lines if not line.startswith(("last", "each", "llm", "a mod")))
        assert any(set(line) & set(UNICODE.levels) for line in lines)

    def test_more_steps_than_columns(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *(gauge(minute, float(minute == 7)) for minute in range(60)))
        done = metrics(database_url, "queue", "--step", "10s", COLUMNS="60")
        assert re.search(r"^each column shows the largest of \d+ steps$", done.stdout, re.MULTILINE)
        assert done.stdout.splitlines()[1].count("█") == 1

    def test_output_in_ascii(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("naïve", 5), *rising("b", 7))
        for arguments in ([], ["--by", "model"]):
            done = run("metrics", "llm.tokens", *arguments, "--database-url", database_url, PYTHONIOENCODING="ascii")
            assert (done.status, done.stderr) == (0, "")
            assert done.stdout.isascii()
            assert set(done.stdout) & set("#%*")

    def test_color_only_on_a_terminal_whose_width_is_kept(self, database_url: str, pool: StoragePool) -> None:
        store(pool, *rising("a", 5), *rising("b", 7))
        arguments = ("metrics", "llm.tokens", "--by", "model", "--database-url", database_url)
        piped = run(*arguments)
        assert (piped.status, piped.stderr) == (0, "")
        assert "\x1b" not in piped.stdout
        screen = on_a_terminal(program(*arguments), columns=70)
        assert "\x1b[36m" in screen
        plain = re.sub(r"\x1b\[[0-9;]*m", "", screen).splitlines()
        assert all(cell_len(line) <= 70 for line in plain[1:])
        # Not as in a pipe, where there is more room.
        assert "▁" in plain[2] or "█" in plain[2]


def on_a_terminal(command: list[str], columns: int) -> str:
    """What a program shows on a terminal."""
    mine, theirs = pty.openpty()
    try:
        os.set_blocking(mine, False)
        settings = environment(TERM="xterm-256color", COLUMNS=str(columns), LINES="40")
        process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=settings)
        shown, deadline = b"", time.monotonic() + 60
        while process.poll() is None or not shown:
            assert time.monotonic() < deadline
            try:
                shown += os.read(mine, 65536)
            except BlockingIOError:
                time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            shown += os.read(mine, 65536)
        assert process.returncode == 0
        return shown.decode()
    finally:
        os.close(mine)
        os.close(theirs)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["queue", "--aggregation", "p101"], "--aggregation"),
            (["queue", "--aggregation", "median"], "a percentile such as p95"),
            (["queue", "--step", "soon"], "'soon' is no length of time"),
            (["queue", "--step", "0s"], "'0s' is no length of time"),
            (
                ["queue", "--step", "1s", "--since", "1w"],
                "604,800 steps are too many to read: give a --step of 3h or so",
            ),
            (["queue", "--since", "soon"], "'soon' is no point in time"),
            (["queue", "--since", "1h", "--until", "2h"], "it must be before --until"),
            (["queue", "--since", "2099-01-01"], "it must be before --until"),
            (["queue", "--where", "model"], "'model' is not of the form LABEL=VALUE"),
            (["queue", "--by", "model", "--by", "model"], "group_by names a label twice"),
            (["queue", "--search", "x"], "it is of the list of metrics: leave NAME out"),
            (["queue", "--cursor", "x"], "it is of the list of metrics: leave NAME out"),
            (["--by", "model"], "it is of one metric: give its NAME"),
            (["--step", "1m"], "it is of one metric: give its NAME"),
            (["--cursor", "nonsense"], "cursor"),
            (["--type", "bad"], "--type"),
            (["-n", "0"], "'--limit' / '-n'"),
        ],
    )
    def test_wrong_usage(self, arguments: list[str], said: str, database_url: str) -> None:
        done = metrics(database_url, *arguments, COLUMNS="300")
        assert (done.status, done.stdout) == (2, "")
        assert said in " ".join(done.stderr.split())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nothing"], "no metric has the name nothing: `metrics` alone lists those there are"),
            (["que"], "no metric has the name que, but these contain it: queue, queue.length"),
            (["queue", "--service", "x"], "no metric with the name queue is of that service, type or unit"),
            (["queue", "--aggregation", "rate"], "queue is a gauge, which has no rate: take avg, min or max"),
            (["queue", "--aggregation", "p95"], "queue is a gauge, which has no percentiles: give a histogram"),
            (
                ["llm.duration", "--aggregation", "p95", "--step", "1s"],
                "steps are too many for percentiles: give a --step of 2m or so",
            ),
        ],
    )
    def test_what_a_metric_does_not_have(
        self, arguments: list[str], said: str, database_url: str, pool: StoragePool
    ) -> None:
        store(pool, gauge(1, 1.0), gauge(1, 1.0, name="queue.length"), histogram(1, [1, 0, 0, 0, 0], 0.1))
        done = metrics(database_url, *arguments)
        assert (done.status, done.stdout) == (1, "")
        assert said in done.sentence

    def test_no_point_in_the_window(self, database_url: str, pool: StoragePool) -> None:
        store(pool, gauge(300, 1.0, "a"))
        done = metrics(database_url, "queue")
        assert (done.status, done.stderr) == (0, "")
        last = f"{now() - dt.timedelta(minutes=300):%F %T}"
        assert f"; the last one is of {last}: give --since or --until" in done.stdout
        assert metrics(database_url, "queue", "--where", "model=b").stdout == "no point of queue matches\n"
        found = drawn(database_url, "queue")
        assert (found["name"], found["series"]) == ("queue", [])

    def test_help(self) -> None:
        shown = " ".join(invoke("metrics", "--help").stdout.split())
        for word in ("--by", "--where", "--aggregation", "--step", "increase", "p95", "Exit status"):
            assert word in shown
        assert json.dumps(shown)


class TestFigures:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (None, ""),
            (0, "0"),
            (-3.0, "-3"),
            (1234, "1,234"),
            (0.123456, "0.1235"),
            (12_345, "12.35k"),
            (999_999, "1000k"),
            (-2_500_000.0, "-2.5M"),
            (3e20, "3.000e+20"),
            (float("inf"), "inf"),
            (float("nan"), "nan"),
        ],
    )
    def test_numbers(self, value: float | None, shown: str) -> None:
        assert formats.figure(value) == shown

    @pytest.mark.parametrize("text", ["30s", "5m", "1h", "36h", "2d"])
    def test_lengths_of_time_go_both_ways(self, text: str) -> None:
        assert formats.parse_duration(formats.step(formats.parse_duration(text))) == formats.parse_duration(text)

    @given(
        values=st.lists(st.one_of(st.none(), st.integers(), st.floats()), max_size=50),
        rows=st.integers(1, 8),
        width=st.integers(1, 80),
        from_zero=st.booleans(),
    )
    def test_anything_can_be_drawn(self, values: list[float | None], rows: int, width: int, from_zero: bool) -> None:
        shown, several = fitted(values, width)
        assert len(shown) <= width
        assert several * width >= len(values)
        drawing = draw(shown, Scale.of(shown, from_zero=from_zero), ASCII, rows)
        assert [len(row) for row in drawing] == [len(shown)] * rows
        for place, value in enumerate(shown):
            is_there = value is not None and value == value
            assert (drawing[-1][place] != " ") == is_there

    @given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=20))
    def test_higher_values_are_never_lower(self, values: list[float]) -> None:
        scale = Scale.of(values, from_zero=True)
        levels = [scale.level(value, 64) for value in sorted(values)]
        assert levels == sorted(levels)
        assert all(1 <= level <= 64 for level in levels)
