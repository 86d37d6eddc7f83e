"""`metrics`: the list of what there is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import metric_activity
from tests.cli_metrics import (
    begin_minute,
    counter,
    gauge,
    histogram,
    metrics,
    now,
    rising,
    store,
)


@pytest.fixture(autouse=True)
def _present_minute() -> None:
    begin_minute()


def test_the_table(database_url: str, pool: StoragePool) -> None:
    store(pool, *rising("a", 5), *rising("b", 7), gauge(90, 1.0), histogram(3, [1, 0, 0, 0, 0], 0.2))
    lines = metrics(database_url).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "llm.duration", "llm.tokens", "queue"]
    assert lines[2].split() == ["llm.tokens", "counter", "{token}", "2", "62", *f"{now():%F %T}".split(), "api"]
    assert lines[3].split()[3:5] == ["1", "1"]


def test_json(database_url: str, pool: StoragePool) -> None:
    store(pool, *rising("a", 5))
    found = metrics(database_url, "--json").json
    (metric,) = found["metrics"]
    assert (metric["name"], metric["metric_type"], metric["unit"]) == ("llm.tokens", "counter", "{token}")
    assert (metric["series_count"], metric["point_count"]) == (1, 31)
    assert dt.datetime.fromisoformat(metric["last_timestamp"]) == now()
    assert found["next_cursor"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["llm.duration", "llm.tokens", "other", "queue"]),
        (["--type", "gauge"], ["other", "queue"]),
        (["--unit", "s"], ["llm.duration"]),
        (["--service", "web"], ["other"]),
        (["--project", "mine"], ["other"]),
        (["--search", "LLM."], ["llm.duration", "llm.tokens"]),
        (["--since", "1h"], ["llm.duration", "llm.tokens"]),
        (["--until", "1h"], ["other", "queue"]),
        (["--since", "2099-01-01"], []),
        (["-n", "2"], ["llm.duration", "llm.tokens"]),
    ],
)
def test_filters(arguments: Sequence[str], expected: list[str], database_url: str, pool: StoragePool) -> None:
    other = gauge(90, 1.0, name="other", service_name="web", project="mine")
    store(pool, *rising("a", 5), gauge(90, 1.0), histogram(3, [1, 0, 0, 0, 0], 0.2), other)
    assert [metric["name"] for metric in metrics(database_url, "--json", *arguments).json["metrics"]] == expected


def test_counts_are_of_the_time_range(database_url: str, pool: StoragePool) -> None:
    store(pool, *rising("a", 5), counter(400, 1, "long ago"))
    (metric,) = metrics(database_url, "--json").json["metrics"]
    assert (metric["series_count"], metric["point_count"]) == (2, 32)
    (metric,) = metrics(database_url, "--json", "--until", "6h").json["metrics"]
    assert (metric["series_count"], metric["point_count"]) == (1, 1)
    assert dt.datetime.fromisoformat(metric["last_timestamp"]) == now() - dt.timedelta(minutes=400)


def test_points_are_counted_up_to_a_bound(
    database_url: str, pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(pool, *rising("a", 5), *rising("b", 5), gauge(1, 1.0))
    monkeypatch.setattr(metric_activity, "MOST_COUNTED", 40)
    lines = metrics(database_url).stdout.splitlines()
    assert [line.split()[4] for line in lines[1:]] == ["40+", "1"]
    assert [line.split()[3] for line in lines[1:]] == ["2", "1"]


def test_pages_follow_by_cursor(database_url: str, pool: StoragePool) -> None:
    store(pool, *(gauge(1, 1.0, name=f"m{number}") for number in range(5)))
    first = metrics(database_url, "--json", "-n", "2").json
    rest = metrics(database_url, "--json", "--cursor", first["next_cursor"]).json
    assert [metric["name"] for metric in rest["metrics"]] == ["m2", "m3", "m4"]
    assert f"more: --cursor {first['next_cursor']}" in metrics(database_url, "-n", "2").stdout


def test_none(database_url: str, pool: StoragePool) -> None:
    assert metrics(database_url).stdout == "no metric is stored yet\n"
    store(pool, gauge(1, 1.0))
    assert metrics(database_url, "--search", "x").stdout == "no metric matches\n"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_fits_its_width(width: int, database_url: str, pool: StoragePool) -> None:
    store(pool, gauge(1, 1.0, name="a name that is long, with 漢字 \x1b[31m and does not fit " * 3))
    lines = metrics(database_url, COLUMNS=str(width)).stdout.splitlines()
    assert len(lines) == 2
    assert all(cell_len(line) <= width and "\x1b" not in line for line in lines)


def test_names_are_cut_last(database_url: str, pool: StoragePool) -> None:
    name = "gen_ai.client.operation.time_per_output_chunk"
    store(pool, gauge(1, 1.0, name=name, service_name="a-service-with-a-long-name"))
    (line,) = metrics(database_url, COLUMNS="120").stdout.splitlines()[1:]
    assert line.split()[0] == name
    assert "a-service" in line
