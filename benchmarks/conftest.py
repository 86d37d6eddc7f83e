"""A server with the settings it comes with, databases and pools on it, and the figures that are printed at the end."""

from __future__ import annotations

import datetime as dt
import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks import figures
from benchmarks.figures import Suite
from benchmarks.machine import commit, cores_apart, describe, facts
from benchmarks.ways import CHECKPOINTS
from observatory_storage import migrations
from observatory_storage.config import StorageConfig
from observatory_storage.embedded import embedded_server
from observatory_storage.pool import StoragePool
from tests.servers import GIVEN_URL, database, database_name, private_directory


@dataclass(frozen=True)
class Size:
    """How much a run does. What is smaller than quick is a test that the suites run, and its figures mean nothing."""

    name: str
    rows: int
    rounds: int

    @property
    def many_rounds(self) -> int:
        """Rounds of few ways, whose ratios are judged: the machine's own speed changes by a third within seconds."""
        return self.pick(1, 1, 25, 41)

    @property
    def many_rows(self) -> int:
        """Rows of such a round: a dozen batches, of which the first one, which nobody prepared meanwhile, is one."""
        return self.pick(self.rows, self.rows, 2 * self.rows)

    @property
    def is_judged(self) -> bool:
        """Whether the run is long enough for its figures to be judged."""
        return self.name != "smoke"

    def pick(self, smoke: int, quick: int, default: int, full: int | None = None) -> int:
        """Return what a run of this size does."""
        sizes = {"smoke": smoke, "quick": quick, "default": default, "full": default if full is None else full}
        return sizes[self.name]


_FIGURES = pytest.StashKey[dict[str, dict[str, Any]]]()

Report = Suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rows and rounds")
    parser.addoption("--full", action="store_true", help="more rows, up to 5,000,000 spans, and more rounds")
    parser.addoption("--figures", type=Path, metavar="FILE", help="write what was found as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        CHECKPOINTS.least_seconds = 4.0
    none: dict[str, dict[str, Any]] = {}
    config.stash[_FIGURES] = none


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for data in config.stash[_FIGURES].values():
        for line in figures.text_of(data):
            terminalreporter.write_line(line)
        terminalreporter.write_line(data["machine_line"])


@pytest.fixture
def report(request: pytest.FixtureRequest, machine: str, machine_facts: dict[str, Any], size: Size) -> Iterator[Suite]:
    """What the suite finds, which is its file's name without `test_`."""
    name = request.path.stem.removeprefix("test_")
    suites = request.config.stash[_FIGURES]
    data = suites.get(name, {})
    suite = Suite(data)
    data.setdefault("size", size.name)
    data.setdefault("date", f"{dt.datetime.now(dt.UTC):%Y-%m-%d}")
    data.setdefault("machine", machine_facts)
    data.setdefault("commit", commit())
    data["machine_line"] = machine
    started = time.perf_counter()
    yield suite
    data["seconds"] = round(data.get("seconds", 0.0) + time.perf_counter() - started, 1)
    if data["blocks"]:
        suites[name] = data
    # At once, so that a run that is stopped has not been in vain.
    path: Path | None = request.config.getoption("figures")
    if path is not None:
        figures.write(path, suites)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    if not pytestconfig.getoption("benchmark_enable"):
        return Size("smoke", rows=200, rounds=1)
    if pytestconfig.getoption("quick"):
        return Size("quick", rows=4_000, rounds=1)
    if pytestconfig.getoption("full"):
        return Size("full", rows=30_000, rounds=15)
    return Size("default", rows=30_000, rounds=7)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A database of its own: on the server of OBSERVATORY_TEST_DATABASE_URL, else on the wheel's.

    Unlike the server of the tests the wheel's keeps its settings, and commits are flushed to disk; but autovacuum is
    off, which would fall on one way and not on another. Suites that read run VACUUM ANALYZE by themselves.
    """
    with ExitStack() as stack:
        if GIVEN_URL:
            server_url = GIVEN_URL
        else:
            directory = stack.enter_context(private_directory("bench"))
            server_url = stack.enter_context(embedded_server(directory / "data")).url
            with psycopg.connect(server_url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET autovacuum = off")
                connection.execute("SELECT pg_reload_conf()")
        yield stack.enter_context(database(server_url))


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database that is migrated to head and that nobody connects to."""
    with database(server_url) as migrated:
        migrations.upgrade(StorageConfig.from_url(migrated))
        yield database_name(migrated)


@pytest.fixture(scope="module")
def url(server_url: str, template: str) -> Iterator[str]:
    """A migrated database of the suite's own, on a server that may use every core."""
    with database(server_url, template) as own:
        yield own


@pytest.fixture(scope="module")
def pool(url: str) -> Iterator[StoragePool]:
    """One connection to a database of the suite's own: every way writes by the same session.

    Client and server are kept on cores of their own while the suite runs, where this user may say so.
    """
    with cores_apart(url), StoragePool.from_url(url, min_connections=1, max_connections=1) as pool:
        yield pool


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Give what a test froze back to the collector."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def machine_facts(server_url: str) -> dict[str, Any]:
    """What the figures depend on."""
    return facts(server_url)


@pytest.fixture
def machine(machine_facts: dict[str, Any]) -> str:
    """What the figures depend on, in one line."""
    return describe(machine_facts)
