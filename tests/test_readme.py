"""The README's examples do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.telemetry import count

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^## (\w+).*?$|^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def examples() -> list[tuple[str, str]]:
    """Each example with the heading it stands under."""
    found, heading = [], ""
    for title, code in EXAMPLES:
        heading = title or heading
        if code:
            found.append((heading, code))
    return found


@pytest.fixture
def environment(database_url: str) -> dict[str, str]:
    limits = {"DB_MIN_CONNECTIONS": "1", "DB_MAX_CONNECTIONS": "5"}
    return {**os.environ, **limits, "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}


def run(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_examples_run_one_after_the_other(environment: dict[str, str], database_url: str) -> None:
    outputs = [(heading, run(code, environment)) for heading, code in examples()]
    assert [heading for heading, _ in outputs] == ["Configure", "Write", "Write", "Write", "COPY", *["Read"] * 3]
    configure, llm, otlp, signals, copied, read, found, used = (output for _, output in outputs)
    assert configure == "True\n"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n", llm)
    assert otlp == "10 spans, 0 rejected\n"
    assert signals == "36 points, 20 records\n"
    assert copied == "1000\n"
    assert "chat gpt-4o" in read
    assert "spans, the first one:" in read
    assert "gen_ai.client.token.usage" in found
    assert re.search(r"^gpt-4o \d+ \d+ \d+ 0\.\d+$", used, re.M)
    assert count(database_url, "trace_spans") == 1011


def test_the_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
