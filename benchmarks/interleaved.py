"""Ways of doing one thing, measured in turns, so that a slow minute falls on all of them."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture, which has no types."""

    extra_info: dict[str, Any]

    def pedantic(self, target: Callable[[], None], *, rounds: int) -> None: ...


@dataclass(frozen=True)
class Way:
    """One way: `run` is timed and handles `rows` rows, `prepare` goes before it and is not timed."""

    name: str
    rows: int
    run: Callable[[], None]
    prepare: Callable[[], None]


class Timings:
    """The seconds a row of each way took, round by round."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways
        self._seconds: dict[str, list[float]] = {way.name: [] for way in ways}
        self._random = random.Random(20)
        freeze()

    def run_round(self, *, keep: bool = True) -> None:
        """Run each way once, in an order of its own each round.

        Not in a cycle: there a way always follows the same other one, and what that leaves behind (a warm processor, a
        busy disk) became part of its figure: 0.65 of the limit after one neighbour, 0.75 after another.
        """
        for way in self._random.sample(self._ways, len(self._ways)):
            seconds = timed(way)
            if keep:
                self._seconds[way.name].append(seconds)

    def rates(self, name: str) -> list[float]:
        """Rows a second, one figure a round."""
        return [1 / seconds for seconds in self._seconds[name]]

    def ratio(self, name: str, base: str) -> float:
        """How many times as fast as `base`: the median over the rounds, each compared with its own."""
        return statistics.median(self.ratios(name, base))

    def ratios(self, name: str, base: str) -> list[float]:
        """How many times as fast as `base`, in each round."""
        pairs = zip(self._seconds[base], self._seconds[name], strict=True)
        return [base_seconds / seconds for base_seconds, seconds in pairs]

    def summary(self, bases: Mapping[str, str]) -> list[dict[str, Any]]:
        """One record a way: median, quartiles, extremes and the ratios to `bases` (label -> way), fastest first."""
        records = []
        for way in self._ways:
            rates = self.rates(way.name)
            lower, median, upper = quartiles(rates)
            records.append(
                {
                    "way": way.name,
                    "rows": way.rows,
                    "rounds": len(rates),
                    "rows_per_second": round(median),
                    "quartiles": [round(lower), round(upper)],
                    "extremes": [round(min(rates)), round(max(rates))],
                    "ratios": {label: round(self.ratio(way.name, base), 3) for label, base in bases.items()},
                    "ratio_quartiles": {
                        label: [round(quartile, 3) for quartile in quartiles(self.ratios(way.name, base))[::2]]
                        for label, base in bases.items()
                    },
                }
            )
        return sorted(records, key=lambda record: -record["rows_per_second"])


class TimingsBetween(Timings):
    """Ways each of which runs between two runs of a base, and is compared with both.

    The machine's own speed changes within seconds: with the geometric mean of the run before and the one after a drift
    falls on both sides alike, and what is as fast as the base has 1 whatever the noise looks like (their sum would give
    it more where slow runs are slower than fast ones are fast). All ways follow the base, in another order each round.
    What that leaves behind shows in the control: the base once more, as one of the ways.
    """

    def __init__(self, base: Way, ways: Sequence[Way]) -> None:
        self.control = f"{base.name}, once more"
        ways = [*ways, replace(base, name=self.control)]
        super().__init__([base, *ways])
        self._base = base
        self._judged = ways
        self._around: dict[str, list[float]] = {way.name: [] for way in ways}

    def run_round(self, *, keep: bool = True) -> None:
        """Run the base, and then each way and the base once more."""
        before = timed(self._base)
        if keep:
            self._seconds[self._base.name].append(before)
        for way in self._random.sample(self._judged, len(self._judged)):
            seconds, after = timed(way), timed(self._base)
            if keep:
                self._seconds[way.name].append(seconds)
                self._seconds[self._base.name].append(after)
                self._around[way.name].append(math.sqrt(before * after))
            before = after

    def ratios(self, name: str, base: str) -> list[float]:
        """How many times as fast as the base, in each round."""
        assert base == self._base.name, base
        if name == base:
            return [1.0]
        return [around / seconds for around, seconds in zip(self._around[name], self._seconds[name], strict=True)]


def timed(way: Way) -> float:
    """Run a way once; return the seconds a row."""
    way.prepare()
    gc.collect()
    started = time.perf_counter()
    way.run()
    return (time.perf_counter() - started) / way.rows


def freeze() -> None:
    """Keep the collector from walking over what was made so far: rows that live as long as the benchmark does.

    No way pays for such walks, and a collection before each run takes no time. The end of the test takes it back.
    """
    gc.collect()
    gc.freeze()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The summary as lines of text."""
    labels = list(records[0]["ratios"])
    lines = [
        f"{'':<34} {'rows/s':>9} {'quartiles':>17} {'rows':>7}" + "".join(f" {label:>12}" for label in labels),
    ]
    for record in records:
        lower, upper = record["quartiles"]
        ratios = "".join(f" {record['ratios'][label]:>12.2f}" for label in labels)
        lines.append(
            f"{record['way']:<34} {record['rows_per_second']:>9,} {lower:>8,}-{upper:<8,} {record['rows']:>7,}{ratios}"
        )
    return lines
