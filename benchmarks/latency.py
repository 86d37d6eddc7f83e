"""Small operations, timed one by one in turns: percentiles, and ratios to one of them."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.interleaved import freeze, p95, quartiles

Operation = Callable[[], object]

_DRAWS: Final = 500


class Latencies:
    """The seconds of each operation, call by call."""

    def __init__(self, operations: Mapping[str, Operation], *, seed: int = 1) -> None:
        self._operations = operations
        self._dice = random.Random(seed)
        self.seconds: dict[str, list[float]] = {name: [] for name in operations}

    def run(self, rounds: int, *, warm_up: int = 3) -> None:
        """Call each operation once a round, in another order each time; the collector waits."""
        names = [*self._operations]
        freeze()
        gc.disable()
        try:
            for number in range(warm_up + rounds):
                for name in self._dice.sample(names, len(names)):
                    operation = self._operations[name]
                    started = time.perf_counter()
                    operation()
                    if number >= warm_up:
                        self.seconds[name].append(time.perf_counter() - started)
        finally:
            gc.enable()

    def ratio(self, name: str, base: str) -> float:
        """The median of one against the median of another."""
        return statistics.median(self.seconds[name]) / statistics.median(self.seconds[base])

    def p95_ratio(self, name: str, base: str) -> float:
        return p95(self.seconds[name]) / p95(self.seconds[base])

    def p95_spread(self, name: str, base: str) -> tuple[float, float]:
        """The quartiles of that ratio, as other calls like these would have it."""
        return p95_spread(self.seconds[name], self.seconds[base])

    def rows(self, base: str | Mapping[str, str]) -> list[list[str]]:
        """A line for each operation: its name, ratio to `base` (one, or one each), median, quartiles and p95 in ms."""
        lines = []
        for name, seconds in self.seconds.items():
            lower, median, upper = quartiles(seconds)
            against = base if isinstance(base, str) else base.get(name)
            ratio = "" if against is None else f"{self.ratio(name, against):.2f}"
            lines.append([name, ratio, ms(median), f"{ms(lower)}–{ms(upper)}", ms(p95(seconds))])
        return lines

    def records(self) -> dict[str, dict[str, Any]]:
        """The same as data, in seconds."""
        return {
            name: {"calls": len(seconds), "median": statistics.median(seconds), "p95": p95(seconds)}
            for name, seconds in self.seconds.items()
        }


def p95_spread(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """The quartiles of the ratio of two 95th percentiles, by a bootstrap: both drawn anew from what was measured."""
    dice = random.Random(95)
    ratios = [p95(dice.choices(seconds, k=len(seconds))) / p95(dice.choices(base, k=len(base))) for _ in range(_DRAWS)]
    lower, _, upper = quartiles(ratios)
    return lower, upper


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
