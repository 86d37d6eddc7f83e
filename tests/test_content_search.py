"""A search of contents finds each message once, with the first span that holds it."""

from __future__ import annotations

import datetime as dt
import uuid

import psycopg
import pytest

from observatory_storage.errors import InvalidFilterError
from observatory_storage.lifecycle import TextIndexer
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import ContentMatch, TraceFilters, TraceRepository
from observatory_storage.writers import TraceWriter
from tests.conversations import NOON, SYSTEM, Row, conversation, message

ONE_DAY = dt.timedelta(days=1)


def written(pool: StoragePool, *seeds: int, start: dt.datetime = NOON, **options: object) -> list[Row]:
    rows = []
    for place, seed in enumerate(seeds):
        run = conversation(seed, start=start + dt.timedelta(minutes=place))
        word = message("user", f"where is the zeppelin{seed} of our hangar? It's a *strange* thing")
        for row in run[2:]:
            row["input"] = [*row["input"], word]
        rows += [{**row, **options} for row in run]
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)
    return rows


def keys(found: object) -> list[tuple[uuid.UUID, str]]:
    assert isinstance(found, (list, tuple))
    return [(match.trace_id, match.span_id) for match in found if isinstance(match, ContentMatch)]


def key(row: Row) -> tuple[uuid.UUID, str]:
    return uuid.UUID(bytes=row["trace_id"]), row["span_id"].hex()


@pytest.mark.every_server
@pytest.mark.parametrize("indexed", [False, True])
def test_the_first_span_of_each_message_is_found(pool: StoragePool, database_url: str, indexed: bool) -> None:
    start = NOON - 2 * ONE_DAY
    rows = written(pool, 1, 2, 3, start=start)
    if indexed:
        built = TextIndexer(pool).build().built
        assert f"message_packs_p{start:%Y%m%d}" in built
    search = TraceRepository(pool).search_content
    assert keys(search("ZEPPELIN2")) == [key(rows[7])]
    assert keys(search('"strange thing" hangar')) == [key(rows[12]), key(rows[7]), key(rows[2])]
    assert keys(search("hangar -zeppelin1")) == [key(rows[12]), key(rows[7])]
    assert keys(search("zeppelin1 or zeppelin3")) == [key(rows[12]), key(rows[2])]
    # What is excluded may stand in another message beside it, and words of a phrase in two.
    assert keys(search("zeppelin3 -answer -question")) == [key(rows[12])]
    assert list(search('"hangar answer"')) == []
    # An answer is held by its own call first, and by all that follow.
    assert keys(search("answer"))[-1] == key(rows[0])
    assert len(search("answer")) == 15
    # A prompt that all begin with, and what they repeat in attributes.
    (system,) = search("kind")
    assert (system.message, system.role, *key(rows[0])) == (SYSTEM, "system", system.trace_id, system.span_id)
    (tools,) = search("looks")
    assert tools.role is None
    assert key(rows[0]) == (tools.trace_id, tools.span_id)
    assert list(search("nowhere")) == []
    # The names of members and roles are no text.
    assert list(search("content or parts or user")) == []


def test_the_filters_are_of_the_trace(pool: StoragePool) -> None:
    rows = written(pool, 1, 2, user_id="mia") + written(pool, 3, start=NOON - ONE_DAY, user_id="tom")
    search = TraceRepository(pool).search_content
    assert keys(search("hangar", TraceFilters(user_id="tom"))) == [key(rows[12])]
    assert keys(search("kind", TraceFilters(user_id="mia"))) == [key(rows[0])]
    assert keys(search("hangar", TraceFilters(start_time_from=NOON))) == [key(rows[7]), key(rows[2])]
    assert keys(search("hangar", TraceFilters(start_time_before=NOON))) == [key(rows[12])]
    assert keys(search("hangar", TraceFilters(limit=1))) == [key(rows[7])]
    assert keys(search("hangar", TraceFilters(limit=1, offset=1))) == [key(rows[2])]
    assert keys(search("hangar", TraceFilters(model="gpt-4o", limit=1))) == [key(rows[7])]
    assert list(search("hangar", TraceFilters(project="other"))) == []


def test_an_earlier_span_that_comes_late_is_the_first(pool: StoragePool) -> None:
    rows = conversation(calls=6)
    with TraceWriter(pool) as writer:
        for row in reversed(rows):
            writer.write_span(row)
            writer.flush()
    search = TraceRepository(pool).search_content
    assert keys(search("question")) == [key(rows[0])]
    TraceRepository(pool).delete_before(NOON + ONE_DAY)
    assert list(search("question")) == []


def test_a_snippet_shows_what_was_found(pool: StoragePool) -> None:
    written(pool, 1)
    (match,) = TraceRepository(pool).search_content("strange", snippets=True)
    assert match.snippet is not None
    assert "«strange»" in match.snippet


@pytest.mark.parametrize("query", ["", "!!!", "-without"])
def test_a_search_for_nothing_is_refused(pool: StoragePool, query: str) -> None:
    with pytest.raises(InvalidFilterError, match="search"):
        TraceRepository(pool).search_content(query)


def test_a_common_prompt_is_found_without_reading_all_its_traces(pool: StoragePool, database_url: str) -> None:
    rows = [
        row for seed in range(60) for row in conversation(seed, calls=1, start=NOON + seed * dt.timedelta(seconds=1))
    ]
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)
    search = TraceRepository(pool).search_content
    assert keys(search("kind")) == [key(rows[0])]
    # Of those that are looked at first none holds it any more.
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE trace_spans SET content_refs = NULL WHERE start_time < %s", [rows[40]["start_time"]])
    assert keys(search("kind")) == [key(rows[40])]
