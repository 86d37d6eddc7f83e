"""`pool.maintain()`: partitions ahead, rows out of DEFAULT, text indexes, by one maintainer at a time."""

from __future__ import annotations

import datetime as dt
import re
import threading
import uuid

import psycopg
import pytest

from observatory_storage.errors import UnavailableError
from observatory_storage.lifecycle import MaintenanceReport, PartitionManager, PartitionWidth
from observatory_storage.lifecycle.session import maintenance_session
from observatory_storage.models import Base, LogRecord, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.conftest import ROOT
from tests.telemetry import assert_summaries_exact, count, make_spans
from tests.threads import threads

LOGS, SPANS = table_of(LogRecord), table_of(TraceSpan)
ONE_DAY, ONE_HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def homes(url: str, table: str) -> dict[str, int]:
    """How many rows each partition has."""
    with psycopg.connect(url) as connection:
        query = f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1"
        return {str(name): int(rows) for name, rows in connection.execute(query.encode()).fetchall()}


def store_log(url: str, time: dt.datetime, rows: int = 1) -> None:
    with psycopg.connect(url) as connection:
        for _ in range(rows):
            connection.execute(
                "INSERT INTO logs (timestamp, route_id, id, body) VALUES (%s, %s, %s, 'found')",
                [time, uuid.uuid4(), uuid.uuid4()],
            )


@pytest.mark.every_server
def test_a_new_store_gets_its_partitions_for_the_coming_days(pool: StoragePool) -> None:
    started = now()
    report = pool.maintain(ahead=2 * ONE_DAY)
    assert report.is_complete
    assert report.text_indexes_built == ("logs_default",)
    manager = PartitionManager(pool)
    for table in Base.metadata.tables.values():
        if "partition_column" not in table.info:
            continue
        partitions = [partition for partition in manager.list(table) if not partition.is_default]
        assert {partition.name for partition in partitions} <= set(report.partitions_made)
        assert len(partitions) == (49 if table.name == "logs" else 3)
        lowest = min(partition.lower for partition in partitions if partition.lower)
        highest = max(partition.upper for partition in partitions if partition.upper)
        assert lowest <= started
        assert highest > started + 2 * ONE_DAY

    again = pool.maintain(ahead=2 * ONE_DAY)
    # Unless an hour began meanwhile.
    assert len(again.partitions_made) <= 4
    assert again.is_complete


def test_seven_days_unless_told_otherwise(pool: StoragePool) -> None:
    report = pool.maintain(dry_run=True)
    assert sum(name.startswith("logs_p") for name in report.partitions_left) == 7 * 24 + 1
    assert sum(name.startswith("trace_spans_p") for name in report.partitions_left) == 8


def test_a_dry_run_says_what_is_due_and_changes_nothing(pool: StoragePool) -> None:
    manager = PartitionManager(pool)
    past = now().replace(minute=0, second=0, microsecond=0) - 3 * ONE_HOUR
    manager.ensure(LOGS, [past])
    report = pool.maintain(ahead=ONE_HOUR, dry_run=True)
    assert report.is_dry_run
    assert not report.is_complete
    assert (report.partitions_made, report.text_indexes_built, report.problems) == ((), (), ())
    assert report.text_indexes_left == (f"logs_p{past:%Y%m%d%H}", "logs_default")
    assert len([name for name in report.partitions_left if name.startswith("logs_p")]) == 2
    assert len(manager.list(LOGS)) == 2
    done = pool.maintain(ahead=ONE_HOUR)
    assert set(report.partitions_left) <= set(done.partitions_made)
    assert done.text_indexes_built == report.text_indexes_left


def test_widths_are_those_that_were_given(pool: StoragePool) -> None:
    report = pool.maintain(ahead=ONE_HOUR, widths={"logs": PartitionWidth.DAY, "trace_spans": PartitionWidth.MONTH})
    assert f"logs_p{now():%Y%m%d}" in report.partitions_made
    assert f"trace_spans_p{now():%Y%m}" in report.partitions_made


@pytest.mark.every_server
def test_rows_of_default_move_to_a_partition_of_their_own(pool: StoragePool, database_url: str) -> None:
    recent, old, wrong = now() - 3 * ONE_DAY, now() - 80 * ONE_DAY, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    for time in (recent, recent, old, wrong):
        store_log(database_url, time)
    report = pool.maintain(ahead=ONE_HOUR)
    assert report.is_complete
    assert homes(database_url, "logs") == {
        f"logs_p{recent:%Y%m%d%H}": 2,
        f"logs_p{old:%Y%m%d%H}": 1,
        "logs_default": 1,
    }
    # They are indexed in the same run.
    assert f"logs_p{recent:%Y%m%d%H}" in report.text_indexes_built


