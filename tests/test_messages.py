"""Messages are stored once, and every reader gets back what came in."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.llm import LlmSpan
from observatory_storage.models import TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import SpanFilters, TraceRepository
from observatory_storage.writers import CopyWriter, TraceWriter, WriteMethod, WriterConfig
from tests.conversations import (
    NOON,
    SYSTEM,
    TOOLS,
    Row,
    contents,
    conversation,
    different,
    message,
    read_back,
    seen_by_sql,
    stored_messages,
)
from tests.telemetry import assert_summaries_exact, count
from tests.test_migrations import alembic

METHODS = [WriteMethod.COPY, WriteMethod.INSERT]


def write(pool: StoragePool, rows: list[Row], **options: Any) -> None:
    with TraceWriter(pool, WriterConfig(**options)) as writer:
        writer.write_spans(rows)


def assert_given_back(pool: StoragePool, rows: list[Row]) -> None:
    expected = contents(rows)
    assert read_back(pool, rows) == expected
    seen = seen_by_sql(pool.config.postgres.conninfo())
    assert {key: seen[key] for key in expected} == expected


@pytest.mark.every_server
@pytest.mark.parametrize("method", METHODS)
def test_a_conversation_is_stored_once_and_given_back(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    rows = [row for seed in range(3) for row in conversation(seed)]
    write(pool, rows, method=method)
    assert_given_back(pool, rows)
    assert len(stored_messages(database_url)) == different(rows)
    assert count(database_url, "messages") == different(rows)
    assert_summaries_exact(database_url)


@pytest.mark.every_server
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_any_order_split_and_repetition_gives_the_same(
    pool: StoragePool, database_url: str, method: WriteMethod, seed: int
) -> None:
    rows = [row for number in range(4) for row in conversation(number)]
    dice = random.Random(seed)
    for writers in range(2):
        shuffled = dice.sample(rows, len(rows))
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            while shuffled:
                size = dice.randrange(1, 8)
                writer.write_spans(shuffled[:size])
                del shuffled[:size]
                writer.flush()
        assert_given_back(pool, rows)
        assert len(stored_messages(database_url)) == different(rows), f"after {writers + 1} writers"
    assert count(database_url, "trace_spans") == len(rows)


json_values = st.recursive(
    # jsonb gives a large float back as an integer.
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(-1e6, 1e6, width=32)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
messages = st.builds(
    lambda role, content, more: {**more, "role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "tool", ""]) | json_values,
    json_values,
    st.dictionaries(st.sampled_from(["finish_reason", "name", "id", "messages", "unknown field"]), json_values),
)
lists = st.lists(messages, min_size=1, max_size=6).flatmap(
    # Drawn with repetition: a message may stand in a conversation twice.
    lambda given: st.lists(st.sampled_from([*given, SYSTEM]), min_size=1, max_size=8)
)
inputs = lists | st.builds(
    lambda given, more: {**more, "messages": given}, lists, st.dictionaries(st.just("type"), json_values)
)
spans = st.builds(
    lambda given, answered, reason, attributes: {
        "input": given,
        "output": answered,
        "finish_reason": reason,
        "attributes": attributes,
    },
    inputs | json_values,
    inputs | json_values,
    st.sampled_from(["stop", "tool_call", None]),
    st.dictionaries(
        st.sampled_from(["gen_ai.system_instructions", "gen_ai.tool.definitions", "llm.tools.0.tool.json_schema", "x"]),
        json_values | st.just(TOOLS),
    ),
)


@pytest.mark.every_server
@pytest.mark.parametrize("method", METHODS)
def test_whatever_comes_is_given_back(pool: StoragePool, method: WriteMethod) -> None:
    with TraceWriter(pool, WriterConfig(method=method)) as writer:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(spans, min_size=1, max_size=4), st.lists(spans, max_size=2))
        def check(first: list[Row], second: list[Row]) -> None:
            trace_id = uuid.uuid4().bytes
            rows = [
                {
                    "trace_id": trace_id,
                    "span_id": number.to_bytes(8),
                    "operation": "chat",
                    "start_time": NOON + dt.timedelta(seconds=number),
                    "end_time": NOON + dt.timedelta(seconds=number),
                    **span,
                }
                for number, span in enumerate([*first, *second], 1)
            ]
            for part in (rows[: len(first)], rows[len(first) :]):
                writer.write_spans([dict(row) for row in part])
                writer.flush()
            expected = contents(rows)
            assert writer.write_stats().rows_rejected == 0
            found = read_back(pool, rows)
            assert found == expected

        check()


def test_small_contents_stay_where_they_were(pool: StoragePool, database_url: str) -> None:
    row = conversation(calls=1)[0] | {"input": [message("user", "hello")], "output": [message("assistant", "hi")]}
    row["attributes"] = {"gen_ai.system_instructions": "be kind"}
    tool = {"trace_id": row["trace_id"], "span_id": b"tooltool", "operation": "execute_tool", "start_time": NOON}
    tool |= {"input": {"city": "Rome " * 500}, "output": "sunny " * 500}
    write(pool, [row, tool])
    assert count(database_url, "messages") == 0
    with psycopg.connect(database_url) as connection:
        stored = connection.execute("SELECT input, output, content_refs FROM trace_spans ORDER BY span_id").fetchall()
    assert (tool["input"], tool["output"], None) in stored
    assert (row["input"], row["output"], None) in stored
    assert_given_back(pool, [row, tool])


def test_a_prompt_that_nobody_repeats_stays_where_it_was(pool: StoragePool, database_url: str) -> None:
    rows = conversation(calls=2)
    short = {"role": "system", "content": "be brief"}
    for number, row in enumerate(rows):
        row["input"] = [short, message("user", f"document {number} " * 500)]
        row["output"] = [message("assistant", "summary " * 500)]
        row["attributes"] = {}
    write(pool, rows)
    assert count(database_url, "messages") == 0
    assert_given_back(pool, rows)


def test_projects_share_nothing(pool: StoragePool, database_url: str) -> None:
    rows = [row for number, project in enumerate(["a", "b"]) for row in conversation(number, project=project)]
    write(pool, rows)
    assert_given_back(pool, rows)
    assert sum(one == SYSTEM for one in stored_messages(database_url)) == 2
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT DISTINCT project FROM message_packs ORDER BY 1").fetchall() == [
            ("a",),
            ("b",),
        ]


def test_each_period_has_its_own(pool: StoragePool, database_url: str) -> None:
    rows = conversation(calls=3) + conversation(calls=3, start=NOON - dt.timedelta(days=1))
    write(pool, rows)
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT tableoid::regclass::text, count(*) FROM messages GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert [name for name, _ in found] == [f"messages_p{NOON - dt.timedelta(days=day):%Y%m%d}" for day in (1, 0)]
    assert found[0][1] == found[1][1] == different(rows[:3])


def test_every_way_of_reading_gives_content_back(pool: StoragePool) -> None:
    rows = conversation()
    write(pool, rows)
    repository = TraceRepository(pool)
    last = rows[-1]
    expected = [last["input"], last["output"], last["attributes"]]
    by_id = repository.get_span_by_id(last["trace_id"], last["span_id"])
    spans = repository.get_spans(last["trace_id"])
    page = repository.list_spans(SpanFilters(start_time_from=NOON), include_content=True)
    found = [by_id, spans[-1], max(page, key=lambda span: span.start_time)]
    assert [[span.input, span.output, span.attributes] for span in found] == [expected] * 3
    with pool.session() as session:
        again = TraceRepository(session).get_span_by_id(last["trace_id"], last["span_id"])
        assert not session.dirty
    assert again.input == last["input"]


def test_a_typed_span_comes_back_as_it_was(pool: StoragePool, database_url: str) -> None:
    said = [{"role": "system", "content": "be brief " * 200}, {"role": "user", "content": "hello", "mood": "good"}]
    given = LlmSpan.model_validate(
        {"input": said, "output": {"content": "hi"}, "latency": {"start_time": NOON, "total_ms": 5.0}}
    )
    with TraceWriter(pool) as writer:
        writer.write_span_from_llm(given)
    span = TraceRepository(pool).get_span_by_id(given.trace_id, given.span_id)
    assert count(database_url, "messages") == 2
    assert span.content_refs is None
    assert LlmSpan.from_span(span) == given


def test_a_finished_span_takes_the_place_of_an_open_one(pool: StoragePool, database_url: str) -> None:
    rows = conversation()
    opened = [{**row, "end_time": None, "output": None, "input": row["input"][:2]} for row in rows]
    write(pool, opened)
    assert_given_back(pool, opened)
    write(pool, rows)
    assert_given_back(pool, rows)
    assert_summaries_exact(database_url)


def test_without_sharing_the_columns_hold_everything(pool: StoragePool, database_url: str) -> None:
    rows = conversation()
    write(pool, rows, share_messages=False)
    assert count(database_url, "messages") == 0
    assert_given_back(pool, rows)


def test_bare_copy_writes_what_it_is_given(pool: StoragePool, database_url: str) -> None:
    rows = conversation()
    with pool.raw_connection() as connection:
        CopyWriter().write_spans(connection, rows)
        connection.commit()
    assert count(database_url, "messages") == 0
    with psycopg.connect(database_url) as connection:
        inputs = connection.execute("SELECT input FROM trace_spans ORDER BY start_time").fetchall()
    assert [row[0] for row in inputs] == [row["input"] for row in rows]


def test_what_was_stored_before_is_read_beside_what_comes(pool: StoragePool) -> None:
    rows = conversation()
    write(pool, rows[:2], share_messages=False)
    write(pool, rows[2:])
    assert_given_back(pool, rows)


def test_messages_of_a_megabyte_do_not_hinder_others(pool: StoragePool) -> None:
    rows = conversation(calls=3)
    large = [*rows[-1]["input"], message("user", "x" * 3_000_000), message("user", "\0 and \ud800", broken="\0")]
    rows.append({**rows[-1], "span_id": b"largests", "input": large})
    write(pool, rows)
    found = read_back(pool, rows)
    assert found[uuid.UUID(bytes=rows[0]["trace_id"]).hex, b"largests".hex()][0][-1]["broken"] == "\ufffd"
    assert (
        len(found[uuid.UUID(bytes=rows[0]["trace_id"]).hex, b"largests".hex()][0][-2]["parts"][0]["content"])
        == 3_000_000
    )


@pytest.mark.parametrize(("end", "shared"), [("", 1), ("\ud800", 0)])
def test_a_long_prompt_alone_is_stored_once_unless_it_is_no_json(
    pool: StoragePool, database_url: str, end: str, shared: int
) -> None:
    prompt = [{"role": "system", "content": "x" * 2000 + end}]
    rows = [{**row, "input": prompt, "output": None, "attributes": {}} for row in conversation(calls=2)]
    write(pool, rows)
    assert count(database_url, "messages") == shared
    with pool.session() as session:
        read = TraceRepository(session).get_trace_by_id(rows[0]["trace_id"]).spans
    assert [span.input for span in read] == [
        [{"role": "system", "content": "x" * 2000 + end.replace("\ud800", "\ufffd")}]
    ] * len(rows)


def test_a_trace_is_read_by_one_statement_more(pool: StoragePool, recorded_statements: Any) -> None:
    rows = conversation()
    write(pool, rows)
    with recorded_statements() as seen:
        TraceRepository(pool).get_trace_by_id(rows[0]["trace_id"])
    assert len(seen) <= 5
    assert sum("message_packs" in statement for statement in seen) == 1


def test_references_alone_are_what_a_session_sees(pool: StoragePool) -> None:
    write(pool, conversation(calls=2))
    with pool.session() as session:
        for span in session.query(TraceSpan):
            assert span.input == []
            assert span.content_refs


@pytest.mark.every_server
def test_a_downgrade_puts_content_back_and_an_upgrade_leaves_it(pool: StoragePool, database_url: str) -> None:
    rows = [row for seed in range(3) for row in conversation(seed)]
    write(pool, rows)
    done = alembic(database_url, "downgrade", "0002")
    assert done.returncode == 0, done.stderr
    assert read_back_of_columns(database_url) == contents(rows)
    pool.run_migrations()
    assert_given_back(pool, rows)
    write(pool, [row for seed in range(3, 5) for row in conversation(seed)])
    assert count(database_url, "messages") > 0


def test_what_was_overwritten_is_null_for_every_reader(pool: StoragePool, database_url: str) -> None:
    rows = conversation()
    write(pool, rows)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE message_packs SET messages = (SELECT jsonb_agg('null'::jsonb) FROM jsonb_array_elements(messages))"
        )
    expected = {
        key: [[None] * len(given), [None] * len(answered), {"call": attributes["call"]}]
        for key, (given, answered, attributes) in contents(rows).items()
    }
    assert read_back(pool, rows) == expected
    assert seen_by_sql(database_url) == expected
    done = alembic(database_url, "downgrade", "0002")
    assert done.returncode == 0, done.stderr
    assert read_back_of_columns(database_url) == expected


def read_back_of_columns(url: str) -> dict[tuple[str, str], Any]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT trace_id, span_id, input, output, attributes FROM trace_spans").fetchall()
    return {(row[0].hex, bytes(row[1]).hex()): list(row[2:]) for row in found}
