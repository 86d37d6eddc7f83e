"""A server with the settings it comes with, a pool on it, and the tables that are printed at the end."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

import psycopg
import pytest

from observatory_storage.embedded import embedded_server
from observatory_storage.pool import StoragePool
from tests.servers import GIVEN_URL, database, private_directory

_SETTINGS = ("shared_buffers", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "max_wal_size")


@dataclass(frozen=True)
class Size:
    """How much a run does. Only a full or a quick run is long enough for its figures to be judged."""

    rows: int
    rounds: int
    is_judged: bool


_REPORT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rows and rounds")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_REPORT]:
        terminalreporter.write_line(line)


@dataclass(frozen=True)
class Report:
    """Lines that are printed after all tests."""

    lines: list[str] = field(default_factory=list)

    def add(self, title: str, *lines: str) -> None:
        self.lines.extend(["", title, *lines])


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return Report(pytestconfig.stash[_REPORT])


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    if not pytestconfig.getoption("benchmark_enable"):
        return Size(rows=1_000, rounds=1, is_judged=False)
    if pytestconfig.getoption("quick"):
        return Size(rows=10_000, rounds=7, is_judged=True)
    return Size(rows=30_000, rounds=11, is_judged=True)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A database of its own: on the server of OBSERVATORY_TEST_DATABASE_URL, else on the wheel's.

    Unlike the server of the tests it keeps the wheel's settings: commits are flushed to disk.
    """
    with ExitStack() as stack:
        if GIVEN_URL:
            server_url = GIVEN_URL
        else:
            directory = stack.enter_context(private_directory("bench"))
            server_url = stack.enter_context(embedded_server(directory / "data")).url
        yield stack.enter_context(database(server_url))


@pytest.fixture(scope="session")
def pool(url: str) -> Iterator[StoragePool]:
    """One connection: every way writes by the same session, on a core that this process leaves to it."""
    with StoragePool.from_url(url, min_connections=1, max_connections=1) as pool:
        pool.run_migrations()
        with _cores_apart(_backend(pool)):
            yield pool


def _backend(pool: StoragePool) -> int:
    with pool.raw_connection() as connection:
        return connection.info.backend_pid


@contextmanager
def _cores_apart(backend: int) -> Iterator[None]:
    """Keep client and server on different cores, where this user may say so.

    They wake each other all the time, and a scheduler that likes to run the woken beside the waker puts both
    on one core for whole seconds, at half the speed, while the other is idle.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield
        return
    try:
        os.sched_setaffinity(backend, set(cores[1:]))
    except (PermissionError, ProcessLookupError):
        # Another user's server, or one on another machine.
        yield
        return
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))


@pytest.fixture(scope="session")
def machine(url: str, pool: StoragePool) -> str:
    """What the figures depend on, in one line."""
    with psycopg.connect(url) as connection:
        settings = {name: connection.execute(f"SHOW {name}").fetchone() for name in _SETTINGS}
        server = connection.info.parameter_status("server_version")
    shown = ", ".join(f"{name} {value[0]}" for name, value in settings.items() if value is not None)
    apart = (
        ", client and server on cores of their own"
        if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
        else ""
    )
    load = f"{apart}, load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} CPUs{load}, Python {platform.python_version()}, psycopg {version('psycopg')} "
        f"({psycopg.pq.__impl__}), SQLAlchemy {version('SQLAlchemy')}, PostgreSQL {server}: {shown}"
    )
