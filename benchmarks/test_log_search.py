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
from benchmarks.interleaved import Benchmark, freeze, p95
from benchmarks.latency import p95_spread
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from tests.servers import database

Search = Callable[[LogRepository, random.Random], int]


@dataclass(frozen=True)
class Scale:
    """How many records: `hours` of them with an index in the large store, one in the small one, and the head."""

    hours: int
    rows_an_hour: int
    head_rows: int
    rounds: int


def _by_time(filters: LogFilters) -> Search:
    return lambda repository, _: len(repository.list(filters))


def _ranked(filters: LogFilters) -> Search:
    return lambda repository, _: len(repository.search_logs(filters, ranked=True, snippets=True))


def _unique(repository: LogRepository, dice: random.Random) -> int:
    # In the newest hour with an index, which both have.
    return len(repository.list(LogFilters(search=logs.unique_word(1, dice.randrange(200)))))


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
    return Scale(
        size.pick(3, 8, 20), size.pick(200, 1_000, 20_000, 50_000), size.pick(50, 500, 5_000), size.pick(1, 3, 30)
    )


@pytest.fixture(scope="module")
def repositories(url: str, template: str, scale: Scale) -> Iterator[tuple[LogRepository, LogRepository]]:
    """The small store and the large one."""
    with ExitStack() as stack:
        made = []
        for hours in (1, scale.hours):
            where = stack.enter_context(database(url, template))
            pool = stack.enter_context(StoragePool.from_url(where, min_connections=1, max_connections=1))
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
        for name, search in dice.sample([*SEARCHES.items()], len(SEARCHES)):
            seed = dice.random()
            for of in (0, 1) if dice.random() < 0.5 else (1, 0):
                gc.collect()
                started = time.perf_counter()
                counts[name, of] = search(repositories[of], random.Random(seed))
                if keep:
                    seconds[name, of].append(time.perf_counter() - started)

    freeze()
    for _ in range(size.pick(1, 1, 3)):
        run_round(keep=False)
    benchmark.pedantic(run_round, rounds=scale.rounds)
    rows = []
    ratios: dict[str, float] = {}
    for name in SEARCHES:
        small, large = seconds[name, 0], seconds[name, 1]
        ratios[name] = p95(large) / p95(small)
        rows.append(
            [
                name,
                f"{ratios[name]:.2f}",
                *(_ms(figure) for one in (small, large) for figure in (statistics.median(one), p95(one))),
                f"{counts[name, 0]:,}",
                f"{counts[name, 1]:,}",
            ]
        )
    every = [p95([second for name in SEARCHES for second in seconds[name, of]]) for of in (0, 1)]
    ratios["all searches"] = every[1] / every[0]
    rows.append(["all searches", f"{ratios['all searches']:.2f}", "", _ms(every[0]), "", _ms(every[1]), "", ""])
    total = [scale.rows_an_hour * hours + scale.head_rows for hours in (1, scale.hours)]
    report.table(
        f"Searches over {total[1]:,} records against {total[0]:,}, a head of {scale.head_rows:,} in both, ms",
        ["", "p95 ratio", "small p50", "p95", "large p50", "p95", "found, small", "large"],
        rows,
    )
    benchmark.extra_info.update(machine=machine, records=total, p95_ratios=ratios)
    assert counts["a word of one record", 0] == counts["a word of one record", 1] == 1
    worst = max(SEARCHES, key=ratios.__getitem__)
    report.measure(
        "text_search_when_large",
        ratios[worst],
        f"{total[1]:,} records against {total[0]:,}; the worst of {len(SEARCHES)} kinds: {worst}, which finds "
        f"{counts[worst, 1]:,} and {counts[worst, 0]:,}; all kinds together {ratios['all searches']:.2f} ×",
        spread=p95_spread(seconds[worst, 1], seconds[worst, 0]),
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
