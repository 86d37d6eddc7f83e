"""Retention under a statement_timeout, and killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import psycopg

from observatory_storage.lifecycle import FOREVER, PartitionManager
from observatory_storage.pool import StoragePool
from tests.conftest import ROOT
from tests.logs import log, store_logs
from tests.retaining import (
    DAY,
    HOUR,
    LOGS,
    NOW,
    orphans,
    policy,
    projects,
    retain,
    span,
    write_spans,
)
from tests.telemetry import assert_summaries_exact, count


def test_a_deletion_that_is_too_slow_is_halved(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [span(NOW - 9 * DAY) for _ in range(8)])
    write_spans(pool, [span(NOW - 9 * DAY)], "kept")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.05); RETURN old; END $$"
        )
        connection.execute("CREATE TRIGGER slow BEFORE DELETE ON traces FOR EACH ROW EXECUTE FUNCTION slow()")
    with StoragePool.from_url(database_url, min_connections=1, max_connections=2) as hurried:
        with psycopg.connect(database_url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '200ms'".encode())
        policies = policy("traces", 3 * DAY), policy("traces", FOREVER, "kept")
        assert retain(hurried, *policies, batch_size=8).rows_deleted["traces"] == 8
    assert count(database_url, "traces") == 1


def test_blocks_that_are_too_slow_are_halved(pool: StoragePool, database_url: str) -> None:
    old = NOW - 9 * DAY
    PartitionManager(pool).ensure(LOGS, [old])
    dice = random.Random(3)
    store_logs(pool, [log(0, timestamp=old, body=dice.randbytes(700).hex()) for _ in range(40)])
    store_logs(pool, [log(0, timestamp=old, project="kept")])
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.02); RETURN old; END $$"
        )
        partition = f"logs_p{old:%Y%m%d%H}"
        connection.execute(
            f"CREATE TRIGGER slow BEFORE DELETE ON {partition} FOR EACH ROW EXECUTE FUNCTION slow()".encode()
        )
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET statement_timeout = '400ms'".encode())
    with StoragePool.from_url(database_url, min_connections=1, max_connections=2) as hurried:
        done = retain(hurried, policy("logs", 3 * DAY), policy("logs", FOREVER, "kept"))
    assert (done.rows_deleted, done.problems) == ({"logs": 40}, ())
    assert projects(database_url, "logs") == {"kept": 1}


def test_a_maintainer_that_is_killed_is_followed_by_the_next(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [span(NOW - days * DAY) for days in (1, 9) for _ in range(40)])
    write_spans(pool, [span(NOW - 9 * DAY)], "kept")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.05); RETURN old; END $$"
        )
        connection.execute("CREATE TRIGGER slow BEFORE DELETE ON traces FOR EACH ROW EXECUTE FUNCTION slow()")
        code = (
            "import sys\n"
            "from observatory_storage.lifecycle import *\n"
            "from observatory_storage.pool import StoragePool\n"
            "pool = StoragePool.from_url(sys.argv[1], retention='traces=3d, traces:kept=forever')\n"
            "Retention(pool, PartitionManager(pool), pool.config.retention, batch_size=4).run()"
        )
        process = subprocess.Popen([sys.executable, "-c", code, database_url], cwd=ROOT)
        try:
            deadline = time.monotonic() + 30
            while count(database_url, "traces") == 81 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        left = count(database_url, "traces")
        assert 41 < left < 81
        assert orphans(database_url) == 0
        assert_summaries_exact(database_url)
        connection.execute("DROP TRIGGER slow ON traces")
    report = pool.maintain(ahead=HOUR, retention=[policy("traces", 3 * DAY), policy("traces", FOREVER, "kept")])
    # The server may notice only now that the killed client is gone.
    assert report.is_complete
    pool.maintain(ahead=HOUR, retention=[policy("traces", 3 * DAY), policy("traces", FOREVER, "kept")])
    assert projects(database_url, "traces") == {"default": 40, "kept": 1}
    assert (orphans(database_url), count(database_url, "trace_spans")) == (0, 41)
    assert_summaries_exact(database_url)
