"""The ways that are judged by the server's limit, in turns with it alone."""

from __future__ import annotations

from typing import Final

from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings, Way

_COPY_WAYS: Final = (ways.COPY_WRITER, ways.COPY_WRITER_CALLS)


class NearLimit:
    """Rounds of few ways: among all of them a round takes so long that the machine's own speed changes in it."""

    def __init__(
        self, title: str, limit: Way, judged: list[Way], *, size: Size, benchmark: Benchmark, report: Report
    ) -> None:
        """Run the limit and what is judged by it, and report both."""
        self._timings = Timings([limit, *judged])
        self._timings.run_round(keep=False)
        benchmark.pedantic(self._timings.run_round, rounds=size.many_rounds)
        self.records = self._timings.summary({"of the limit": ways.LIMIT})
        report.ways(f"{title}, in turns with the limit alone, {size.many_rounds} rounds", self.records)

    def ratio(self, name: str) -> float:
        """How near to the limit a way is."""
        return self._timings.ratio(name, ways.LIMIT)

    @property
    def beside(self) -> str:
        """What the limit has of itself while a client has work to do."""
        return f"the limit itself has {self.ratio(ways.LIMIT_BESIDE_WORK):.2f} beside a busy core"

    @property
    def calls(self) -> str:
        """What CopyWriter has that knows of no next batch."""
        return f"{self.ratio(ways.COPY_WRITER_CALLS):.2f} where each batch is a call; {self.beside}"


def copy_ways(made: ways.Ways, writer: str) -> list[Way]:
    """The limit beside work, CopyWriter, and a writer of the signal."""
    return [made.limit_beside_work(), *(way for way in made.own() if way.name in (*_COPY_WAYS, writer))]
