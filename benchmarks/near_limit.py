"""The ways that are judged by the server's limit, in turns with it alone."""

from __future__ import annotations

from typing import Final

from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings

_NEAR: Final = (ways.COPY_WRITER, ways.COPY_WRITER_CALLS)


class NearLimit:
    """Rounds of few ways: among all of them a round takes so long that the machine's own speed changes in it."""

    def __init__(
        self, title: str, made: ways.Ways, writer: str, *, size: Size, benchmark: Benchmark, report: Report
    ) -> None:
        """Run the limit, CopyWriter and `writer`, and report them."""
        own = [way for way in made.own() if way.name in (*_NEAR, writer)]
        self._timings = Timings([made.limit(), made.limit_beside_work(), *own])
        self._timings.run_round(keep=False)
        benchmark.pedantic(self._timings.run_round, rounds=size.many_rounds)
        self.records = self._timings.summary({"of the limit": ways.LIMIT})
        report.ways(f"{title}: by COPY, in turns with the limit alone, {size.many_rounds} rounds", self.records)
        self.beside = f"the limit itself has {self.ratio(ways.LIMIT_BESIDE_WORK):.2f} beside a busy core"
        self.calls = f"{self.ratio(ways.COPY_WRITER_CALLS):.2f} where each batch is a call; {self.beside}"

    def ratio(self, name: str) -> float:
        """How near to the limit a way is."""
        return self._timings.ratio(name, ways.LIMIT)
