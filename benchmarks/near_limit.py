"""The ways that are judged by the server's limit, each between two runs of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks import ways
from benchmarks.conftest import Report
from benchmarks.interleaved import Benchmark, TimingsBetween, Way, quartiles

_COPY_WAYS: Final = (ways.COPY_WRITER, ways.COPY_WRITER_CALLS)


class NearLimit:
    """Few ways in many rounds: in a round of all of them the machine's own speed changes several times."""

    def __init__(
        self, title: str, limit: Way, judged: list[Way], *, rounds: int, benchmark: Benchmark, report: Report
    ) -> None:
        """Run the limit and what is judged by it, and report both."""
        self._report = report
        self._timings = TimingsBetween(limit, judged)
        self._timings.run_round(keep=False)
        benchmark.pedantic(self._timings.run_round, rounds=rounds)
        self.records = self._timings.summary({"of the limit": ways.LIMIT})
        report.ways(f"{title}, each between two runs of the limit, {rounds} rounds", self.records)

    def measure(self, key: str, name: str, note: str = "") -> None:
        """Judge how near to the limit a way is; the note has what it was in turns with all ways."""
        lower, median, upper = quartiles(self._timings.ratios(name, ways.LIMIT))
        notes = [*self._in_turns(name), *([note] if note else []), f"the limit once more has {self.control}"]
        self._report.measure(key, median, "; ".join(notes), spread=(lower, upper))

    def ratio(self, name: str) -> float:
        """How near to the limit a way is."""
        return self._timings.ratio(name, ways.LIMIT)

    @property
    def control(self) -> str:
        """What the limit has of itself: 1, but for what the runs leave behind, and for noise."""
        lower, median, upper = quartiles(self._timings.ratios(self._timings.control, ways.LIMIT))
        return f"{median:.2f} ({lower:.2f}–{upper:.2f})"

    def _in_turns(self, name: str) -> Iterator[str]:
        records = next(iter(self._report.data.get("records", {}).values()), ())
        for record in records:
            if record["way"] == name and record["rounds"] != len(self._timings.ratios(name, ways.LIMIT)):
                lower, upper = record["ratio_quartiles"]["of the limit"]
                yield f"{record['ratios']['of the limit']:.2f} ({lower:.2f}–{upper:.2f}) in turns with all ways"

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
