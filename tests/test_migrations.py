"""The schema's history: up, down, no drift from the models, many processes at once, from the wheel."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from observatory_storage import migrations
from observatory_storage.config import StorageConfig
from observatory_storage.errors import SchemaVersionError, UnavailableError
from observatory_storage.models import Base, Trace
from observatory_storage.pool import StoragePool
from tests import catalog
from tests.conftest import ROOT

DAY = (
    "CREATE TABLE trace_spans_p20260101 PARTITION OF trace_spans"
    " FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-01-02 00:00+00')"
)


def environment(url: str) -> dict[str, str]:
    """DATABASE_URL and nothing else that the configuration reads."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, "DATABASE_URL": url}


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", *arguments],
        cwd=ROOT,
        env=environment(url),
        capture_output=True,
        text=True,
        timeout=60,
    )


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.every_server
def test_up_check_down_and_up_again_with_the_alembic_command(empty_database_url: str) -> None:
    untouched = catalog.describe(empty_database_url)
    for arguments in (("upgrade", "head"), ("check",)):
        done = alembic(empty_database_url, *arguments)
        assert done.returncode == 0, done.stderr
    migrated = catalog.describe(empty_database_url)

    execute(empty_database_url, DAY)
    done = alembic(empty_database_url, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    done = alembic(empty_database_url, "downgrade", "base")
    assert done.returncode == 0, done.stderr
    left = {line for line in catalog.describe(empty_database_url) if migrations.VERSION_TABLE not in line}
    assert left == untouched

    migrations.upgrade(StorageConfig.from_url(empty_database_url))
    assert catalog.describe(empty_database_url) == migrated


@pytest.mark.every_server
def test_the_migrated_catalog_is_what_the_models_declare(database_url: str, empty_database_url: str) -> None:
    url = sa.make_url(empty_database_url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        for table in Base.metadata.tables.values():
            if "partition_column" in table.info:
                connection.execute(sa.text(f"CREATE TABLE {table.name}_default PARTITION OF {table.name} DEFAULT"))
    declared = catalog.describe(empty_database_url)
    migrated = {line for line in catalog.describe(database_url) if migrations.VERSION_TABLE not in line}
    assert sorted(migrated - declared) == []
    assert sorted(declared - migrated) == []


def test_check_sees_a_drift(database_url: str) -> None:
    execute(database_url, "ALTER TABLE traces DROP COLUMN session_id")
    done = alembic(database_url, "check")
    assert done.returncode != 0
    assert "session_id" in done.stdout + done.stderr


def test_the_alembic_command_says_in_one_sentence_why_it_cannot_connect() -> None:
    done = alembic("postgresql://app:Sup3rSecret@127.0.0.1:1/telemetry", "upgrade", "head")
    assert done.returncode != 0
    assert "refused" in done.stdout + done.stderr
    assert "Sup3rSecret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_sql_for_a_database_administrator() -> None:
    done = alembic("postgresql://unused", "upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    assert "CREATE TABLE trace_spans_default PARTITION OF trace_spans DEFAULT" in done.stdout


def test_a_second_run_changes_nothing(pool: StoragePool) -> None:
    before = catalog.describe(pool.config.postgres.conninfo())
    state = pool.run_migrations()
    assert state.is_current
    assert catalog.describe(pool.config.postgres.conninfo()) == before


def test_an_applications_own_alembic_history_stays_its_own(empty_database_url: str) -> None:
    execute(empty_database_url, "CREATE TABLE alembic_version AS SELECT 'theirs' AS version_num")
    migrations.upgrade(StorageConfig.from_url(empty_database_url))
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("TABLE alembic_version").fetchall() == [("theirs",)]


def test_a_database_of_a_newer_release_is_left_alone(database_url: str) -> None:
    execute(database_url, f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(SchemaVersionError, match="newer release"):
        migrations.upgrade(StorageConfig.from_url(database_url))
    with StoragePool.from_url(database_url, max_connections=2) as pool:
        assert not pool.health_check().healthy


def test_a_revision_that_does_not_exist_is_named(empty_database_url: str) -> None:
    with pytest.raises(SchemaVersionError, match="nonsense"):
        migrations.upgrade(StorageConfig.from_url(empty_database_url), "nonsense")


def test_a_lock_that_nobody_gives_up_is_an_error_that_names_its_holder(empty_database_url: str) -> None:
    config = StorageConfig.from_url(empty_database_url)
    with psycopg.connect(empty_database_url, application_name="nightly report") as holder:
        # A second creator of the same table waits for the first one's transaction.
        holder.execute("CREATE TABLE traces (id uuid)")
        with pytest.raises(UnavailableError, match=r"2 times no lock.*nightly report") as caught:
            migrations.upgrade(config, lock_timeout_seconds=0.1, lock_attempts=2)
        assert caught.value.sqlstate == "55P03"
        holder.rollback()
    assert migrations.upgrade(config).is_current


def test_a_lock_that_is_given_up_in_time_only_delays(empty_database_url: str) -> None:
    config = StorageConfig.from_url(empty_database_url)
    with psycopg.connect(empty_database_url) as holder:
        holder.execute("CREATE TABLE traces (id uuid)")
        threading.Timer(0.5, holder.rollback).start()
        assert migrations.upgrade(config, lock_timeout_seconds=0.2, lock_attempts=10).is_current


def test_whoever_waits_too_long_for_another_migration_hears_of_it(empty_database_url: str) -> None:
    config = StorageConfig.from_url(empty_database_url, application_name="deployment")
    with migrations.migration_connection(config):
        program = (
            "import sys\n"
            "from observatory_storage import migrations\n"
            "from observatory_storage.config import StorageConfig\n"
            "migrations.upgrade(StorageConfig.from_url(sys.argv[1]), wait_seconds=0.3)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, empty_database_url], cwd=ROOT, capture_output=True, text=True
        )
    assert "UnavailableError: another process still migrates" in done.stderr
    assert "'deployment'" in done.stderr


def test_threads_of_one_process_take_turns(empty_database_url: str) -> None:
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=2) as pool:
        states: list[migrations.SchemaState] = []
        threads = [threading.Thread(target=lambda: states.append(pool.run_migrations())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [state.is_current for state in states] == [True] * 4


def test_health_does_not_wait_for_a_lock_for_ever(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.pool._HEALTH_TIMEOUT_MS", 100)
    with psycopg.connect(database_url) as migrating:
        migrating.execute(f"LOCK {migrations.VERSION_TABLE}")
        error = pool.health_check_postgres().error
    assert error is not None
    assert "timeout" in error


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but the package as its wheel installs it."""
    built, installed = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    for command in (
        ["hatchling", "build", "-t", "wheel", "-d", str(built)],
        [
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "-f",
            str(built),
            "-t",
            str(installed),
            "observatory-storage",
        ],
    ):
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    return installed


def test_ten_processes_with_the_installed_wheel_migrate_an_empty_database_from_an_empty_directory(
    installed_wheel: Path, empty_database_url: str, database_url: str, tmp_path: Path
) -> None:
    program = (
        "import observatory_storage, sys\n"
        "from observatory_storage.pool import StoragePool\n"
        "assert observatory_storage.__file__.startswith(sys.argv[2]), observatory_storage.__file__\n"
        "with StoragePool.from_url(sys.argv[1], max_connections=1) as pool:\n"
        "    assert pool.run_migrations().is_current\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database_url, str(installed_wheel)],
            cwd=tmp_path,
            env={**environment(empty_database_url), "PYTHONPATH": str(installed_wheel)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(10)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)] == [(0, "")] * 10
    assert catalog.describe(empty_database_url) == catalog.describe(database_url)


def test_tables_of_another_program_are_left_alone(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE traces (id int)")
    refused = pytest.raises(SchemaVersionError, match=r"another program .* \(traces\)")
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=2) as pool, refused:
        pool.run_migrations()


def test_times_come_back_in_utc_whatever_the_servers_zone(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET timezone = 'America/New_York'")
    now = dt.datetime.now(dt.UTC)
    with pool.session() as session:
        session.add(Trace(id=uuid.uuid4(), start_time=now))
        session.commit()
    with StoragePool.from_url(database_url, min_connections=1, max_connections=2) as later, later.session() as session:
        (trace,) = session.scalars(sa.select(Trace))
        assert str(trace.start_time) == str(now)
        assert repr(trace) == f"Trace(id='{trace.id}', name='None')"
