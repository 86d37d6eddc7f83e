"""No committed span refers to a message that is not there, whoever is killed, forks, drops or writes at once."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from observatory_storage.errors import WriteError
from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import Base
from observatory_storage.models.message import MESSAGE_TABLES
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests import retaining
from tests.conversations import (
    NOON,
    contents,
    conversation,
    different,
    read_back,
    seen_by_sql,
    stored_messages,
)
from tests.forked import Program
from tests.telemetry import assert_summaries_exact, count
from tests.test_pool_fork import in_child

ROOT = Path(__file__).parent.parent

WRITE = """
import datetime, json, random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.conversations import conversation

url, method, seed, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), datetime.datetime.fromisoformat(sys.argv[4])
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with TraceWriter(pool, WriterConfig(method=method, batch_size=50)) as writer:
        for round in range(3):
            rows = [row for number in range(30) for row in conversation(number, start=start)]
            if seed % 2:
                dice.shuffle(rows)
            while rows:
                size = dice.randrange(1, 40)
                writer.write_spans(rows[:size])
                del rows[:size]
                writer.flush()
                print("committed", flush=True)
        stats = writer.write_stats()
print(json.dumps([stats.spans_written, stats.rows_rejected, stats.failures]))
"""


def start_writer(url: str, method: str, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITE, url, method, str(seed), NOON.isoformat()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.every_server
def test_processes_with_the_same_conversations_store_them_once(pool: StoragePool, database_url: str) -> None:
    writers = [
        Program(WRITE, database_url, method, str(seed), NOON.isoformat())
        for seed, method in enumerate(["copy", "insert"] * 2)
    ]
    counts = [json.loads(writer.output().splitlines()[-1]) for writer in writers]
    rows = [row for number in range(30) for row in conversation(number)]
    assert sum(written for written, *_ in counts) == len(rows)
    assert [counted[1:] for counted in counts] == [[0, 0]] * 4
    assert seen_by_sql(database_url) == contents(rows)
    assert len(stored_messages(database_url)) == different(rows)
    assert_summaries_exact(database_url)


def test_a_killed_writer_leaves_whole_spans(pool: StoragePool, database_url: str) -> None:
    rows = [row for number in range(30) for row in conversation(number)]
    for seed in range(3):
        writer = start_writer(database_url, "copy", seed)
        assert writer.stdout is not None
        for _ in range(seed + 1):
            writer.stdout.readline()
        time.sleep(0.005 * seed)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate(timeout=30)
        expected = contents(rows)
        seen = seen_by_sql(database_url)
        assert seen
        assert seen == {key: expected[key] for key in seen}
    with TraceWriter(pool) as again:
        again.write_spans(rows)
    assert seen_by_sql(database_url) == contents(rows)


@pytest.mark.parametrize("method", [WriteMethod.COPY, WriteMethod.INSERT])
def test_what_was_rolled_back_is_not_taken_for_stored(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    rows = conversation()
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '53100'; END$$"
        )
        owner.execute("CREATE TRIGGER refuse BEFORE INSERT ON traces FOR EACH ROW EXECUTE FUNCTION refuse()")
        writer = TraceWriter(pool, WriterConfig(method=method))
        writer.write_spans(rows)
        with pytest.raises(WriteError):
            writer.flush()
        assert count(database_url, "messages") == 0
        owner.execute("DROP FUNCTION refuse CASCADE")
        writer.close()
    assert read_back(pool, rows) == contents(rows)
    assert len(stored_messages(database_url)) == different(rows)


@pytest.mark.every_server
@pytest.mark.parametrize("tables", [MESSAGE_TABLES, ("message_packs",), ("messages",)])
def test_a_dropped_partition_is_not_believed_to_hold_anything(
    pool: StoragePool, database_url: str, tables: tuple[str, ...]
) -> None:
    rows = conversation(calls=8)
    with TraceWriter(pool) as writer:
        writer.write_spans(rows[:4])
        writer.flush()
        manager = PartitionManager(pool)
        for table in ("trace_spans", *tables):
            assert manager.drop(Base.metadata.tables[table], f"{table}_p{NOON:%Y%m%d}")
        writer.write_spans(rows[4:])
        writer.flush()
    expected = contents(rows[4:])
    assert read_back(pool, rows) == expected


def test_messages_that_somebody_deleted_are_stored_again(pool: StoragePool, database_url: str) -> None:
    rows = conversation(calls=6)
    with TraceWriter(pool) as writer:
        writer.write_spans(rows[:3])
        writer.flush()
        with psycopg.connect(database_url) as connection:
            connection.execute("DELETE FROM message_packs")
        writer.write_spans(rows[3:])
    found = read_back(pool, rows)
    expected = contents(rows[3:])
    assert {key: found[key] for key in expected} == expected


def test_a_forked_child_and_its_parent_go_on(pool: StoragePool) -> None:
    rows = conversation(calls=9)
    with TraceWriter(pool) as writer:
        writer.write_spans(rows[:3])
        writer.flush()

        def write_more() -> str:
            writer.write_spans(rows[3:6])
            writer.flush()
            return "done"

        assert in_child(write_more) == "done"
        writer.write_spans(rows[6:])
        writer.flush()
    assert read_back(pool, rows) == contents(rows)


def test_what_a_deletion_leaves_hinders_nobody(pool: StoragePool, database_url: str) -> None:
    rows = conversation()
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)
        writer.flush()
        TraceRepository(pool).delete_before(NOON + dt.timedelta(days=1))
        assert count(database_url, "trace_spans") == 0
        writer.write_spans(rows)
    assert read_back(pool, rows) == contents(rows)
    assert len(stored_messages(database_url)) == different(rows)


def test_messages_go_with_the_partition_of_their_spans(pool: StoragePool, database_url: str) -> None:
    day = retaining.DAY
    old, new = conversation(1, start=retaining.NOW - 9 * day), conversation(2, start=retaining.NOW)
    kept = conversation(3, start=retaining.NOW - 5 * day, project="kept")
    for rows in (old, new, kept):
        with TraceWriter(pool) as writer:
            writer.write_spans(rows)
    policies = [retaining.policy("traces", 3 * day), retaining.policy("traces", 8 * day, "kept")]
    preview = retaining.retain(pool, *policies, dry_run=True)
    report = retaining.retain(pool, *policies)
    gone = {f"{table}_p{retaining.NOW - 9 * day:%Y%m%d}" for table in ("trace_spans", *MESSAGE_TABLES)}
    assert gone <= set(report.partitions_dropped)
    assert gone <= set(preview.partitions_left)
    assert not any(f"{retaining.NOW - 5 * day:%Y%m%d}" in name for name in report.partitions_dropped)
    assert seen_by_sql(database_url) == contents([*new, *kept])
    assert len(stored_messages(database_url)) == different(new) + different(kept)


def test_what_comes_while_messages_go_is_found(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In vain, however often it is tried.
    monkeypatch.setattr("observatory_storage.lifecycle.partitions._REMOVAL_ATTEMPTS", 2)
    start = retaining.NOW - 9 * retaining.DAY
    rows = conversation(1, start=start, calls=8)
    packs = f"message_packs_p{start:%Y%m%d}"
    with TraceWriter(pool) as writer:
        writer.write_spans(rows[:4])
        writer.flush()
        with psycopg.connect(database_url) as reader:
            reader.execute(f"SELECT FROM {packs} LIMIT 1".encode())
            report = retaining.retain(pool, retaining.policy("traces", 3 * retaining.DAY))
        assert packs not in report.partitions_dropped
        assert f"messages_p{start:%Y%m%d}" in report.partitions_dropped
        writer.write_spans(rows[4:])
    assert read_back(pool, rows) == contents(rows[4:])
    for row in rows[4:]:
        text = row["output"][0]["parts"][0]["content"]
        (match,) = TraceRepository(pool).search_content(f'"{text}"')
        assert match.span_id == row["span_id"].hex()
    # The first question was remembered with its pack.
    asked = rows[0]["input"][1]["parts"][0]["content"]
    assert [match.span_id for match in TraceRepository(pool).search_content(f'"{asked}"')] == [rows[4]["span_id"].hex()]


def test_messages_without_a_partition_go_from_default(pool: StoragePool, database_url: str) -> None:
    ancient = conversation(1, start=retaining.NOW - dt.timedelta(days=400))
    with TraceWriter(pool) as writer:
        writer.write_spans(ancient)
    assert read_back(pool, ancient) == contents(ancient)
    assert count(database_url, "message_packs_default") > 0
    retaining.retain(pool, retaining.policy("traces", dt.timedelta(days=30)))
    assert [count(database_url, table) for table in ("trace_spans", *MESSAGE_TABLES)] == [0, 0, 0, 0]


@pytest.mark.parametrize("width", ["hour", "week", "month"])
def test_a_period_is_the_partition_of_the_spans(pool: StoragePool, database_url: str, width: str) -> None:
    overrides = {"partitions": {"trace_spans": width}}
    monday = NOON - dt.timedelta(days=NOON.weekday())
    with StoragePool.from_url(database_url, min_connections=1, max_connections=2, **overrides) as wide:
        rows = conversation(1, start=NOON) + conversation(2, start=NOON - dt.timedelta(hours=2))
        with TraceWriter(wide) as writer:
            writer.write_spans(rows)
        assert read_back(wide, rows) == contents(rows)
        manager = PartitionManager(wide)
        lowers = {
            table: {one.lower for one in manager.list(Base.metadata.tables[table]) if not one.is_default}
            for table in ("trace_spans", *MESSAGE_TABLES)
        }
    expected = {
        "hour": {NOON, NOON - dt.timedelta(hours=2)},
        "week": {monday.replace(hour=0)},
        "month": {NOON.replace(day=1, hour=0)},
    }
    assert all(found == expected[width] for found in lowers.values())
    # A writer with another width finds the partitions that are there, and their messages.
    more = conversation(3, start=NOON + dt.timedelta(minutes=1))
    with TraceWriter(pool) as writer:
        writer.write_spans(more)
    assert read_back(pool, [*rows, *more]) == contents([*rows, *more])
    with psycopg.connect(database_url) as connection:
        periods = connection.execute("SELECT DISTINCT period FROM message_packs").fetchall()
    assert {period for (period,) in periods} == expected[width]
