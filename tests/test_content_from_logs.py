"""Spans get the content that a client sends only as GenAI events in logs, whichever comes first."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.otlp import GENAI_EVENT_NAMES, content_of_events, decode_logs, decode_traces
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, TraceWriter, WriteMethod, WriterConfig
from tests.odd_values import deep
from tests.signals import Row, empty, stored_rows
from tests.telemetry import NOW, assert_summaries_exact

CAPTURES = Path(__file__).parent.parent / "observatory_storage" / "captures"
TABLES = ("trace_spans", "trace_events", "traces", "resources", "logs")
Step = tuple[str, list[Row]]


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


def call(number: int, **columns: Any) -> Row:
    """A model call without content, in a trace of its own."""
    return {
        "trace_id": number.to_bytes(16),
        "span_id": number.to_bytes(8),
        "start_time": NOW + dt.timedelta(seconds=number),
        "end_time": NOW + dt.timedelta(seconds=number + 1),
        "name": "chat",
        "operation": "chat",
        "counts_usage": True,
        "input_tokens": number,
        **columns,
    }


def event(span: Row, name: str = "gen_ai.user.message", body: Any = None, **columns: Any) -> Row:
    """A GenAI event of a span."""
    return {
        "timestamp": span["start_time"],
        "trace_id": span["trace_id"],
        "span_id": span["span_id"],
        "event_name": name,
        "body_json": body if body is not None else {"content": f"question {span['input_tokens']}"},
        **columns,
    }


def choice(span: Row, **columns: Any) -> Row:
    body = {"index": 0, "finish_reason": "stop", "message": {"content": f"answer {span['input_tokens']}"}}
    return event(span, "gen_ai.choice", body, **columns)


Deliver = Callable[..., tuple[int, int]]


@pytest.fixture
def deliver(pool: StoragePool, method: WriteMethod) -> Deliver:
    """Write spans and logs in turn, each step committed; return how many spans either writer filled."""

    def run(*steps: Step, **config: Any) -> tuple[int, int]:
        settings = WriterConfig(method=method, **config)
        with TraceWriter(pool, settings) as traces, LogWriter(pool, settings) as logs:
            for kind, rows in steps:
                if kind == "spans":
                    traces.write_spans(rows)
                    traces.flush()
                else:
                    logs.write_logs(rows)
                    logs.flush()
        return traces.write_stats().spans_filled, logs.write_stats().spans_filled

    return run


def contents(url: str) -> dict[int, tuple[Any, Any]]:
    """Input and output of each stored span, by its number."""
    spans = stored_rows(url, "trace_spans")["trace_spans"]
    return {int.from_bytes(span["span_id"]): (span["input"], span["output"]) for span in spans}


def assert_content_exact(url: str, given_spans: list[Row]) -> None:
    """Each span has its own content, and where it has none what its stored events say."""
    tables = stored_rows(url, "trace_spans", "logs")
    own: dict[tuple[bytes, bytes], Row] = {}
    for span in given_spans:
        key = span["trace_id"], span["span_id"]
        if key not in own or own[key]["end_time"] is None:
            own[key] = span
    for span in tables["trace_spans"]:
        key = span["trace_id"].bytes, bytes(span["span_id"])
        found = [
            log
            for log in tables["logs"]
            if (log["trace_id"], log["span_id"], log["project"]) == (span["trace_id"], span["span_id"], span["project"])
            and log["event_name"] in GENAI_EVENT_NAMES
        ]
        said = content_of_events(found) if span["operation"] == "chat" else (None, None)
        for side, logged in zip(("input", "output"), said, strict=True):
            mine = own[key].get(side)
            assert span[side] == (logged if mine is None else mine)
            assert bool(span[f"{side}_from_logs"]) == (mine is None and logged is not None)
    assert_summaries_exact(url)


@pytest.mark.every_server
@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
def test_content_lands_whichever_comes_first(deliver: Deliver, database_url: str, order: tuple[str, str]) -> None:
    spans = [call(number) for number in range(1, 6)]
    steps = {"spans": spans, "logs": [record for span in spans for record in (event(span), choice(span))]}
    filled = deliver(*((kind, steps[kind]) for kind in order))
    assert filled == ((0, 5) if order[0] == "spans" else (5, 0))
    assert contents(database_url)[3] == (
        [{"role": "user", "parts": [{"type": "text", "content": "question 3"}]}],
        [{"role": "assistant", "parts": [{"type": "text", "content": "answer 3"}], "finish_reason": "stop"}],
    )
    assert_content_exact(database_url, spans)
    before = stored_rows(database_url, *TABLES)
    assert deliver(("logs", steps["logs"]), ("spans", spans), ("logs", steps["logs"])) == (0, 0)
    assert stored_rows(database_url, *TABLES) == before


def test_events_that_come_one_by_one_add_up(deliver: Deliver, database_url: str) -> None:
    span = call(1)
    said = [
        event(span, body={"content": str(place)}, timestamp=NOW + dt.timedelta(seconds=place)) for place in range(4)
    ]
    deliver(("logs", [said[2]]), ("spans", [span]), ("logs", [said[3]]), ("logs", [said[0], choice(span)]))
    deliver(("logs", [said[1]]))
    (given_input, _) = contents(database_url)[1]
    assert [message["parts"][0]["content"] for message in given_input] == ["0", "1", "2", "3"]
    assert_content_exact(database_url, [span])


@pytest.mark.every_server
@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
def test_what_a_span_says_itself_is_never_overwritten(
    deliver: Deliver, database_url: str, order: tuple[str, str]
) -> None:
    spans = [
        call(1, input=[{"role": "user", "content": "mine"}]),
        call(2, output=[]),
        call(3, input="", output={"a": 1}),
        call(4, operation="execute_tool"),
        call(5, operation=None),
        call(6),
    ]
    steps = {"spans": spans, "logs": [record for span in spans for record in (event(span), choice(span))]}
    deliver(*((kind, steps[kind]) for kind in order))
    found = contents(database_url)
    assert found[1][0] == [{"role": "user", "content": "mine"}]
    assert (found[2][1], found[3]) == ([], ("", {"a": 1}))
    assert found[1][1] is not None
    assert (found[4], found[5]) == ((None, None), (None, None))
    assert_content_exact(database_url, spans)


@pytest.mark.every_server
def test_an_open_span_that_is_replaced_has_its_content_before_and_after(deliver: Deliver, database_url: str) -> None:
    finished = call(1)
    opened = {**finished, "end_time": None}
    late = choice(finished, timestamp=finished["end_time"] + dt.timedelta(minutes=10))
    for steps in (
        [("spans", [opened]), ("logs", [event(finished)]), ("spans", [finished]), ("logs", [late])],
        [("logs", [event(finished), late]), ("spans", [opened]), ("spans", [finished])],
        [("spans", [opened]), ("spans", [finished]), ("logs", [late, event(finished)]), ("spans", [opened])],
        [("spans", [opened, finished]), ("logs", [late]), ("logs", [event(finished)])],
        [("logs", [late]), ("spans", [opened]), ("logs", [event(finished)]), ("spans", [finished, opened])],
    ):
        empty(database_url, *TABLES)
        deliver(*steps)
        assert None not in contents(database_url)[1]
        assert_content_exact(database_url, [opened, finished])
    # The finished version's own content wins over what was logged for the open one.
    empty(database_url, *TABLES)
    finished |= {"input": "own", "output": None}
    deliver(("spans", [opened]), ("logs", [event(finished), late]), ("spans", [finished]), ("logs", [choice(finished)]))
    assert contents(database_url)[1][0] == "own"
    assert_content_exact(database_url, [opened, finished])


def test_another_projects_trace_is_not_touched(deliver: Deliver, database_url: str) -> None:
    span = call(1, project="theirs")
    deliver(("spans", [span]), ("logs", [event(span), choice(span)]), project="ours")
    tables = stored_rows(database_url, "trace_spans", "traces", "logs")
    assert (tables["trace_spans"][0]["input"], tables["trace_spans"][0]["output"]) == (None, None)
    assert [trace["project"] for trace in tables["traces"]] == ["theirs"]
    assert len(tables["logs"]) == 2
    deliver(("logs", [event(span, project="theirs")]), project="ours")
    assert contents(database_url)[1][0] is not None


@pytest.mark.parametrize("backwards", [False, True])
def test_one_request_may_hold_events_of_several_projects_for_one_trace(
    deliver: Deliver, database_url: str, backwards: bool
) -> None:
    span = call(1, project="a")
    events = [event(span, project="a"), choice(span, project="a"), event(span, project="b", body={"content": "other"})]
    deliver(("spans", [span]), ("logs", events[::-1] if backwards else events))
    assert None not in contents(database_url)[1]
    assert_content_exact(database_url, [span])


def test_events_without_a_span_or_far_from_it_are_stored_and_fill_nothing(deliver: Deliver, database_url: str) -> None:
    span = call(1)
    records = [
        event(span, span_id=None),
        event(span, trace_id=None),
        event(span, span_id=b"another1"),
        event(span, timestamp=NOW + dt.timedelta(hours=3)),
        event(span, timestamp=None),
        event(span, "gen_ai.unknown"),
    ]
    deliver(("spans", [span]), ("logs", records), ("spans", [span]))
    assert contents(database_url)[1] == (None, None)
    assert len(stored_rows(database_url, "logs")["logs"]) == len(records)


ODD_BODIES: list[Any] = [
    "plain",
    7,
    [],
    [1, "a", None],
    {},
    {"content": deep(240)},
    {"content": deep(300)},
    {"content": deep(700)},
    {"content": deep(900)},
    {"content": "a\x00b\ud800"},
    {"content": [{"type": "text"}, {"type": 5}, None, {"text": 1}], "role": 5, "name": []},
    {"message": 5, "index": "x", "finish_reason": {"a": 1}, "tool_calls": "x"},
    {"message": {"tool_calls": [5, {"function": 5}, {"function": {"arguments": "{"}}], "content": {"parts": 5}}},
    {"content": 2**70, "role": ""},
    {"content": "x" * 2_000_000},
]


@pytest.mark.parametrize("body", ODD_BODIES, ids=lambda body: str(body)[:20])
@pytest.mark.parametrize("name", ["gen_ai.choice", "gen_ai.tool.message", "gen_ai.client.inference.operation.details"])
@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
def test_an_odd_event_is_no_burden_to_its_batch(
    pool: StoragePool, database_url: str, body: Any, name: str, order: tuple[str, str]
) -> None:
    spans = [call(1), call(2)]
    odd = event(spans[0], name, body)
    steps = {"spans": spans, "logs": [odd, {**odd, "body_json": None, "body": str(body)[:100]}, event(spans[1])]}
    with TraceWriter(pool) as traces, LogWriter(pool) as logs:
        for kind in order:
            if kind == "spans":
                traces.write_spans(steps[kind])
                traces.flush()
            else:
                logs.write_logs(steps[kind])
                logs.flush()
    assert traces.write_stats().rows_rejected == 0
    assert logs.write_stats().logs_written + logs.write_stats().rows_rejected == 3
    assert contents(database_url)[2][0] is not None


def test_any_order_and_split_leave_the_same_content(pool: StoragePool, database_url: str) -> None:
    spans: list[Row] = []
    records: list[Row] = []
    for number in range(1, 7):
        span = call(number, **{"input": "own"} if number == 2 else {"output": "own"} if number == 3 else {})
        spans += [span, {**span, "end_time": None}] if number > 4 else [span]
        records += [event(span), choice(span), event(span, "gen_ai.system.message", {"content": "be brief"})]
        records.append(event(span, "gen_ai.user.message", {"content": "again"}, timestamp=span["end_time"]))
    pieces: list[Step] = [("spans", [span]) for span in spans] + [("logs", [record]) for record in records]

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 3, 8, 100]), method=st.sampled_from(["copy", "insert"]))
    def arrive(seed: int, size: int, method: str) -> None:
        empty(database_url, *TABLES)
        dice = random.Random(seed)
        config = WriterConfig(method=WriteMethod(method), flush_interval_seconds=3_600)
        with TraceWriter(pool, config) as traces, LogWriter(pool, config) as logs:
            for place, (kind, rows) in enumerate(dice.sample(pieces + pieces[::2], len(pieces) + len(pieces[::2]))):
                if kind == "spans":
                    traces.write_spans(rows)
                else:
                    logs.write_logs(rows)
                if place % size == 0:
                    for flush in dice.sample([traces.flush, logs.flush], 2):
                        flush()
        assert_content_exact(database_url, spans)

    arrive()


@pytest.mark.parametrize("client", ["openllmetry-events", "otel-openai-v2-events"])
@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
def test_recorded_clients_that_send_content_in_events_only(
    deliver: Deliver, database_url: str, client: str, order: tuple[str, str]
) -> None:
    spans: Any = decode_traces((CAPTURES / f"{client}.traces.pb").read_bytes()).spans
    records: Any = decode_logs((CAPTURES / f"{client}.logs.pb").read_bytes()).logs
    steps: dict[str, list[Row]] = {"spans": spans, "logs": records}
    deliver(*((kind, steps[kind]) for kind in order))
    found = stored_rows(database_url, "trace_spans")["trace_spans"]
    chats = [span for span in found if span["operation"] == "chat"]
    assert chats
    names: dict[tuple[uuid.UUID, bytes], set[str]] = {}
    for row in (row for row in records if row.get("trace_id")):
        names.setdefault((uuid.UUID(bytes=row["trace_id"]), row["span_id"]), set()).add(row["event_name"])
    answered = 0
    for span in chats:
        said = names.get((span["trace_id"], bytes(span["span_id"])), set())
        if "gen_ai.user.message" in said:
            assert any(message["role"] == "user" for message in span["input"])
            assert span["input_from_logs"]
        # Some calls failed, and have no answer.
        assert (span["output_from_logs"] is True) == ("gen_ai.choice" in said)
        if span["output_from_logs"]:
            assert span["output"][0]["role"] == "assistant"
            answered += 1
    assert answered >= 4
    before = stored_rows(database_url, *TABLES)
    deliver(("spans", spans), ("logs", records))
    assert stored_rows(database_url, *TABLES) == before
    assert_summaries_exact(database_url)


@pytest.mark.parametrize("first_teller", ["span", "trace"])
def test_an_event_of_another_project_does_not_claim_the_trace(
    deliver: Deliver, pool: StoragePool, database_url: str, first_teller: str
) -> None:
    span = call(1, project="theirs")
    deliver(("logs", [event(span, project="ours")]))
    if first_teller == "trace":
        with TraceWriter(pool) as writer:
            writer.write_trace({"id": span["trace_id"], "project": "theirs", "name": "told"})
            writer.flush()
            assert writer.write_stats().rows_rejected == 0
    deliver(("spans", [span]), ("logs", [event(span, project="ours"), choice(span, project="theirs")]))
    tables = stored_rows(database_url, "trace_spans", "traces")
    assert [trace["project"] for trace in tables["traces"]] == ["theirs"]
    assert [row["input"] for row in tables["trace_spans"]] == [None]
    assert tables["trace_spans"][0]["output"] is not None


def test_a_conversation_in_one_microsecond_keeps_its_order(deliver: Deliver, database_url: str) -> None:
    span = call(1)
    said = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2"), ("user", "u3")]
    events = [event(span, f"gen_ai.{role}.message", {"content": text}, timestamp=NOW) for role, text in said]
    for _ in range(2):
        deliver(("spans", [span]), ("logs", events))
        (row,) = stored_rows(database_url, "trace_spans")["trace_spans"]
        assert [message["parts"][0]["content"] for message in row["input"]] == [text for _, text in said]
    assert len(stored_rows(database_url, "logs")["logs"]) == len(said)


def test_a_trace_that_only_events_name_is_not_listed(deliver: Deliver, pool: StoragePool) -> None:
    span = call(1)
    deliver(("logs", [event(span)]))
    with pool.unit_of_work() as uow:
        assert len(uow.traces.list()) == 0
        assert uow.traces.get_stats().trace_count == 0
    deliver(("spans", [span]))
    with pool.unit_of_work() as uow:
        assert [trace.id.bytes for trace in uow.traces.list()] == [span["trace_id"]]
        assert uow.traces.get_stats().trace_count == 1
