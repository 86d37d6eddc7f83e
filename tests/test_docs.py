"""The guides name what is there: tests, decisions, settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from observatory_storage import settings
from observatory_storage.writers import WriterConfig

ROOT = Path(__file__).parent.parent
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


def named_tests() -> list[tuple[str, str, bool]]:
    """File and name of each test that the page on reliability names, and whether it is said to run on PostgreSQL 15."""
    found = []
    for line in RELIABILITY.splitlines():
        path = ""
        for given, name in re.findall(r"`(tests/\S+?|…)::(\w+)`", line):
            path = path if given == "…" else given
            found.append((path, name, "¹⁵" in line))
    return found


@pytest.mark.parametrize(("path", "name", "on_every_server"), named_tests())
def test_each_promise_names_a_test_that_exists(path: str, name: str, on_every_server: bool) -> None:
    definition = re.search(rf"((?:^@.*\n(?:^[ )].*\n)*)*)^def {name}\(", (ROOT / path).read_text(), re.M)
    assert definition is not None
    assert ("every_server" in definition[1]) == on_every_server


def test_the_settings_that_guides_name_exist() -> None:
    names = {name for setting in settings.SETTINGS for name in setting.names}
    for page in (ROOT / "docs").glob("**/*.md"):
        text = page.read_text()
        for name in re.findall(r"`(DB_[A-Z_]+[A-Z]|REDIS_[A-Z_]+[A-Z]|OBSERVATORY_[A-Z_]+[A-Z])(?:=\d+)?`", text):
            assert name in names, f"{page.name}: {name}"
        for name in re.findall(r"`WriterConfig\.(\w+)`", text):
            assert name in WriterConfig.model_fields, f"{page.name}: {name}"


def test_decisions_that_code_refers_to_exist() -> None:
    for module in (ROOT / "observatory_storage").glob("**/*.py"):
        for page in re.findall(r"docs/[\w/-]+\.md", module.read_text()):
            assert (ROOT / page).exists(), f"{module.name}: {page}"
