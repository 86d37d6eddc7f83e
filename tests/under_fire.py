"""What tests of writers do to them: run many processes at once, kill sessions in the middle of batches."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from observatory_storage.errors import WriteError
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter
from tests.forked import Program
from tests.telemetry import NOW

ROOT = Path(__file__).parent.parent
# Few connections and short pauses, for writers that are to fail soon.
IMPATIENT = {"min_connections": 1, "max_connections": 3, "initial_delay_ms": 5, "max_delay_ms": 20}


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start an interpreter with a program that knows the tests' modules; a warning ends it."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """What a program wrote, when it has ended well and without a word on standard error."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return out


def in_processes(code: str, url: str, methods: Sequence[str], *arguments: str) -> list[list[int]]:
    """Run one writing program for each method, all at once; return the numbers that each printed.

    A program is given the database, its method, its number, the time of its rows, and what else there is.
    """
    programs = [
        Program(code, url, method, str(seed), NOW.isoformat(), *arguments) for seed, method in enumerate(methods)
    ]
    return [json.loads(program.output()) for program in programs]


@contextmanager
def sessions_killed(url: str, pause_seconds: float) -> Iterator[Callable[[], int]]:
    """Terminate whatever session works, again and again, until the block ends; gives the number so far."""
    stop = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.wait(pause_seconds):
                killed += connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
                ).rowcount

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield lambda: killed
    finally:
        stop.set()
        killer.join()


def write_while_sessions_are_killed(
    url: str,
    writer: TraceWriter | LogWriter | MetricWriter,
    batches: Sequence[Any],
    write: Callable[[Any], None],
    *,
    pause_seconds: float = 0.03,
    seconds: float = 40,
) -> int:
    """Write the batches again and again, as replays, until four sessions met their end; return how often.

    All that was given is committed, or held by the writer, when it returns.
    """
    rounds = 0
    with sessions_killed(url, pause_seconds) as killed:
        deadline = time.monotonic() + seconds
        while killed() < 4 and time.monotonic() < deadline:
            rounds += 1
            for batch in batches:
                write(batch)
                _flush(writer)
    assert killed() > 3
    return rounds


def _flush(writer: TraceWriter | LogWriter | MetricWriter) -> None:
    for _ in range(100):
        try:
            writer.flush()
            return
        except WriteError:
            time.sleep(0.02)
