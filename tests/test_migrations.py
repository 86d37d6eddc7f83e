"""The schema's history: up, down, no drift from the models, many processes at once, from the wheel."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import TupleRow

from observatory_storage import migrations
from observatory_storage.config import StorageConfig
from observatory_storage.errors import SchemaVersionError, UnavailableError
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import Base, LogRecord, Trace
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from tests import catalog
from tests.conftest import ROOT
from tests.threads import threads

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
        connection.execute(statement.encode())


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
    said = [output for process, output in zip(processes, outputs, strict=True) if process.returncode or output]
    assert not said, said[0]
    assert catalog.describe(empty_database_url) == catalog.describe(database_url)


def test_tables_of_another_program_are_left_alone(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE traces (id int)")
    refused = pytest.raises(SchemaVersionError, match=r"another program .* \(traces\)")
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=2) as pool, refused:
        pool.run_migrations()


def test_tables_that_another_process_makes_meanwhile_are_our_own(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = migrations._refuse_foreign_tables
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=2) as pool:

        def migrate_meanwhile(connection: psycopg.Connection[TupleRow]) -> None:
            monkeypatch.setattr(migrations, "_refuse_foreign_tables", refuse)
            assert pool.run_migrations().is_current
            refuse(connection)

        # Between reading the state, which was none, and looking for tables.
        monkeypatch.setattr(migrations, "_refuse_foreign_tables", migrate_meanwhile)
        assert pool.run_migrations().is_current


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


SPAN = "INSERT INTO trace_spans (trace_id, span_id, start_time) VALUES (gen_random_uuid(), '\\x0102030405060708', %s)"
LOG = "INSERT INTO logs (timestamp, route_id, id, body) VALUES (%s, gen_random_uuid(), gen_random_uuid(), 'before')"
METRIC = "INSERT INTO metrics (id, name, metric_type) VALUES (gen_random_uuid(), 'before', 'gauge')"
FIRST_DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
INDEXES = """
    SELECT c.relname, x.indisvalid FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
    WHERE c.relname ~ '^logs_.*transaction_id_idx$' ORDER BY 1
