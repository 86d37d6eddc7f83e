"""The command line as a whole: entry points, where the database is, errors as sentences."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import observatory_storage
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from tests.command_line import ROOT, environment, invoke, program, run
from tests.otlp_requests import request, sent_span
from tests.servers import free_port


def test_version_from_the_module() -> None:
    done = run("--version")
    assert (done.status, done.stdout) == (0, f"observatory-storage {observatory_storage.__version__}\n")


def test_help_names_every_command_and_the_exit_statuses() -> None:
    shown = invoke("--help").stdout
    for command in ("check", "migrate", "ingest", "traces", "show", "maintain", "demo"):
        assert f"  {command} " in shown
    assert "Exit status: 0" in shown
    assert "Exit status: 0" in invoke("ingest", "--help").stdout


def test_unknown_option_is_wrong_usage() -> None:
    done = invoke("traces", "--nope")
    assert done.status == 2
    assert "--nope" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_one_sentence(missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no {missing}', name='{missing}')\n")
    script = "from observatory_storage.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"needs {missing}" in done.stderr
    assert "pip install 'observatory-storage[cli]'" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("migrate",), ("ingest", "file.pb"), ("traces",), ("show", "abc"), ("traces", "--json")]
)
def test_nothing_configured_says_what_to_set(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert (done.status, done.stdout) == (1, "")
    for what in ("--database-url", "--config", "DATABASE_URL", "DB_PASSWORD"):
        assert what in done.sentence


def test_database_url_before_and_after_the_command(database_url: str) -> None:
    for arguments in (("--database-url", database_url, "traces"), ("traces", "--database-url", database_url)):
        done = invoke(*arguments)
        assert (done.status, done.stdout) == (0, "no trace is stored yet\n")


def test_option_after_the_command_wins(database_url: str) -> None:
    assert invoke("--database-url", "postgresql://nowhere", "traces", "--database-url", database_url).status == 0


def test_configuration_from_the_environment_and_from_a_file(database_url: str, tmp_path: Path) -> None:
    assert invoke("traces", environment={"DATABASE_URL": database_url}).status == 0
    file = tmp_path / "settings.toml"
    file.write_text(f'[postgres]\nurl = "{database_url}"\n')
    assert invoke("--config", file, "traces").status == 0
    assert invoke("traces", "--config", tmp_path / "missing.toml").status == 1


def test_url_and_file_exclude_each_other() -> None:
    assert invoke("traces", "--database-url", "postgresql://h/d", "--config", "x.toml").status == 2


def test_wrong_settings_are_told_together() -> None:
    done = invoke(
        "traces", environment={"DATABASE_URL": "postgresql://h/d", "DB_PORT": "x", "DB_RETRY_MAX_ATTEMPTS": "0"}
    )
    assert (done.status, done.stdout) == (1, "")
    assert "DB_RETRY_MAX_ATTEMPTS is '0'" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_wrong_setting_has_a_line_of_its_own() -> None:
    done = invoke("traces", environment={"DB_PASSWORD": "s3cr3t", "DB_PORT": "x", "DB_RETRY_MAX_ATTEMPTS": "0"})
    assert done.status == 1
    first, *problems = done.stderr.splitlines()
    assert first == "observatory-storage: 2 settings are wrong:"
    assert [problem.split(" is ")[0].strip() for problem in problems] == ["DB_PORT", "DB_RETRY_MAX_ATTEMPTS"]
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize("command", [("traces",), ("migrate",), ("check", "--verbose"), ("demo",)])
def test_unreachable_server_is_a_sentence_without_the_password(command: tuple[str, ...]) -> None:
    url = f"postgresql://someone:s3cr3t-w0rd@127.0.0.1:{free_port()}/nothing"
    # As often as by default, in less time.
    done = run(*command, DATABASE_URL=url, DB_RETRY_INITIAL_DELAY_MS="1")
    assert done.status == 1
    said = done.stdout + done.stderr
    assert "127.0.0.1" in said
    assert "refused" in said
    assert "s3cr3t-w0rd" not in said
    assert "Traceback" not in said


def test_malformed_url_does_not_show_its_password() -> None:
    done = run("traces", "--database-url", "postgresql://someone:s3cr3t@w0rd@host/db")
    assert done.status == 1
    assert "s3cr3t" not in done.stdout + done.stderr
    assert "w0rd" not in done.stdout + done.stderr
    assert "percent-encoded" in done.sentence


def test_a_reader_that_leaves_ends_the_program_quietly(database_url: str) -> None:
    process = subprocess.Popen(
        program("traces", "--json", "--database-url", database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, b"")


def test_closed_standard_output_is_no_error(database_url: str) -> None:
    command = " ".join(map(shlex.quote, program("traces", "--database-url", database_url)))
    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_full_disk_is_a_sentence(database_url: str) -> None:
    if not Path("/dev/full").exists():
        return
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            program("traces", "--database-url", database_url),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
        )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_termination_stores_what_was_read(database_url: str, pool: StoragePool) -> None:
    process = subprocess.Popen(
        program("ingest", "--json", "-", "--database-url", database_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    process.stdin.write(request(sent_span()) + b"\n" + b"   ")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while not TraceRepository(pool).list() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b'"spans": 1' in out
