"""Text indexes of closed partitions: built beside writers, used by searches, whatever a body holds."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import func, literal_column, select, text

from observatory_storage.errors import UnavailableError
from observatory_storage.lifecycle import PartitionManager, TextIndexer, TextIndexes
from observatory_storage.lifecycle import sql as statements
from observatory_storage.lifecycle.session import maintenance_session
from observatory_storage.models import LogRecord, MessagePack
from observatory_storage.models.base import table_of
from observatory_storage.models.log import SEARCH_VECTOR_SQL, search_vector
from observatory_storage.models.message import PACK_VECTOR_SQL
from observatory_storage.pool import StoragePool
from tests.threads import threads

LOGS = table_of(LogRecord)
ONE_HOUR = dt.timedelta(hours=1)
STARTED = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
# Closed, also where the tests run within the first minutes of an hour; and open, also where they run for hours.
CLOSED = [STARTED - number * ONE_HOUR for number in (2, 3, 4)]
OPEN = STARTED + 24 * ONE_HOUR

INDEXES = """
    SELECT i.indrelid::regclass::text, i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relname ~ '_text_idx' ORDER BY 1
"""
INSERT = "INSERT INTO logs (timestamp, route_id, id, body) VALUES (%s, %s, %s, %s)"


def name(hour: dt.datetime) -> str:
    return f"logs_p{hour:%Y%m%d%H}"


def store(url: str, hour: dt.datetime, *bodies: str) -> None:
    with psycopg.connect(url) as connection:
        for body in bodies:
            connection.execute(INSERT, [hour, uuid.uuid4(), uuid.uuid4(), body])


def indexes(url: str) -> dict[str, bool]:
    """Whether the text index of each partition that has one is valid."""
    with psycopg.connect(url) as connection:
        return {str(table): bool(valid) for table, valid in connection.execute(INDEXES).fetchall()}


def found(url: str, words: str) -> int:
    with psycopg.connect(url) as connection:
        query = f"SELECT count(*) FROM logs WHERE {SEARCH_VECTOR_SQL} @@ websearch_to_tsquery('simple', %s)"
        row = connection.execute(query.encode(), [words]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def partitions(pool: StoragePool) -> None:
    """Three closed partitions and one that is open."""
    assert PartitionManager(pool).ensure(LOGS, [*CLOSED, OPEN]) == []


@pytest.mark.every_server
@pytest.mark.usefixtures("partitions")
def test_closed_partitions_get_their_index_once_and_searches_use_it(pool: StoragePool, database_url: str) -> None:
    for hour in (*CLOSED, OPEN):
        store(database_url, hour, "the model refused", "rate limit")
    built = TextIndexer(pool).build()
    assert built.built == (*map(name, CLOSED), "logs_default")
    assert (built.left, built.problem) == ((), None)
    assert indexes(database_url) == dict.fromkeys(built.built, True)
    assert TextIndexer(pool).build().built == ()
    assert found(database_url, '"rate limit"') == 4
    with psycopg.connect(database_url) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            f"EXPLAIN SELECT id FROM logs WHERE {SEARCH_VECTOR_SQL} @@ websearch_to_tsquery('simple', 'limit')".encode()
        ).fetchall()
    assert f"{name(CLOSED[0])}_text_idx" in str(plan)


@pytest.mark.usefixtures("partitions")
def test_the_condition_of_a_repository_finds_the_index(pool: StoragePool) -> None:
    TextIndexer(pool).build()
    query = func.websearch_to_tsquery(literal_column("'simple'"), literal_column("'limit'"))
    statement = select(LogRecord.id).where(search_vector().op("@@")(query))
    with pool.session() as session:
        session.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan"))
        compiled = statement.compile(session.connection())
        plan = session.execute(text(f"EXPLAIN {compiled}")).all()
    assert f"{name(CLOSED[0])}_text_idx" in str(plan)


@pytest.mark.usefixtures("partitions")
def test_a_partition_closes_after_the_grace_and_the_newest_come_first(pool: StoragePool) -> None:
    # Half an hour before the first one's end.
    grace = dt.datetime.now(dt.UTC) - CLOSED[0] - ONE_HOUR / 2
    built = TextIndexer(pool, grace=grace).build(at_most=1)
    assert (built.built, built.left) == ((name(CLOSED[1]),), (name(CLOSED[2]), "logs_default"))
    assert TextIndexer(pool, grace=grace).build().built == (name(CLOSED[2]), "logs_default")
    assert TextIndexer(pool).build().built == (name(CLOSED[0]),)


@pytest.mark.usefixtures("partitions")
def test_late_records_and_those_in_default_are_found(pool: StoragePool, database_url: str) -> None:
    TextIndexer(pool).build()
    store(database_url, CLOSED[1], "better late than never")
    store(database_url, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), "never without a clock")
    assert found(database_url, "never") == 2


def words(letters: str, length: int, joint: str) -> Iterator[str]:
    """Different pairs of different words."""
    made = map("".join, itertools.product(letters, repeat=length))
    return (f"{first}{joint}{next(made)}" for first in made)


LATIN, CYRILLIC = "abcdefghijklmnopqrstuvwxyz", "абвгдежзиклмнопрстуфхцчшщэюя"
FOUR_BYTES = "".join(chr(0x20000 + number) for number in range(60))
BODIES = {
    "one word of 2 MB": "x" * 2_000_000,
    "2 MB of different words": " ".join(itertools.islice(words(LATIN, 4, " "), 200_000)),
    "different Cyrillic words with hyphens": " ".join(itertools.islice(words(CYRILLIC, 4, "-"), 100_000)),
    "different words of letters of 4 bytes": " ".join(itertools.islice(words(FOUR_BYTES, 3, "-"), 30_000)),
    "longer words of letters of 4 bytes": " ".join(itertools.islice(words(FOUR_BYTES, 12, "-"), 6_000)),
}


@pytest.mark.every_server
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_no_body_breaks_the_build_or_a_search(pool: StoragePool, database_url: str, body: str) -> None:
    PartitionManager(pool).ensure(LOGS, [CLOSED[0]])
    store(database_url, CLOSED[0], body, "needle")
    assert found(database_url, "needle") == 1
    assert TextIndexer(pool).build().built == (name(CLOSED[0]), "logs_default")
    store(database_url, CLOSED[0], body)
    assert found(database_url, "needle") == 1


@pytest.mark.every_server
@pytest.mark.usefixtures("partitions")
def test_writers_go_on_while_indexes_are_built(pool: StoragePool, database_url: str) -> None:
    store(database_url, CLOSED[0], *(f"word{number} of the past" for number in range(2_000)))
    ready, done = threading.Event(), threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with psycopg.connect(database_url) as connection:
            while not done.is_set():
                for hour in (*CLOSED, OPEN):
                    connection.execute(INSERT, [hour, uuid.uuid4(), uuid.uuid4(), "meanwhile"])
                connection.commit()
                written += len(CLOSED) + 1
                ready.set()

    with threads() as start:
        start(write)
        try:
            assert ready.wait(10)
            assert len(TextIndexer(pool).build().built) == 4
        finally:
            done.set()
    assert found(database_url, "meanwhile") == written
    assert found(database_url, "word77") == 1


@pytest.mark.every_server
@pytest.mark.usefixtures("partitions")
def test_what_an_interrupted_build_left_is_built_anew(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=False) as reader:
        # Holds a snapshot, which a build waits for.
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        stopped = TextIndexer(pool, lock_timeout_seconds=0.1).build()
        assert (stopped.built, stopped.left) == ((), (*map(name, CLOSED), "logs_default"))
        assert stopped.problem is not None
        assert "lock timeout" in stopped.problem
        assert indexes(database_url) == {name(CLOSED[0]): False}
    assert TextIndexer(pool).build().left == ()
    assert indexes(database_url) == dict.fromkeys([*map(name, CLOSED), "logs_default"], True)


@pytest.mark.usefixtures("partitions")
def test_one_build_at_a_time(pool: StoragePool) -> None:
    with maintenance_session(pool.config, lock_timeout_seconds=1) as other:
        assert other is not None
        with pytest.raises(UnavailableError, match="another session maintains"):
            TextIndexer(pool).build()
    assert len(TextIndexer(pool).build().built) == 4


@pytest.mark.usefixtures("partitions")
def test_a_partition_that_is_dropped_when_its_turn_comes_needs_no_index(pool: StoragePool, database_url: str) -> None:
    def drop(done: int, total: int) -> None:
        if done == 0:
            with psycopg.connect(database_url) as connection:
                connection.execute(f"DROP TABLE {name(CLOSED[0])}".encode())

    built = TextIndexer(pool).build(on_progress=drop)
    assert built.built == (name(CLOSED[1]), name(CLOSED[2]), "logs_default")
    assert built.problem is None


@pytest.mark.usefixtures("partitions")
def test_what_closes_meanwhile_comes_before_the_backlog(pool: StoragePool) -> None:
    newer, older = CLOSED[0] + ONE_HOUR, CLOSED[0] - 24 * ONE_HOUR

    def make(done: int, total: int) -> None:
        if done == 0:
            PartitionManager(pool).ensure(LOGS, [newer, older])

    # No grace, because the newer one has just closed.
    built = TextIndexer(pool, grace=dt.timedelta()).build(on_progress=make).built
    assert built == (*map(name, [CLOSED[0], newer, CLOSED[1], CLOSED[2], older]), "logs_default")


def test_a_partition_with_a_long_name_has_an_index_of_its_own(pool: StoragePool, database_url: str) -> None:
    names = [f"logs_{'of_the_archive_' * 3}{number:010}" for number in range(2)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for place, long_name in enumerate(names):
            connection.execute(
                f"CREATE TABLE {long_name} PARTITION OF logs"
                f" FOR VALUES FROM ('202{place}-01-01 00:00+00') TO ('202{place + 1}-01-01 00:00+00')".encode()
            )
    assert TextIndexer(pool).build().built == (names[1], names[0], "logs_default")
    assert TextIndexer(pool).build().built == ()


@pytest.mark.usefixtures("partitions")
def test_a_closed_partition_is_summarised_for_those_who_follow(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        # Without the server's own vacuum meanwhile.
        connection.execute(f"ALTER TABLE {name(CLOSED[0])} SET (autovacuum_enabled = off)".encode())
        connection.execute(
            "INSERT INTO logs (timestamp, route_id, id, body)"
            " SELECT %s, gen_random_uuid(), gen_random_uuid(), repeat('x', 1000) FROM generate_series(1, 1000)",
            [CLOSED[0]],
        )
        TextIndexer(pool).build()
        summarised = connection.execute(
            "SELECT brin_summarize_new_values(%s::regclass)", [f"{name(CLOSED[0])}_transaction_id_idx"]
        ).fetchone()
    assert summarised == (0,)


def known_words(url: str, hour: dt.datetime) -> list[str] | None:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT most_common_elems::text::text[] FROM pg_stats WHERE tablename = %s", [f"{name(hour)}_text_idx"]
        ).fetchone()
    return None if row is None else list(row[0])


@pytest.mark.every_server
@pytest.mark.usefixtures("partitions")
def test_the_server_knows_the_words_of_a_partition_that_is_indexed(pool: StoragePool, database_url: str) -> None:
    store(database_url, CLOSED[0], *(["refund denied"] * 50))
    TextIndexer(pool).build()
    assert known_words(database_url, CLOSED[0]) == ["denied", "refund"]


@pytest.mark.every_server
@pytest.mark.usefixtures("partitions")
def test_words_that_are_not_known_are_learned_by_a_later_run(pool: StoragePool, database_url: str) -> None:
    store(database_url, CLOSED[0], *(["refund denied"] * 50))
    TextIndexer(pool).build()
    with psycopg.connect(database_url, autocommit=True) as connection:
        # As an older release leaves it, and one whose ANALYZE was kept from the table.
        connection.execute(f"DROP INDEX {name(CLOSED[0])}_text_idx".encode())
        made = f"{name(CLOSED[0])}_text_idx ON {name(CLOSED[0])} USING gin ({SEARCH_VECTOR_SQL})"
        connection.execute(f"CREATE INDEX {made}".encode())
    assert known_words(database_url, CLOSED[0]) is None
    with psycopg.connect(database_url) as other:
        other.execute(f"LOCK TABLE {name(CLOSED[0])} IN SHARE UPDATE EXCLUSIVE MODE".encode())
        assert TextIndexer(pool, lock_timeout_seconds=0.2).build() == TextIndexes((), ())
    assert known_words(database_url, CLOSED[0]) is None
    assert TextIndexer(pool).build() == TextIndexes((), ())
    assert known_words(database_url, CLOSED[0]) == ["denied", "refund"]


@pytest.mark.usefixtures("partitions")
def test_of_large_bodies_fewer_are_kept_in_memory_and_of_columns_as_many(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO logs (timestamp, route_id, id, body, service_name)"
            " SELECT %s, gen_random_uuid(), gen_random_uuid(), string_agg(md5(log || ' ' || word), ' '), 's' || log"
            " FROM generate_series(1, 400) AS log, generate_series(1, 250) AS word GROUP BY log",
            [CLOSED[0]],
        )
        connection.execute(f"VACUUM ANALYZE {name(CLOSED[0])}".encode())
        # 8 kB each: 32 MB are 4,000 of them, and 30,000 are usual.
        limited = connection.execute(statements.LIMIT_ANALYZED_ROWS, {"table": name(CLOSED[0])}).fetchone()
        target = connection.execute("SHOW default_statistics_target").fetchone()
        assert limited == (True,)
        assert target is not None
        assert 5 < int(target[0]) < 25
        small = connection.execute(statements.LIMIT_ANALYZED_ROWS, {"table": name(CLOSED[1])}).fetchone()
        assert small == (False,)
    TextIndexer(pool).build()
    with psycopg.connect(database_url) as connection:
        histogram = connection.execute(
            "SELECT array_length(histogram_bounds::text::text[], 1) FROM pg_stats"
            " WHERE tablename = %s AND attname = 'service_name'",
            [name(CLOSED[0])],
        ).fetchone()
        words = connection.execute("SELECT FROM pg_stats WHERE tablename = %s", [f"{name(CLOSED[0])}_text_idx"])
    assert histogram == (101,)
    assert words.rowcount == 1


def test_the_index_of_messages_is_built_in_little_memory(pool: StoragePool, database_url: str) -> None:
    day = STARTED.replace(hour=0) - dt.timedelta(days=2)
    PartitionManager(pool).ensure(table_of(MessagePack), [day])
    packs = f"message_packs_p{day:%Y%m%d}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        # Words of their own in each pack, as ids and numbers are.
        connection.execute(
            "INSERT INTO message_packs (id, period, messages)"
            " SELECT pack, %s, jsonb_build_array(string_agg(md5(pack || ' ' || word), ' '))"
            " FROM generate_series(1, 300) AS pack, generate_series(1, 150) AS word GROUP BY pack",
            [day],
        )
        connection.execute(f"CREATE INDEX whole ON {packs} USING gin (({PACK_VECTOR_SQL}))".encode())
        assert TextIndexer(pool).build().built == ("logs_default", packs)
        sizes = connection.execute(
            "SELECT pg_relation_size('whole'), pg_relation_size(%s::regclass)", [f"{packs}_text_idx"]
        ).fetchone()
    assert sizes is not None
    assert sizes[1] < sizes[0] * 0.85