def test_more_rows_than_may_move_at_once_stay_and_are_reported(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.lifecycle.maintenance._MOVE_LIMIT", 2)
    many, few, coming = [now() - 5 * ONE_DAY, now() - 4 * ONE_DAY], now() - 2 * ONE_DAY, now() + ONE_DAY
    for time in (*many, coming):
        store_log(database_url, time, 3)
    store_log(database_url, few, 2)
    crowded = tuple(f"logs_p{time:%Y%m%d%H}" for time in (*many, coming))
    assert len(pool.maintain(ahead=2 * ONE_DAY, dry_run=True).problems) == 3
    report = pool.maintain(ahead=2 * ONE_DAY)
    assert report.partitions_left == crowded
    assert f"logs_p{few:%Y%m%d%H}" in report.partitions_made
    assert len([name for name in report.partitions_made if name.startswith("logs_p")]) == 49
    for name, problem in zip(crowded, report.problems, strict=True):
        assert f"more than 2 rows of {name}" in problem
    assert not report.is_complete
    assert PartitionManager(pool, move_limit=3).ensure(LOGS, [*many, coming]) == []
    assert pool.maintain(ahead=2 * ONE_DAY).is_complete


@pytest.mark.every_server
def test_of_many_maintainers_one_works(database_url: str) -> None:
    reports: list[MaintenanceReport] = []

    def maintain() -> None:
        with StoragePool.from_url(database_url, min_connections=1, max_connections=2) as pool:
            reports.append(pool.maintain(ahead=ONE_DAY, wait_seconds=60))

    threads = [threading.Thread(target=maintain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.is_complete for report in reports] == [True] * 4
    made = [name for report in reports for name in report.partitions_made]
    assert len(made) == len(set(made))
    assert sum(report.text_indexes_built == ("logs_default",) for report in reports) == 1


def test_whoever_does_not_wait_leaves_it_to_the_other(pool: StoragePool) -> None:
    with maintenance_session(pool.config, lock_timeout_seconds=1) as other:
        assert other is not None
        assert pool.maintain() == MaintenanceReport(is_busy=True)
        assert pool.maintain(wait_seconds=0.3).is_busy
    assert not pool.maintain(ahead=ONE_HOUR).is_busy


def test_a_maintainer_that_is_killed_leaves_no_lock(pool: StoragePool, database_url: str) -> None:
    def die() -> None:
        with maintenance_session(pool.config, lock_timeout_seconds=1) as other:
            assert other is not None
            with psycopg.connect(database_url, autocommit=True) as administrator:
                administrator.execute("SELECT pg_terminate_backend(%s)", [other.info.backend_pid])
            other.execute("SELECT 1")

    with pytest.raises(UnavailableError):
        die()
    assert not pool.maintain(ahead=ONE_HOUR).is_busy


def test_a_reader_that_holds_default_delays_only_the_partitions(
    pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM trace_spans_default")
        report = pool.maintain(ahead=20 * ONE_DAY, widths={"logs": PartitionWidth.DAY})
    assert len(report.partitions_left) == 21
    assert caplog.text.count("could not make the partitions") == 1, "each batch waited in vain"
    assert {name.rpartition("_p")[0] for name in report.partitions_left} == {"trace_spans"}
    assert "21 partitions of trace_spans could not be made" in report.problems[0]
    assert report.text_indexes_built == ("logs_default",)
    assert pool.maintain(ahead=20 * ONE_DAY, widths={"logs": PartitionWidth.DAY}).is_complete


def test_a_role_that_owns_no_table_is_told_so(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        role = f"reader_{uuid.uuid4().hex[:8]}"
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            owner.execute(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}".encode())
            with StoragePool.from_url(database_url, username=role, min_connections=1, max_connections=2) as theirs:
                report = theirs.maintain(ahead=ONE_HOUR)
        finally:
            owner.execute(f"DROP OWNED BY {role}".encode())
            owner.execute(f"DROP ROLE {role}".encode())
    assert report.partitions_made == ()
    # Of seven tables, the upkeep of usage, and the text index.
    assert len(report.problems) == 9
    assert sum("upkeep of usage" in problem for problem in report.problems) == 1
    assert "must be owner of" in report.problems[-1]


@pytest.mark.every_server
def test_writers_go_on_through_maintenance(pool: StoragePool, database_url: str) -> None:
    done = threading.Event()
    sent = [0, 0]

    def write(place: int) -> None:
        number = 0
        with TraceWriter(pool, WriterConfig(batch_size=60)) as writer:
            while not done.is_set():
                spans = make_spans(traces=5, spans=12, seed=place * 1_000 + number, start=now() - number % 5 * ONE_DAY)
                writer.write_spans(spans)
                writer.flush()
                sent[place] += len(spans)
                number += 1

    with threads() as start:
        start(write, 0)
        start(write, 1)
        try:
            for days in (1, 2, 3):
                pool.maintain(ahead=days * ONE_DAY)
        finally:
            done.set()
    assert count(database_url, "trace_spans") == sum(sent)
    assert_summaries_exact(database_url)
    assert pool.maintain(ahead=3 * ONE_DAY).is_complete
    assert count(database_url, "trace_spans_default") == 0


def test_progress_counts_the_steps(pool: StoragePool) -> None:
    seen: list[tuple[str, int, int]] = []
    report = pool.maintain(ahead=ONE_DAY, on_progress=lambda *step: seen.append(step))
    partitions = [(done, total) for what, done, total in seen if what == "partitions"]
    assert partitions[0][0] == 0
    assert partitions[-1] == (len(report.partitions_made),) * 2
    assert partitions == sorted(partitions)
    assert seen[-1] == ("text indexes", 1, 1)


@pytest.mark.every_server
def test_the_partitions_that_a_database_can_make_by_itself_are_the_same(pool: StoragePool, database_url: str) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"\$cron\$\n(DO .*?)\n\$cron\$", guide, re.DOTALL)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(block.encode())
        connection.execute(block.encode())
    report = pool.maintain()
    assert [name for name in report.partitions_made if name.startswith("logs_p")] == []
    partitions = PartitionManager(pool).list(LOGS)
    assert len(partitions) == 7 * 24 + 2
    assert all(
        partition.is_default or partition.name == f"logs_p{partition.lower:%Y%m%d%H}" for partition in partitions
    )
