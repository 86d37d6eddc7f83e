"""`ingest` when a person, a terminal or the server interferes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import psycopg
import pytest
from psycopg import sql

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from tests.command_line import environment, program
from tests.otlp_requests import recorded, request, sent_span
from tests.servers import database, database_name


def line(number: int) -> bytes:
    return request(sent_span(traceId=f"{number:032x}", spanId=f"{number:016x}")) + b"\n"


class Running:
    """An `ingest` that reads its standard input from the test."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            program("ingest", "--json", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(DATABASE_URL=url, DB_RETRY_MAX_ATTEMPTS="1"),
        )

    def write(self, data: bytes) -> None:
        pipe = cast("IO[bytes]", self.process.stdin)
        pipe.write(data)
        pipe.flush()

    def end(self) -> tuple[int, dict[str, int], str]:
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(out), errors.decode()


@contextmanager
def running(url: str) -> Iterator[Running]:
    started = Running(url)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lines_are_stored_while_the_pipe_is_open(database_url: str, pool: StoragePool) -> None:
    with running(database_url) as ingest:
        ingest.write(line(1) + line(2))
        wait_until(lambda: len(TraceRepository(pool).list()) == 2)
        ingest.write(line(3))
        status, figures, errors = ingest.end()
    assert (status, figures["spans"], figures["traces"], errors) == (0, 3, 3, "")


def test_interrupt_keeps_what_was_read(database_url: str, pool: StoragePool) -> None:
    with running(database_url) as ingest:
        ingest.write(line(1) + line(2))
        wait_until(lambda: len(TraceRepository(pool).list()) == 2)
        ingest.process.send_signal(signal.SIGINT)
        status, figures, errors = ingest.end()
    assert (status, figures["spans"]) == (130, 2)
    assert errors == "observatory-storage: interrupted\n"


def test_a_database_that_goes_away_is_one_sentence(server_url: str, database_url: str) -> None:
    with database(server_url, database_name(database_url)) as url, running(url) as ingest:
        ingest.write(line(1))
        with StoragePool.from_url(url, min_connections=1) as pool:
            wait_until(lambda: len(TraceRepository(pool).list()) == 1)
        with psycopg.connect(server_url, autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(database_name(url))))
        ingest.write(line(2))
        status, figures, errors = ingest.end()
    assert (status, figures["spans"], figures["traces"]) == (1, 1, 1)
    assert errors.startswith("1 row could not be stored: ")
    assert "does not exist" in errors
    assert errors.count("\n") == 1


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    mine, theirs = pty.openpty()
    try:
        yield mine, theirs
    finally:
        os.close(mine)
        os.close(theirs)


def read_screen(descriptor: int, process: subprocess.Popen[bytes]) -> str:
    shown = b""
    while process.poll() is None or select.select([descriptor], [], [], 0.1)[0]:
        if select.select([descriptor], [], [], 0.1)[0]:
            shown += os.read(descriptor, 65536)
    return shown.decode()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_progress_bar_on_a_terminal(encoding: str, database_url: str) -> None:
    largest = max(recorded(), key=lambda path: path.stat().st_size)
    with terminal() as (mine, theirs):
        process = subprocess.Popen(
            program("ingest", "--json", "--database-url", database_url, largest, "/nowhere"),
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=environment(TERM="xterm", PYTHONIOENCODING=encoding),
        )
        screen = read_screen(mine, process)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["spans"] > 0
    assert largest.name[-24:] in screen
    assert ("━" in screen) == (encoding == "utf-8")
    assert re.search(r"/\d+(\.\d)? [kM]?B|bytes", screen)
    assert "/nowhere: cannot be read: No such file or directory" in screen


def test_no_progress_in_a_pipe(database_url: str, tmp_path: Path) -> None:
    process = subprocess.run(
        program("ingest", "--database-url", database_url, recorded()[0]),
        capture_output=True,
        env=environment(TERM="xterm"),
        timeout=60,
    )
    assert process.stderr == b""
    assert process.stdout.count(b"\n") == 1
