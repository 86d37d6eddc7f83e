"""The programs in `examples/` run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.telemetry import count

ROOT = Path(__file__).parent.parent
PROMISES = {
    "COPY by hand": ["refused (23505)", "refused (22021)", "none"],
    "CopyWriter": ["refused (23505)", "repaired", "none"],
    "TraceWriter, COPY": ["stored once", "repaired", "exact"],
    "TraceWriter, INSERT": ["stored once", "repaired", "exact"],
}


def test_copy_by_four_ways_prints_rates_and_promises_and_leaves_nothing(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/copy_protocol.py"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        way, *cells = re.split(r"\s{2,}", line.strip())
        if way in PROMISES:
            rate, ratio, *found[way] = cells
            assert int(rate.replace(",", "")) > 0
            assert float(ratio.removesuffix("x")) >= 1.0
    assert found == PROMISES
    assert count(database_url, "trace_spans") == count(database_url, "traces") == 0
