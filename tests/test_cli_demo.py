"""`demo`: with nothing configured on a server of its own, and on a database that is named."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from observatory_storage.cli.measure import measure
from observatory_storage.models import Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository
from tests.command_line import environment, invoke, program, run
from tests.otlp_requests import recorded
from tests.servers import private_directory

WAYS = {"TraceWriter, INSERT", "TraceWriter, COPY", "CopyWriter", "Core executemany", "insert().values()"}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a name short enough for a server's socket below it."""
    with private_directory("demo", in_memory=True) as path:
        yield path


def test_with_nothing_configured(directory: Path) -> None:
    started = time.monotonic()
    done = run("demo", TMPDIR=str(directory))
    assert (done.status, done.stderr) == (0, "")
    assert time.monotonic() - started < 60
    assert "embedded PostgreSQL in a temporary directory" in done.stdout
    assert "stored 22 traces, 68 spans and 24 events, 64 data points of 11 metrics, 65 log records in" in done.stdout
    assert "├ get_weather" in done.stdout
    assert all(way in done.stdout for way in WAYS)
    assert not list(directory.glob("obs-*"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once, with few rows: for tests of something else."""
    monkeypatch.setattr("observatory_storage.cli.demo.measure", lambda pool: measure(pool, rows=500, runs=1))


@pytest.mark.usefixtures("quick")
def test_on_a_database_leaves_the_captures_alone(database_url: str, pool: StoragePool) -> None:
    done = invoke("demo", "--json", "--database-url", database_url)
    assert done.status == 0
    found = done.json["ingest"]
    assert (found["spans"], found["data_points"], found["logs"], found["rejected"]) == (68, 64, 65, 0)
    rates = {rate["method"]: rate["rows_per_second"] for rate in done.json["rates"]}
    assert rates.keys() == WAYS
    assert rates["TraceWriter, COPY"] > 2 * rates["insert().values()"]
    with pool.session() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Trace, TraceSpan, TraceEvent)]
    assert counts == [22, 68, 24]
    assert len(TraceRepository(pool).list(TraceFilters(project="demo"))) == 22


@pytest.mark.usefixtures("quick")
def test_captures_that_another_project_has_are_shown_there(database_url: str) -> None:
    files = recorded("openinference.traces.pb")
    assert invoke("ingest", "--database-url", database_url, "--project", "mine", *files).status == 0
    done = invoke("demo", "--database-url", database_url)
    assert done.status == 0
    assert "its trace belongs to project 'mine'" in done.stderr
    assert "├ get_weather" in done.stdout


@pytest.mark.usefixtures("quick")
def test_data_dir_keeps_the_data(directory: Path) -> None:
    data = directory / "data"
    assert invoke("demo", "--json", "--data-dir", data).status == 0
    with StoragePool.embedded(data) as pool:
        assert len(TraceRepository(pool).list()) == 22
    assert invoke("demo", "--data-dir", data, "--database-url", "postgresql://h/d").status == 2


def test_terminated_it_stops_its_server(directory: Path) -> None:
    process = subprocess.Popen(
        program("demo"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(TMPDIR=str(directory))
    )
    assert process.stdout is not None
    while b"schema at revision" not in process.stdout.readline():
        assert process.poll() is None
    (data,) = directory.glob("obs-*")
    server = int((data / "postmaster.pid").read_text().split()[0])
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, b"")
    # Where nobody waits for orphans, the process that ended is still listed, without a command line.
    command_line = Path(f"/proc/{server}/cmdline")
    assert not command_line.exists() or command_line.read_bytes() == b""
    assert not list(directory.glob("obs-*"))
