"""The same searches over many records and over a twentieth of them, in turns, with the same head.

The head, which is the newest hour, has no text index: it is read, and the rest is looked up.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import pytest

from benchmarks import logs
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from tests.servers import database

# How much longer a search may take over 20 times as many records.
MOST: Final = 3.0
HOURS: Final = 20

Search = Callable[[LogRepository, random.Random], int]


@dataclass(frozen=True)
class Scale:
    """How many records: `hours` of them with an index, and the head."""

    rows_an_hour: int
    head_rows: int
    rounds: int


def _by_time(filters: LogFilters) -> Search:
    return lambda repository, _: len(repository.list(filters))


def _ranked(filters: LogFilters) -> Search:
    return lambda repository, _: len(repository.search_logs(filters, ranked=True, snippets=True))


def _unique(repository: LogRepository, dice: random.Random) -> int:
    # In the newest hour with an index, which both have.
    return len(repository.list(LogFilters(search=logs.unique_word(1, dice.randrange(1_000)))))


SEARCHES: Final[Mapping[str, Search]] = {
    "a word of one record": _unique,
    "a word of no record": lambda repository, dice: len(
        repository.list(LogFilters(search=f"absent{dice.randrange(10**9)}"))
    ),
    "a rare word": _by_time(LogFilters(search=logs.RARE)),
    "a common word": _by_time(LogFilters(search=logs.COMMON)),
    "a phrase": _by_time(LogFilters(search=f'"{logs.RARE} {logs.COMMON}"')),
    "a OR b -c": _by_time(LogFilters(search=f"{logs.RARE} OR replica -cookie")),
    "rare, of a service": _by_time(LogFilters(search=logs.RARE, service_name="billing", severity="error")),
    "a rare word, ranked": _ranked(LogFilters(search=logs.RARE)),
    "a common word, ranked": _ranked(LogFilters(search=logs.COMMON)),
}


@pytest.fixture(scope="module")
def scale(size: Size) -> Scale:
    if not size.is_judged:
        return Scale(rows_an_hour=200, head_rows=50, rounds=2)
    return Scale(50_000, 5_000, 30) if size.rows >= 30_000 else Scale(10_000, 2_000, 20)


@pytest.fixture(scope="module")
def repositories(url: str, scale: Scale) -> Iterator[tuple[LogRepository, LogRepository]]:
    """The small store and the large one."""
    with ExitStack() as stack:
        made = []
        for hours in (1, HOURS):
            where = stack.enter_context(database(url))
            pool = stack.enter_context(StoragePool.from_url(where, min_connections=1, max_connections=1))
            pool.run_migrations()
            logs.fill(where, hours + 1, scale.rows_an_hour, scale.head_rows)
            made.append(LogRepository(pool))
        yield made[0], made[1]


def test_log_search(
    repositories: tuple[LogRepository, LogRepository],
    scale: Scale,
    size: Size,
    benchmark: Benchmark,
    report: Report,
    machine: str,
) -> None:
    seconds: dict[tuple[str, int], list[float]] = {(name, of): [] for name in SEARCHES for of in (0, 1)}
    counts: dict[tuple[str, int], int] = {}
    dice = random.Random(1)

    def run_round(*, keep: bool = True) -> None:
        for name, search in SEARCHES.items():
            seed = dice.random()
            for of in (0, 1) if dice.random() < 0.5 else (1, 0):
                gc.collect()
                started = time.perf_counter()
                counts[name, of] = search(repositories[of], random.Random(seed))
                if keep:
                    seconds[name, of].append(time.perf_counter() - started)

    for _ in range(3):
        run_round(keep=False)
    benchmark.pedantic(run_round, rounds=scale.rounds)
    lines = [f"{'':<24} {'small p50':>10} {'p95':>8} {'large p50':>10} {'p95':>8} {'p95 ratio':>10} {'found':>12}"]
    ratios: dict[str, float] = {}
    for name in SEARCHES:
        small, large = sorted(seconds[name, 0]), sorted(seconds[name, 1])
        ratios[name] = _p95(large) / _p95(small)
        lines.append(
            f"{name:<24} {_ms(statistics.median(small)):>10} {_ms(_p95(small)):>8} {_ms(statistics.median(large)):>10} "
            f"{_ms(_p95(large)):>8} {ratios[name]:>10.2f} {counts[name, 0]:>5} {counts[name, 1]:>6}"
        )
    every = [_p95([second for name in SEARCHES for second in seconds[name, of]]) for of in (0, 1)]
    ratios["all searches"] = every[1] / every[0]
    lines.append(
        f"{'all searches':<24} {'':>10} {_ms(every[0]):>8} {'':>10} {_ms(every[1]):>8} {every[1] / every[0]:>10.2f}"
    )
    total = [scale.rows_an_hour * hours + scale.head_rows for hours in (1, HOURS)]
    title = f"log_search: {total[1]:,} records against {total[0]:,}, a head of {scale.head_rows:,} in both, ms"
    report.add(title, *lines, machine)
    benchmark.extra_info.update(machine=machine, records=total, p95_ratios=ratios)
    assert counts["a word of one record", 0] == counts["a word of one record", 1] == 1
    if size.is_judged:
        missed = {name: ratio for name, ratio in ratios.items() if ratio > MOST}
        assert not missed, "\n".join(lines)


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
