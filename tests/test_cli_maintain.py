"""`maintain`: what is printed where, and the exit statuses."""

from __future__ import annotations

import datetime as dt
import os
import select
import subprocess
import uuid

import psycopg
import pytest

from observatory_storage.lifecycle import PartitionManager
from observatory_storage.lifecycle.session import maintenance_session
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.models import LogRecord
from observatory_storage.models.base import table_of
from observatory_storage.models.message import MESSAGE_TABLES
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests.command_line import environment, invoke, program, run
from tests.conversations import conversation


def test_a_new_store_and_nothing_more_to_say_afterwards(database_url: str, pool: StoragePool) -> None:
    done = invoke("maintain", "--database-url", database_url)
    assert (done.status, done.stderr) == (0, "")
    # Seven days of logs by the hour, of three tables by the day, each with the current one.
    *made, indexed = done.stdout.splitlines()
    assert sorted(line.split(" made: ")[0] for line in made) == [
        "169 partitions of logs",
        "8 partitions of message_packs",
        "8 partitions of message_uses",
        "8 partitions of messages",
        "8 partitions of metric_data_points",
        "8 partitions of trace_events",
        "8 partitions of trace_spans",
    ]
    assert indexed == "text index built on 1 partition: logs_default"
    hour = dt.datetime.now(dt.UTC) + dt.timedelta(days=7, hours=1)
    PartitionManager(pool).ensure(table_of(LogRecord), [hour])
    quiet = run("maintain", "--database-url", database_url)
    assert (quiet.status, quiet.stdout, quiet.stderr) == (0, "", "")


def test_json_is_one_object(database_url: str) -> None:
    dry = invoke("maintain", "--dry-run", "--json", "--database-url", database_url)
    assert (dry.status, dry.stderr) == (0, "")
    assert dry.json["is_dry_run"] is True
    assert dry.json["text_indexes_left"] == ["logs_default"]
    assert dry.json["partitions_made"] == []
    done = invoke("maintain", "--json", "--database-url", database_url)
    assert done.status == 0
    assert done.json["is_complete"] is True
    assert set(dry.json["partitions_left"]) <= set(done.json["partitions_made"])


def test_a_dry_run_says_what_is_due(database_url: str) -> None:
    done = invoke("maintain", "--dry-run", "--database-url", database_url)
    assert done.status == 0
    assert "8 partitions of trace_spans to make: trace_spans_p" in done.stdout
    assert "text index to build on 1 partition: logs_default" in done.stdout


def test_another_maintainer_is_no_error(database_url: str, pool: StoragePool) -> None:
    with maintenance_session(pool.config, lock_timeout_seconds=1) as other:
        assert other is not None
        done = invoke("maintain", "--database-url", database_url)
        assert (done.status, done.stdout, done.stderr) == (0, "", "")
        done = invoke("maintain", "--json", "--wait", "0.2", "--database-url", database_url)
        assert (done.status, done.json["is_busy"]) == (0, True)


def test_what_could_not_be_done_is_said_and_fails(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observatory_storage.lifecycle.maintenance._MOVE_LIMIT", 0)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO logs (timestamp, route_id, id) VALUES (now() - interval '1 day', %s, %s)",
            [uuid.uuid4(), uuid.uuid4()],
        )
    done = invoke("maintain", "--database-url", database_url)
    assert done.status == 1
    assert "more than 0 rows of logs_p" in done.sentence
    assert "169 partitions of logs made: logs_p" in done.stdout


def test_a_store_without_tables_is_told_to_migrate(empty_database_url: str) -> None:
    done = invoke("maintain", "--database-url", empty_database_url)
    assert (done.status, done.stdout) == (1, "")
    assert "observatory-storage migrate" in done.sentence


def test_a_negative_wait_is_wrong_usage(database_url: str) -> None:
    assert invoke("maintain", "--wait", "-1", "--database-url", database_url).status == 2


def test_a_terminal_sees_how_far_it_is(database_url: str) -> None:
    reader, terminal = os.openpty()
    done = subprocess.run(
        program("maintain", "--database-url", database_url),
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=environment(TERM="xterm", COLUMNS="100"),
        timeout=120,
    )
    shown = b""
    while select.select([reader], [], [], 0)[0]:
        shown += os.read(reader, 65_536)
    os.close(terminal)
    os.close(reader)
    assert done.returncode == 0
    assert b"partitions" in shown
    assert b"217/217" in shown
    assert b"text indexes" in shown
    assert b"217/217" not in done.stdout