"""


def make_release_one(url: str, days: int) -> StorageConfig:
    """A database of revision 0001 with a span and a log record in each of many daily partitions, and in DEFAULT."""
    config = StorageConfig.from_url(url)
    migrations.upgrade(config, "0001")
    with psycopg.connect(url) as connection:
        for day in (FIRST_DAY + dt.timedelta(days=number) for number in range(days)):
            for table in ("trace_spans", "logs"):
                connection.execute(
                    f"CREATE TABLE {table}_p{day:%Y%m%d} PARTITION OF {table}"
                    f" FOR VALUES FROM ('{day}') TO ('{day + dt.timedelta(days=1)}')"
                )
        for number in range(-1, days):
            connection.execute(SPAN, [FIRST_DAY + dt.timedelta(days=number)])
            connection.execute(LOG, [FIRST_DAY + dt.timedelta(days=number)])
    return config


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.every_server
def test_a_store_with_data_and_many_partitions_goes_up_and_down(empty_database_url: str) -> None:
    url, days = empty_database_url, 30
    config = make_release_one(url, days)
    execute(url, METRIC)
    files = (
        "SELECT relname, relfilenode FROM pg_class"
        " WHERE relkind = 'r' AND relname ~ '^(logs|trace_spans|metrics|metric_series)' ORDER BY 1"
    )
    rows = "SELECT timestamp, id, body FROM logs ORDER BY 1"
    before, stored = query(url, files), query(url, rows)
    assert migrations.upgrade(config).is_current

    assert query(url, files) == before, "a table was rewritten"
    assert query(url, rows) == stored
    indexes = query(url, INDEXES)
    assert len(indexes) == days + 2
    assert {valid for _, valid in indexes} == {True}
    assert query(url, "SELECT count(transaction_id), count(*) FROM logs") == [(0, days + 1)]
    assert query(url, "SELECT count(seen_at), count(*) FROM metrics") == [(0, 1)]
    execute(url, METRIC)
    assert query(url, "SELECT count(*) FROM metrics WHERE seen_at = created_at") == [(1,)]
    with psycopg.connect(url) as connection:
        connection.execute(LOG, [FIRST_DAY])
        (transaction,) = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or ()
    assert query(url, "SELECT transaction_id FROM logs WHERE transaction_id IS NOT NULL") == [(transaction,)]
    execute(url, "CREATE INDEX logs_default_text_idx ON logs_default (body)")

    done = alembic(url, "downgrade", "0001")
    assert done.returncode == 0, done.stderr
    assert query(url, "SELECT relname FROM pg_class WHERE relname ~ 'transaction_id|text_idx'") == []
    assert query(url, "SELECT 1 FROM pg_attribute WHERE attname ~ '_from_logs|transaction_id|^seen_at'") == []
    assert query(url, "SELECT count(*) FROM logs") == [(days + 2,)]
    assert query(url, "SELECT count(*) FROM trace_spans") == [(days + 1,)]

    assert migrations.upgrade(config).is_current
    done = alembic(url, "check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.every_server
def test_an_index_that_waits_in_vain_is_an_error_and_is_built_by_the_next_call(empty_database_url: str) -> None:
    url = empty_database_url
    config = make_release_one(url, 3)
    with psycopg.connect(url, application_name="nightly report") as reader:
        # A concurrent build waits for every older snapshot, whatever it reads.
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        with pytest.raises(UnavailableError, match=r"1 times no lock.*nightly report"):
            migrations.upgrade(config, lock_timeout_seconds=0.05, lock_attempts=1)
        indexes = dict(query(url, INDEXES))
        assert indexes["logs_transaction_id_idx"] is False
        assert indexes["logs_default_transaction_id_idx"] is False
    assert migrations.upgrade(config).is_current
    indexes = dict(query(url, INDEXES))
    assert len(indexes) == 5
    assert set(indexes.values()) == {True}


@pytest.mark.every_server
@pytest.mark.parametrize("leftover", ["an index that nobody attached", "only the parent's", "a partition since"])
def test_an_interrupted_migration_is_resumed(empty_database_url: str, leftover: str) -> None:
    url = empty_database_url
    config = make_release_one(url, 3)
    execute(url, "ALTER TABLE logs ADD COLUMN transaction_id bigint")
    definition = "USING brin (transaction_id) WITH (pages_per_range = 32)"
    execute(url, f"CREATE INDEX logs_transaction_id_idx ON ONLY logs {definition}")
    if leftover == "an index that nobody attached":
        name = "logs_p20260102_transaction_id_idx"
        execute(url, f"CREATE INDEX CONCURRENTLY {name} ON logs_p20260102 {definition}")
    elif leftover == "a partition since":
        with StoragePool.from_url(url, min_connections=1, max_connections=1) as pool:
            assert PartitionManager(pool).ensure(table_of(LogRecord), [dt.date(2026, 2, 1)]) == []
    assert migrations.upgrade(config).is_current
    indexes = dict(query(url, INDEXES))
    assert len(indexes) == (5 + 24 if leftover == "a partition since" else 5)
    assert set(indexes.values()) == {True}


@pytest.mark.every_server
def test_a_writer_that_holds_the_tables_is_waited_for_in_short_turns(empty_database_url: str) -> None:
    url = empty_database_url
    config = make_release_one(url, 3)
    with psycopg.connect(url, application_name="import") as holder:
        holder.execute(LOG, [FIRST_DAY])
        with pytest.raises(UnavailableError, match=r"2 times no lock.*import"):
            migrations.upgrade(config, lock_timeout_seconds=0.1, lock_attempts=2)
        threading.Timer(0.5, holder.rollback).start()
        assert migrations.upgrade(config, lock_timeout_seconds=0.2, lock_attempts=20).is_current


def test_a_deadlock_that_the_migration_loses_only_delays(empty_database_url: str) -> None:
    config = make_release_one(empty_database_url, 1)
    states: list[migrations.SchemaState] = []
    migrating = threading.Thread(target=lambda: states.append(migrations.upgrade(config)))
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'logs_default'::regclass"
    with psycopg.connect(empty_database_url) as other:
        # From the partition to its table: the other way round than ALTER TABLE.
        other.execute("LOCK TABLE logs_default")
        migrating.start()
        while query(empty_database_url, waits) == [(0,)]:
            time.sleep(0.01)
        other.execute("LOCK TABLE ONLY logs")
    migrating.join()
    assert [state.is_current for state in states] == [True]


@pytest.mark.every_server
def test_writers_go_on_through_the_migration(empty_database_url: str) -> None:
    url = empty_database_url
    config = make_release_one(url, 20)
    done = threading.Event()
    written = [0, 0]

    def write(place: int) -> None:
        with psycopg.connect(url) as connection:
            while not done.is_set():
                for number in range(5):
                    connection.execute(SPAN, [FIRST_DAY + dt.timedelta(days=number)])
                    connection.execute(LOG, [FIRST_DAY + dt.timedelta(days=number)])
                connection.commit()
                written[place] += 5

    with threads() as start:
        start(write, 0)
        start(write, 1)
        try:
            assert migrations.upgrade(config).is_current
        finally:
            done.set()
    assert query(url, "SELECT count(*) FROM logs") == [(sum(written) + 21,)]
    assert {valid for _, valid in query(url, INDEXES)} == {True}


def test_the_sql_for_an_administrator_makes_the_same_schema(empty_database_url: str, database_url: str) -> None:
    script = alembic("postgresql://unused", "upgrade", "head", "--sql").stdout
    execute(empty_database_url, script)
    assert catalog.describe(empty_database_url) == catalog.describe(database_url)
    script = alembic("postgresql://unused", "downgrade", "head:0001", "--sql").stdout
    execute(empty_database_url, script)
    assert query(empty_database_url, f"TABLE {migrations.VERSION_TABLE}") == [("0001",)]
