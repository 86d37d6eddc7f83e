"""Traces are found by text in their names: the same ones by whatever way, and without reading those without it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import TupleRow
from sqlalchemy.orm.exc import DetachedInstanceError

from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository
from observatory_storage.repositories import name_search as search
from observatory_storage.repositories import trace_statements as statements
from observatory_storage.writers import TraceWriter
from tests.conftest import Statements
from tests.prepared import compiled, prepare
from tests.trace_rows import Row, at, plans_of, store, trace, trace_id

pytestmark = pytest.mark.every_server

INDEX = "traces_project_name_start_time_idx"
# PostgreSQL keeps it as it is: no entry of an index could hold it.
NOISE = "".join(random.Random(5).choices([chr(code) for code in range(0x10400, 0x10450)], k=9_000))
NAMES: tuple[str | None, ...] = (
    "chat gpt-5",
    "Chat GPT-5",
    "POST /api/chat",
    "a_b",
    "axb",
    "100%",
    "100 percent",
    "back\\slash",
    "back\\\\slash",
    "Gespräch führen",
    "GESPRÄCH FÜHREN",
    "İstanbul",
    "対話",
    "é",
    "e\u0301",
    "Q",
    "",
    " ",
    None,
    "x" * 254 + "end",
    "x" * 255,
    "x" * 255 + " tail A",
    "x" * 255 + " TAIL b",
    NOISE + " tail",
)
LETTERS = "qäÄéiİ対_%\\'"
WORDS = (
    "chat",
    "CHAT",
    "t g",
    "a_b",
    "0%",
    "\\s",
    "\\\\",
    "führen",
    "FÜHREN",
    "e\u0301",
    "zq",
    "end",
    "%s",
    ":a",
    "zeppelin",
)
OF_LONG_NAMES = ("tail", "tail B", "xe", "x" * 254, "x" * 300, NOISE[250:260])
TEXTS = (*LETTERS, *WORDS, *OF_LONG_NAMES, "", " ", "  ")


def sample() -> list[Row]:
    """Several traces of each name, with and without a start, of two projects."""
    dice = random.Random(3)
    rows = []
    for number, name in enumerate(NAMES * 4):
        start = None if dice.random() < 0.2 else at(dice.randrange(40))
        rows.append(
            trace(
                number,
                name=name,
                project=dice.choice(("default", "other")),
                service_name=dice.choice(("api", "worker")),
                error_count=dice.choice((0, 1)),
                start_time=start,
            )
        )
    return rows


@pytest.fixture
def plain(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection that reads traces without any index."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET enable_indexscan = off")
        yield connection


def ids_by_sql(plain: psycopg.Connection[TupleRow], text: str, condition: str = "true") -> list[uuid.UUID]:
    """What PostgreSQL itself finds by reading all traces."""
    pattern = "%" + "".join(f"\\{letter}" if letter in "\\%_" else letter for letter in text) + "%"
    query = (
        "SELECT id FROM traces WHERE name ILIKE %(pattern)s AND "
        + condition
        + " ORDER BY start_time DESC NULLS LAST, id DESC"
    )
    return [row[0] for row in plain.execute(query.encode(), {"pattern": pattern})]


def follow(repository: TraceRepository, limit: int, **filters: Any) -> list[uuid.UUID]:
    """All pages of a list."""
    found: list[uuid.UUID] = []
    cursor: str | None = None
    while True:
        page = repository.list(TraceFilters(**filters, limit=limit, cursor=cursor))
        found += [row.id for row in page]
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


@pytest.fixture(params=["by names", "by names again and again", "too many names", "too many traces"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "too many names":
        monkeypatch.setattr(search, "MOST_NAMES", 3)
    elif request.param == "too many traces":
        monkeypatch.setattr(search, "MOST_TRACES", 100)
    return str(request.param)


def test_what_is_found_is_what_postgresql_finds(
    pool: StoragePool, database_url: str, plain: psycopg.Connection[TupleRow], way: str
) -> None:
    store(pool, sample())
    if way == "by names again and again":
        # As a session that has run long does: one plan for all parameters.
        with pool.session() as session:
            name = session.execute(sa.text("SELECT current_database()")).scalar_one()
            session.execute(sa.text(f'ALTER DATABASE "{name}" SET plan_cache_mode = force_generic_plan'))
            session.commit()
    conditions: dict[str, dict[str, Any]] = {
        "true": {},
        "project = 'other'": {"project": "other"},
        "project = 'absent'": {"project": "absent"},
        "service_name = 'api'": {"service_name": "api"},
        "error_count > 0": {"has_error": True},
        f"start_time >= '{at(10)}' AND start_time < '{at(30)}'": {
            "start_time_from": at(10),
            "start_time_before": at(30),
        },
    }
    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as later:
        repository = TraceRepository(later)
        for text in TEXTS:
            for condition, filters in conditions.items():
                expected = ids_by_sql(plain, text, condition)
                found = repository.list(TraceFilters(name=text, **filters, limit=1000))
                assert [row.id for row in found] == expected, (text, condition)


@pytest.mark.usefixtures("way")
def test_pages_follow_each_other_and_offsets_skip(pool: StoragePool, plain: psycopg.Connection[TupleRow]) -> None:
    store(pool, sample())
    repository = TraceRepository(pool)
    for text in ("chat", "a", "tail", "x", "zeppelin"):
        expected = ids_by_sql(plain, text)
        for limit in (1, 3, 50):
            assert follow(repository, limit, name=text) == expected, (text, limit)
            assert follow(repository, limit, name=text, project="other") == ids_by_sql(plain, text, "project = 'other'")
        found = repository.list(TraceFilters(name=text, limit=3, offset=2))
        assert [row.id for row in found] == expected[2:5]


def test_a_name_that_no_index_entry_could_hold_is_written_and_found(pool: StoragePool) -> None:
    with TraceWriter(pool) as writer:
        writer.write_span(
            {"trace_id": trace_id("long").bytes, "span_id": b"12345678", "start_time": at(), "name": NOISE + " tail"}
        )
        writer.flush()
        assert writer.write_stats().rows_rejected == 0
    assert [row.id for row in TraceRepository(pool).search_traces("TAIL")] == [trace_id("long")]
    assert len(TraceRepository(pool).search_traces("zeppelin")) == 0


def many(pool: StoragePool, traces: int, names: Sequence[str]) -> None:
    """Traces of all names in turn, with the statistics that a store has which is in use."""
    store(pool, [trace(number, name=names[number % len(names)], start_time=at(number)) for number in range(traces)])
    with pool.raw_connection() as connection:
        connection.autocommit = True
        connection.execute("ANALYZE traces")


@pytest.mark.parametrize("project", [None, "default"])
def test_neither_names_nor_traces_are_read_through(pool: StoragePool, project: str | None) -> None:
    many(pool, 2_000, [f"{kind} {number}" for kind in ("chat", "rag") for number in range(5)])
    repository = TraceRepository(pool)
    walk, page = (
        plan for plan in plans_of(pool, lambda: repository.search_traces("chat", project=project)) if INDEX in plan
    )
    assert walk.count(f"Index Scan using {INDEX}") == 2
    assert "Sort" not in walk
    # A page of each name, in order, and these together.
    assert f"Index Scan using {INDEX} on traces" in page
    assert "= given.name" in page
    assert "Seq Scan" not in page


@pytest.mark.parametrize("project", [None, "default"])
def test_the_index_serves_whatever_the_parameters(pool: StoragePool, database_url: str, project: str | None) -> None:
    many(pool, 5_000, [f"name {number}" for number in range(20)])
    filters = TraceFilters(name="name 1", project=project, start_time_from=at(5))
    names = search.Names([("default", "name 1")])
    with psycopg.connect(database_url, autocommit=True) as connection:
        # Not as small tables are read best.
        for setting in ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "enable_bitmapscan = off"):
            connection.execute(f"SET {setting}".encode())
        for number, statement in enumerate(
            (search.matching_names(of_project=project is not None), statements.list_traces(filters, names=names))
        ):
            sql = compiled(statement)
            nulls = ", ".join("NULL" for _ in prepare(connection, sql).parameters)
            connection.execute(f"PREPARE p{number} AS {sql}".encode())
            plan = str(connection.execute(f"EXPLAIN EXECUTE p{number} ({nulls})".encode()).fetchall())
            assert INDEX in plan


def test_where_no_name_holds_the_text_no_trace_is_read(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    store(pool, [trace(number, name=f"chat {number}", start_time=at(number)) for number in range(5)])
    repository = TraceRepository(pool)
    with recorded_statements() as seen:
        assert len(repository.search_traces("zeppelin", project="default")) == 0
    # The first search of a connection asks what kind of database it is.
    assert [statement.split()[0] for statement in seen if "to_regclass" not in statement] == ["WITH"]


def test_users_and_sessions_have_indexes_of_their_own(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    store(pool, [trace(1, name="chat", user_id="u", session_id="s", start_time=at())])
    repository = TraceRepository(pool)
    with recorded_statements() as seen:
        for filters in (TraceFilters(name="chat", user_id="u"), TraceFilters(name="chat", session_id="s")):
            assert len(repository.list(filters)) == 1
    assert "RECURSIVE" not in str(seen)


def test_citus_gets_statements_that_it_takes(
    pool: StoragePool,
    database_url: str,
    plain: psycopg.Connection[TupleRow],
    recorded_statements: Callable[[], AbstractContextManager[Statements]],
) -> None:
    store(pool, sample())
    with psycopg.connect(database_url) as connection:
        # Where Citus keeps what it has distributed.
        connection.execute("CREATE TABLE pg_dist_partition (logicalrelid regclass)")
    with recorded_statements() as seen:
        found = TraceRepository(pool).list(TraceFilters(name="chat", limit=1000))
    assert [row.id for row in found] == ids_by_sql(plain, "chat")
    assert "RECURSIVE" not in str(seen)
    assert "LATERAL" not in str(seen)


def test_found_traces_are_as_any_others(pool: StoragePool) -> None:
    store(pool, [trace(1, name="chat", start_time=at(), attributes={"tier": "gold"})])
    repository = TraceRepository(pool)
    (found,) = repository.list(TraceFilters(name="chat"), include_content=True)
    assert isinstance(found, Trace)
    assert found.attributes == {"tier": "gold"}
    (found,) = repository.search_traces("chat")
    with pytest.raises(DetachedInstanceError):
        _ = found.attributes
