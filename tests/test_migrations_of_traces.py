"""Revision 0005 on a store in use: its index is built beside writers, goes, and is built again where that broke off."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from observatory_storage import migrations
from observatory_storage.config import StorageConfig
from observatory_storage.errors import UnavailableError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from tests.test_migrations import alembic, execute, query
from tests.threads import threads

INDEX = "traces_project_name_start_time_idx"
VALID = f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{INDEX}')"
TRACE = "INSERT INTO traces (id, name, start_time) VALUES (gen_random_uuid(), %s, now())"
# Too long for an entry of an index, and not to be compressed.
LONG = "".join(random.Random(5).choices([chr(code) for code in range(0x10400, 0x10450)], k=9_000))


def release_four(url: str) -> StorageConfig:
    """A database of revision 0004 with traces, one of them without a name."""
    config = StorageConfig.from_url(url)
    migrations.upgrade(config, "0004")
    with psycopg.connect(url) as connection:
        for name in ["chat", "Chat", None, "", LONG, *(f"name {number % 30}" for number in range(500))]:
            connection.execute(TRACE, [name])
    return config


def found(config: StorageConfig, text: str) -> int:
    with StoragePool(config) as pool:
        return len(TraceRepository(pool).search_traces(text, limit=1000))


@pytest.mark.every_server
def test_a_store_with_traces_goes_up_and_down(empty_database_url: str) -> None:
    url = empty_database_url
    config = release_four(url)
    before = query(url, "SELECT relfilenode FROM pg_class WHERE relname = 'traces'")
    assert migrations.upgrade(config).is_current
    assert query(url, VALID) == [(True,)]
    assert query(url, "SELECT relfilenode FROM pg_class WHERE relname = 'traces'") == before
    assert (found(config, "CHAT"), found(config, LONG[-5:]), found(config, "name 7")) == (2, 1, 17)

    done = alembic(url, "downgrade", "0004")
    assert done.returncode == 0, done.stderr
    assert query(url, VALID) == []
    assert query(url, "SELECT count(*) FROM traces") == [(505,)]
    execute(url, "INSERT INTO traces (id, name) VALUES (gen_random_uuid(), 'chat of an older release')")

    assert migrations.upgrade(config).is_current
    assert found(config, "chat") == 3
    done = alembic(url, "check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.every_server
def test_a_build_that_waits_in_vain_is_an_error_and_the_next_call_builds_it(empty_database_url: str) -> None:
    url = empty_database_url
    config = release_four(url)
    with psycopg.connect(url, application_name="nightly report") as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        with pytest.raises(UnavailableError, match=r"1 times no lock.*nightly report"):
            migrations.upgrade(config, lock_timeout_seconds=0.05, lock_attempts=1)
        assert query(url, VALID) == [(False,)]
    # Meanwhile the old release writes and reads on.
    execute(url, "INSERT INTO traces (id, name) VALUES (gen_random_uuid(), 'chat meanwhile')")
    assert migrations.upgrade(config).is_current
    assert query(url, VALID) == [(True,)]
    assert found(config, "chat") == 3


@pytest.mark.every_server
def test_writers_go_on_while_it_is_built(empty_database_url: str) -> None:
    url = empty_database_url
    config = release_four(url)
    done = threading.Event()
    written = [0, 0]

    def write(place: int) -> None:
        with psycopg.connect(url) as connection:
            while not done.is_set():
                connection.execute(TRACE, [f"writer {place}"])
                connection.execute("UPDATE traces SET name = 'Chat', start_time = now() WHERE name = 'chat'")
                connection.commit()
                written[place] += 1

    with threads() as start:
        start(write, 0)
        start(write, 1)
        try:
            assert migrations.upgrade(config).is_current
        finally:
            done.set()
    assert query(url, VALID) == [(True,)]
    assert query(url, "SELECT count(*) FROM traces") == [(505 + sum(written),)]
    with psycopg.connect(url) as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        by_index = "SELECT count(*) FROM traces WHERE project = 'default' AND left(name, 255) COLLATE \"C\" = 'Chat'"
        assert connection.execute(by_index.encode()).fetchone() == (2,)
