"""Runs the command line: in this process, or as a program of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.testing
from typer.main import get_command
from typer.testing import CliRunner

from observatory_storage.cli.app import app

ROOT = Path(__file__).parent.parent
# A program builds its commands once; the runner would for each call, which is most of what a short one takes.
vars(typer.testing)["_get_command"] = functools.cache(get_command)
_SETTINGS = (
    "DATABASE_URL",
    "DB_",
    "REDIS_",
    "OBSERVATORY_PROJECT",
    "OBSERVATORY_RETENTION",
    "OBSERVATORY_PARTITIONS",
    "PG",
    "COLUMNS",
    "NO_COLOR",
    "FORCE_COLOR",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON value on standard output."""
        assert self.stdout.count("\n") == 1, self.stdout
        return json.loads(self.stdout)

    @property
    def sentence(self) -> str:
        """The one line on standard error."""
        assert self.stderr.count("\n") == 1, self.stderr
        return self.stderr.strip()


def invoke(*arguments: object, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a command in this process, in an empty directory and without any setting but those given."""
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith(_SETTINGS)}
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        result = CliRunner().invoke(
            app,
            [str(argument) for argument in arguments],
            input=stdin,
            env=cleared | dict(environment or {}),
            catch_exceptions=False,
        )
    return Outcome(result.exit_code, result.stdout, result.stderr)


def environment(**settings: str) -> dict[str, str]:
    """The environment of a program that finds the package and no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **settings}


def program(*arguments: object) -> list[str]:
    """The words that start the program."""
    return [sys.executable, "-m", "observatory_storage", *map(str, arguments)]


def run(*arguments: object, **settings: str) -> Outcome:
    """Run a command as a program, in an empty directory."""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            program(*arguments), capture_output=True, cwd=empty, env=environment(**settings), timeout=120
        )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
