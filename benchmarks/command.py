"""`python -m benchmarks`: runs suites, shows their figures, and writes the report."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks import figures, markdown, progress
from benchmarks.targets import BY_KEY

_HERE: Final = Path(__file__).parent
REPORT: Final = _HERE / "REPORT.md"

_DESCRIPTION: Final = """\
Run benchmarks and show their figures, each beside its baselines in the same run.

They start a PostgreSQL of their own (extra "embedded"), or use the server of
OBSERVATORY_TEST_DATABASE_URL. Without a size all suites take about three quarters of an hour.
--quick takes under two minutes, and leaves out what shows nothing in so little
time, unless it is named. --full adds rounds, and takes growth, retention and
usage_rollups to 5,000,000 spans.
"""
# What these compare does not show in a few seconds.
NOT_QUICK: Final = ("auto_crossover", "late_indexes", "redis_cache", "retention")
_EXAMPLES: Final = """\
examples:
  python -m benchmarks --quick                       most suites, roughly
  python -m benchmarks copy_vs_insert otlp_ingest    two suites
  python -m benchmarks --report                      everything, and REPORT.md anew
  python -m benchmarks growth --full --report        one suite anew, the report of all
  python -m benchmarks --report-only                 REPORT.md of the figures that are stored
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; return 0 where every suite ran through (and, with --strict, met its targets)."""
    parser = _parser()
    given = parser.parse_args(arguments)
    known = suites()
    unknown = [name for name in given.suites if name not in known]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(known)}")
    if given.report_only:
        write_report(figures.read(figures.STORE))
        return 0
    size = next((name for name in ("quick", "full", "smoke") if getattr(given, name)), "default")
    left_out = NOT_QUICK if size == "quick" and not given.suites else ()
    failed, found = run(given.suites or [name for name in known if name not in left_out], size)
    for name in found:
        print(f"\n== {name}, {found[name]['seconds']:.0f} s", *figures.text_of(found[name]), sep="\n")
    if found:
        print("", next(iter(found.values()))["machine_line"], sep="\n")
    if given.json is not None:
        figures.write(given.json, found)
    if given.report:
        stored = figures.read(figures.STORE) | found
        figures.write(figures.STORE, stored)
        write_report(stored)
    missed = missed_targets(found)
    if left_out:
        print(f"\nleft out with --quick, unless they are named: {', '.join(left_out)}")
    print(f"\n{len(found)} suites, {len(missed)} targets missed, {'something failed' if failed else 'nothing failed'}")
    return 1 if failed or (given.strict and missed) else 0


def suites() -> list[str]:
    """Return the names of the suites: files of this folder without `test_`."""
    return sorted(path.stem.removeprefix("test_") for path in _HERE.glob("test_*.py"))


def run(names: Sequence[str], size: str) -> tuple[bool, dict[str, Any]]:
    """Run suites in one process, on one server; return whether a test failed, and what was found."""
    with tempfile.TemporaryDirectory(prefix="obs-figures-") as directory:
        path = Path(directory) / "figures.json"
        options = [] if size == "smoke" else ["--benchmark-enable"]
        options += [f"--{size}"] if size in ("quick", "full") else []
        files = [str(_HERE / f"test_{name}.py") for name in names]
        # Progress goes to the terminal; what pytest says is only worth reading where something failed.
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = pytest.main(
                ["-q", "-s", f"--rootdir={_HERE.parent}", f"--figures={path}", *options, *files],
                plugins=[_Progress()],
            )
        progress.clear()
        if code != pytest.ExitCode.OK:
            print(said.getvalue(), file=sys.stderr)
        return code != pytest.ExitCode.OK, figures.read(path)


def write_report(stored: Mapping[str, Any]) -> None:
    """Draw the charts of all suites and write REPORT.md."""
    # Takes a second, which only those wait for who have something drawn.
    from benchmarks import charts

    directory = _HERE / "charts"
    drawn = {chart["name"]: charts.draw(chart, directory) for suite in stored.values() for chart in suite["charts"]}
    REPORT.write_text(markdown.report(stored, drawn, _HERE))
    print(f"\nwrote {REPORT} and {len(drawn)} charts beside it")


def missed_targets(found: Mapping[str, Any]) -> list[str]:
    return [
        key
        for suite in found.values()
        for key, measure in suite["measures"].items()
        if not BY_KEY[key].is_met(measure["value"])
    ]


class _Progress:
    """Says on a terminal which suite is running, and which of how many tests."""

    def __init__(self) -> None:
        self._total = 0
        self._done = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._done += 1
        suite = Path(location[0]).stem.removeprefix("test_")
        progress.say(f"[{self._done}/{self._total}] {suite}: {location[2].removeprefix('test_').replace('_', ' ')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\nsuites:\n  {', '.join(suites())}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="which suites; all of them where none is named")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer rows and rounds: most suites in two minutes")
    size.add_argument("--full", action="store_true", help="more rounds, and three suites with 5,000,000 spans")
    size.add_argument("--smoke", action="store_true", help="a few rows: that it runs, no figure means anything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of this run")
    parser.add_argument(
        "--report",
        action="store_true",
        help="store the figures in benchmarks/figures.json, write REPORT.md and charts",
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing; write REPORT.md from stored figures")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    return parser