def test_what_is_expired_goes_and_is_said(database_url: str, pool: StoragePool) -> None:
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=5)
    PartitionManager(pool).ensure(table_of(LogRecord), [old])
    with psycopg.connect(database_url) as connection:
        for project, time in (("default", old), ("default", old - dt.timedelta(days=900)), ("audit", old)):
            connection.execute(
                "INSERT INTO logs (timestamp, route_id, id, project) VALUES (%s, %s, %s, %s)",
                [time, uuid.uuid4(), uuid.uuid4(), project],
            )
    given = {"DATABASE_URL": database_url, "OBSERVATORY_RETENTION": "logs=3d, logs:audit=forever"}
    dry = invoke("maintain", "--dry-run", "--json", environment=given)
    assert dry.json["retention"]["rows_left"] == {"logs": 2}
    assert "2 rows of logs to go, expired" in invoke("maintain", "--dry-run", environment=given).stdout
    assert "2 rows of logs gone, expired" in invoke("maintain", environment=given).stdout
    given["OBSERVATORY_RETENTION"] = "logs=3d"
    dry = invoke("maintain", "--dry-run", "--json", environment=given)
    name = f"logs_p{old:%Y%m%d%H}"
    assert (dry.status, dry.json["retention"]["partitions_left"]) == (0, [name])
    assert dry.json["retention"]["bytes_left"] > 0
    done = invoke("maintain", environment=given).stdout.splitlines()
    assert f"1 partition of logs gone, expired: {name}" in done
    assert f"{dry.json['retention']['bytes_left']:,} bytes of expired partitions freed" in done


def test_expired_usage_goes_and_is_said(database_url: str, pool: StoragePool) -> None:
    with TraceWriter(pool) as writer:
        writer.write_spans([{**row, "counts_usage": True, "input_tokens": 5} for row in conversation(1)])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE usage_rollups SET hour = hour - interval '800 days'")
        rows = connection.execute("SELECT count(*) FROM usage_rollups").fetchone()
    assert rows is not None
    said = f"{rows[0]} row{'s' if rows[0] > 1 else ''} of usage_rollups"
    given = {"DATABASE_URL": database_url, "OBSERVATORY_RETENTION": "traces=30d, usage=730d"}
    dry = invoke("maintain", "--dry-run", "--json", environment=given)
    assert dry.json["retention"]["rows_left"] == {"usage_rollups": rows[0]}
    assert f"{said} to go, expired" in invoke("maintain", "--dry-run", environment=given).stdout
    assert "of usage_rollups gone, expired" in invoke("maintain", environment=given).stdout
    assert invoke("maintain", "--json", environment=given).json["retention"]["rows_deleted"] == {}


def test_a_wrong_policy_is_one_sentence(database_url: str) -> None:
    done = invoke("maintain", environment={"DATABASE_URL": database_url, "OBSERVATORY_RETENTION": "logs=3 days"})
    assert done.status != 0
    assert "OBSERVATORY_RETENTION is 'logs=3 days'; it may hold policies as in traces=30d" in done.stderr


def test_usage_that_waits_is_folded_and_said(database_url: str, pool: StoragePool) -> None:
    rows = conversation(1) + conversation(2)
    for half in (rows[:5], rows[5:]):
        with TraceWriter(pool) as writer:
            writer.write_spans([{**row, "counts_usage": True, "input_tokens": 5} for row in half])
    dry = invoke("maintain", "--dry-run", "--database-url", database_url)
    assert "2 parts of usage to fold" in dry.stdout.splitlines()
    assert "to add to usage" not in dry.stdout
    done = invoke("maintain", "--database-url", database_url)
    assert "2 parts of usage folded" in done.stdout.splitlines()
    assert "usage" not in invoke("maintain", "--database-url", database_url).stdout


def test_calls_that_are_in_no_sum_are_added_and_said(
    database_url: str, pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TraceWriter(pool) as writer:
        writer.write_spans([{**row, "counts_usage": True, "input_tokens": 5} for row in conversation()])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE trace_spans SET repeats_usage = NULL")
        connection.execute("TRUNCATE usage_rollups")
    dry = invoke("maintain", "--dry-run", "--json", "--database-url", database_url)
    assert (dry.json["usage"]["spans_left"], dry.json["is_complete"]) == (5, False)
    assert "5 spans to add to usage" in invoke("maintain", "--dry-run", "--database-url", database_url).stdout
    with monkeypatch.context() as hurry:
        hurry.setattr(UsageUpkeep.__init__, "__kwdefaults__", {"seconds": 0.0, "on_progress": None})
        late = invoke("maintain", "--database-url", database_url)
    assert "5 spans left for the next run to add to usage" in late.stdout.splitlines()
    assert late.status == 0
    done = invoke("maintain", "--database-url", database_url)
    assert {"5 spans added to usage", "1 part of usage folded"} <= set(done.stdout.splitlines())


def test_messages_that_expired_with_their_spans_are_said(database_url: str, pool: StoragePool) -> None:
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=5)
    with TraceWriter(pool) as writer:
        writer.write_spans(conversation(start=old))
    given = {"DATABASE_URL": database_url, "OBSERVATORY_RETENTION": "traces=3d"}
    expected = {f"{table}_p{old:%Y%m%d}" for table in ("trace_spans", *MESSAGE_TABLES)}
    dry = invoke("maintain", "--dry-run", environment=given).stdout.splitlines()
    assert {f"1 partition of {name[:-10]} to go, expired: {name}" for name in expected} <= set(dry)
    done = invoke("maintain", environment=given).stdout.splitlines()
    assert {f"1 partition of {name[:-10]} gone, expired: {name}" for name in expected} <= set(done)
    assert "expired" not in invoke("maintain", environment=given).stdout
