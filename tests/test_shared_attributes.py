"""Filters on attributes find spans and traces whose attributes are stored once, and those alone."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import SpanFilters, TraceFilters, TraceRepository
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.conftest import Statements
from tests.conversations import NOON, TOOLS, Row, conversation

DEFINITIONS = "gen_ai.tool.definitions"
PARAMETERS = "llm.invocation_parameters"
FIRST_TOOL = "llm.tools.0.tool.json_schema"
SINCE = NOON - dt.timedelta(hours=1)


def agent(number: int, project: str = "default") -> list[Row]:
    """An agent run whose root is a model call too, with attributes that are stored once, or too small for it."""
    dice = random.Random(number)
    tools: list[Any] = [*TOOLS, {"name": f"own_{number % 3}"}]
    attributes: list[dict[str, Any]] = [
        {DEFINITIONS: tools, "number": number},
        {DEFINITIONS: [{"name": f"own_{number % 3}"}], "number": number},
        {PARAMETERS: {"temperature": number % 2, "text": "x" * 600}, "number": number},
        {FIRST_TOOL: "a" * 600, "llm.tools.1.tool.json_schema": f"tool {number % 2}", "number": number},
        {"other": {DEFINITIONS: tools}, "number": number},
    ]
    rows = conversation(number, project=project)
    for place, row in enumerate(rows):
        row["attributes"] = {**dice.choice(attributes), "place": place}
        row["parent_span_id"] = rows[0]["span_id"] if place else None
    return rows


FILTERS: list[dict[str, Any]] = [
    {DEFINITIONS: [{"name": "own_1"}]},
    {DEFINITIONS: [{"name": "own_1"}], "number": 4},
    {DEFINITIONS: [{"name": "tool_3", "type": "function"}]},
    {DEFINITIONS: []},
    {DEFINITIONS: "none"},
    {PARAMETERS: {"temperature": 1}},
    {PARAMETERS: {"temperature": 1}, DEFINITIONS: []},
    {FIRST_TOOL: "a" * 600, "llm.tools.1.tool.json_schema": "tool 1"},
    {"llm.tools.1.tool.json_schema": "tool 0", "place": 0},
    {"other": {DEFINITIONS: [{"name": "own_2"}]}},
    {},
]


def contains(stored: Any, wanted: Any) -> bool:
    """What jsonb containment says."""
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and all(
            name in stored and contains(stored[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(stored, list) and all(any(contains(item, one) for item in stored) for one in wanted)
    return bool(stored == wanted)


def key_of(row: Row) -> tuple[bytes, str]:
    return row["trace_id"], row["span_id"].hex()


@pytest.mark.every_server
def test_spans_and_traces_are_found_wherever_their_attributes_are(pool: StoragePool, database_url: str) -> None:
    rows = [row for number in range(12) for row in agent(number, project="a" if number % 4 else "b")]
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)
    with psycopg.connect(database_url) as connection:
        referring = connection.execute("SELECT count(*) FROM trace_spans WHERE content_refs IS NOT NULL").fetchone()
    assert referring == (len(rows),)
    repository = TraceRepository(pool)
    ranges: list[dict[str, Any]] = [{}, {"start_time_from": SINCE, "start_time_before": NOON + dt.timedelta(hours=1)}]
    for wanted in FILTERS:
        for project in (None, "a", "nobody"):
            expected = [
                row for row in rows if contains(row["attributes"], wanted) and project in (None, row["project"])
            ]
            common: dict[str, Any] = {"attributes": wanted, "project": project, "limit": 1000}
            for times in ranges:
                found = repository.list_spans(SpanFilters(**common, **times), include_content=True)
                assert {(span.trace_id.bytes, span.span_id) for span in found} == {*map(key_of, expected)}, wanted
                assert all(contains(span.attributes, wanted) for span in found)
                traces = repository.list(TraceFilters(**common, **times))
                roots = {row["trace_id"] for row in expected if row["parent_span_id"] is None}
                assert {trace.id.bytes for trace in traces} == roots, wanted
                assert repository.get_stats(TraceFilters(**common, **times)).trace_count == len(roots)
    later = SpanFilters(attributes=FILTERS[0], start_time_from=NOON + dt.timedelta(hours=1))
    assert not list(repository.list_spans(later))


def test_a_trace_with_attributes_of_its_own_is_found_by_those_alone(pool: StoragePool) -> None:
    (row, *_) = conversation()
    with TraceWriter(pool) as writer:
        writer.write_span(row)
        writer.flush()
        repository = TraceRepository(pool)
        tools = TraceFilters(attributes={DEFINITIONS: [{"name": "tool_3"}]})
        assert [trace.id.bytes for trace in repository.list(tools)] == [row["trace_id"]]
        writer.write_trace({"id": row["trace_id"], "attributes": {PARAMETERS: "mine"}})
    assert not list(repository.list(tools))
    mine = TraceFilters(attributes={PARAMETERS: "mine"})
    assert [trace.id.bytes for trace in repository.list(mine)] == [row["trace_id"]]


def test_a_message_that_looks_like_an_attribute_is_none(pool: StoragePool) -> None:
    rows = conversation(calls=2)
    for row in rows:
        row["attributes"] = {}
        row["input"] = [*row["input"], {"role": "user", DEFINITIONS: [{"name": "said"}], "content": "x" * 2000}]
    with TraceWriter(pool, WriterConfig()) as writer:
        writer.write_spans(rows)
    repository = TraceRepository(pool)
    assert not list(repository.list_spans(SpanFilters(attributes={DEFINITIONS: [{"name": "said"}]})))


def test_filters_that_name_no_such_attribute_look_at_no_message(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    repository = TraceRepository(pool)
    with recorded_statements() as seen:
        repository.list_spans(SpanFilters(attributes={"tenant": "acme", "other": {DEFINITIONS: []}}))
        repository.list(TraceFilters(attributes={"tenant": "acme"}))
    assert not any("message_packs" in statement for statement in seen)
    with recorded_statements() as seen:
        repository.list_spans(SpanFilters(attributes={DEFINITIONS: [str(uuid.uuid4())]}))
    assert sum("message_packs" in statement for statement in seen) == 1
