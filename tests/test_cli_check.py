"""`check` and `migrate`: nine steps, each with a tick or with what is wrong and how to mend it."""

from __future__ import annotations

import subprocess
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from observatory_storage.migrations import head_revision
from tests.command_line import Outcome, environment, invoke, program, run
from tests.otlp_requests import recorded
from tests.servers import free_port

STEPS = [
    "load the configuration",
    "validate the configuration",
    "open the pool",
    "PostgreSQL",
    "Redis",
    "health",
    "statistics",
    "sample query",
    "close the pool",
]


def steps(done: Outcome) -> dict[str, dict[str, Any]]:
    found = {step["step"]: step for step in done.json["steps"]}
    assert list(found) == STEPS
    assert done.json["ok"] == (done.status == 0)
    return found


def outcomes(done: Outcome) -> list[bool | None]:
    return [step["ok"] for step in steps(done).values()]


def test_all_is_well(database_url: str) -> None:
    done = invoke("check", "--database-url", database_url)
    assert done.status == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line[0] != " "] == [
        f"✓ {name}" for name in STEPS
    ]
    assert f"schema at revision {head_revision()}" in done.stdout
    assert "no trace is stored yet" in done.stdout


def test_verbose_says_more(database_url: str) -> None:
    assert invoke("ingest", "--database-url", database_url, *recorded("openinference.traces.pb")).status == 0
    brief = invoke("check", "--database-url", database_url).stdout
    full = invoke("check", "--verbose", "--database-url", database_url).stdout
    assert "9eb886232652345371a3ea9d75171041" in brief
    for detail in ("round trip", "up to 3 attempts", "idle", "TLS mode"):
        assert detail in full
        assert detail not in brief


def test_all_is_well_with_redis(database_url: str, redis_url: str) -> None:
    found = steps(invoke("check", "--json", environment={"DATABASE_URL": database_url, "REDIS_URL": redis_url}))
    assert found["Redis"] == {**found["Redis"], "ok": True, "detail": "answers"}


def test_nothing_configured() -> None:
    done = invoke("check", "--json")
    assert (done.status, outcomes(done)) == (1, [False] + [None] * 8)
    assert "DATABASE_URL" in steps(done)["load the configuration"]["detail"]
    assert steps(done)["close the pool"]["detail"].endswith("this failed: load the configuration")
    shown = invoke("check").stdout
    assert shown.startswith("✗ load the configuration: ")
    assert shown.count("· ") == 8


def test_wrong_settings_are_all_named() -> None:
    wrong = {"DATABASE_URL": "postgresql://h/d", "DB_MAX_CONNECTIONS": "none", "DB_RETRY_MAX_ATTEMPTS": "0"}
    shown = invoke("check", environment=wrong).stdout
    assert "DB_MAX_CONNECTIONS is 'none'" in shown
    assert "DB_RETRY_MAX_ATTEMPTS is '0'" in shown


def test_server_that_cannot_be_reached() -> None:
    url = f"postgresql://someone:s3cr3t@127.0.0.1:{free_port()}/nothing"
    done = invoke("check", "--json", "--database-url", url)
    assert (done.status, outcomes(done)) == (1, [True, True, False] + [None] * 6)
    assert "3 attempts" in steps(done)["open the pool"]["detail"]
    assert "s3cr3t" not in done.stdout


def test_a_role_without_privileges_is_told_to_get_them(database_url: str, server_url: str) -> None:
    role = "observatory_test_stranger"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            theirs = sa.make_url(database_url).set(username=role).render_as_string(hide_password=False)
            done = invoke("check", "--json", "--database-url", theirs)
        finally:
            admin.execute(f"DROP ROLE {role}")
    assert done.status == 1
    found = steps(done)["PostgreSQL"]
    assert found["detail"].startswith("permission denied for ")
    assert found["remedy"].startswith("grant this role what it may not do")


def test_database_that_is_not_migrated(empty_database_url: str) -> None:
    done = invoke("check", "--json", "--database-url", empty_database_url)
    assert (done.status, outcomes(done)) == (1, [True, True, True, False, True, None, True, None, True])
    assert steps(done)["PostgreSQL"]["remedy"] == "run: observatory-storage migrate"
    assert invoke("migrate", "--database-url", empty_database_url).status == 0
    assert invoke("check", "--database-url", empty_database_url).status == 0


def test_redis_that_does_not_answer(database_url: str) -> None:
    settings = {"DATABASE_URL": database_url, "REDIS_URL": f"redis://:s3cr3t@127.0.0.1:{free_port()}/0"}
    done = invoke("check", "--json", environment=settings)
    assert (done.status, outcomes(done)) == (1, [True, True, True, True, False, True, True, True, True])
    assert "REDIS_URL" in steps(done)["Redis"]["remedy"]
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("check",), ("check", "--verbose"), ("check", "--json")])
def test_as_a_program_in_ascii(arguments: tuple[str, ...], database_url: str) -> None:
    done = run(*arguments, "--database-url", database_url, PYTHONIOENCODING="ascii")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_migrate_says_from_and_to(empty_database_url: str) -> None:
    head = head_revision()
    first = invoke("migrate", "--database-url", empty_database_url)
    assert (first.status, first.stdout) == (0, f"✓ migrated: nothing → {head}\n")
    again = invoke("migrate", "--json", "--database-url", empty_database_url)
    assert (again.status, again.json) == (0, {"from": head, "to": head, "changed": False})


def test_migrate_four_at_once(empty_database_url: str) -> None:
    processes = [
        subprocess.Popen(
            program("migrate", "--database-url", empty_database_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        for _ in range(4)
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert {errors for _, errors in ended} == {b""}
    assert all(head_revision().encode() in out for out, _ in ended)
