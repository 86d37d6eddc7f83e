"""Conversations with nested calls, of which some rows are bad, foreign or come again: what is stored is exact.

Each seed is a store of its own: rows are converted ahead or not, the client rejects some and the server others, so that
batches are taken apart, transactions fail and are tried again, and finished versions replace open ones.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

import psycopg
import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.writers import WriteMethod, WriterConfig
from observatory_storage.writers.store import Stored
from observatory_storage.writers.trace_store import TraceStore
from tests.conversations import SYSTEM, TOOLS, contents, message, read_back, seen_by_sql
from tests.telemetry import assert_summaries_exact
from tests.usage_cases import Span, assert_usage_exact, make_tree, opened

CLEAR = "TRUNCATE trace_spans, trace_events, traces, resources, usage_rollups, messages, message_packs, message_uses"
# The server refuses a row whose name is poison, and every fifth transaction for no fault of its own.
FAULTS = """
CREATE SEQUENCE tick;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF NEW.name = 'poison' THEN RAISE EXCEPTION 'poison' USING ERRCODE = '22003'; END IF; RETURN NEW; END$$;
CREATE TRIGGER refuse BEFORE INSERT ON trace_spans FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF nextval('tick') % 5 = 0 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; RETURN NEW; END$$;
CREATE TRIGGER fail BEFORE INSERT ON traces FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""


def talking(tree: list[Span], dice: random.Random) -> list[Span]:
    """The same spans, of which most calls send what was said before."""
    said: list[Any] = [SYSTEM, message("user", f"question {dice.random()}")]
    for span in tree:
        if span["counts_usage"] and dice.random() < 0.7:
            answer = message("assistant", f"answer {dice.random()}")
            span["input"] = list(said)
            span["output"] = [{**answer, "finish_reason": "stop"}]
            span["finish_reason"] = "stop"
            said += [answer, message("user", "and then?")]
            if dice.random() < 0.5:
                span["attributes"] = {"gen_ai.tool.definitions": TOOLS}
    return tree


def deliveries(spans: list[Span], dice: random.Random) -> list[Span]:
    """Finished spans, open versions of some, and some of them twice."""
    before = [opened(span, dice) for span in spans if dice.random() < 0.3]
    found = [*({**span, "output": None} if "output" in span else span for span in before), *spans]
    found += dice.choices(spans, k=3)
    return [span for span in found if span["end_time"] is None or span["span_id"][0] % 8]


def spoiled(span: Span, dice: random.Random) -> Span:
    """The span, or one in its place that the client or the server does not take."""
    return span | dice.choice([{}] * 8 + [{"kind": "no such kind"}, {"name": "poison"}])


def is_good(span: Span) -> bool:
    return span.get("kind") is None and span["name"] != "poison"


@pytest.mark.parametrize("method", [WriteMethod.COPY, WriteMethod.INSERT])
def test_whatever_happens_on_the_way_what_is_stored_is_exact(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    with psycopg.connect(database_url) as owner:
        owner.execute(FAULTS)

    def store_in(project: str, spans: list[Span], dice: random.Random) -> Stored:
        store = TraceStore(pool, WriterConfig(method=method), project, pool.config.retry)
        stored = Stored()
        left = list(spans)
        while left:
            size = dice.randrange(1, 25)
            prepared = store.prepare({"span": left[:size], "event": [], "trace": []})
            del left[:size]
            for _ in range(dice.randrange(3)):
                prepared.convert_ahead()
            store.store(prepared, stored)
        return stored

    for seed in range(8):
        with psycopg.connect(database_url) as connection:
            connection.execute(CLEAR)
        dice = random.Random(seed)
        trees = [talking(make_tree(dice, dice.randrange(1, 14)), dice) for _ in range(4)]
        theirs = trees.pop()
        sent = [spoiled(span, dice) for span in deliveries([span for tree in trees for span in tree], dice)]
        good = [span for span in sent if is_good(span)]
        store_in("theirs", theirs, dice)
        sent += theirs
        dice.shuffle(sent)
        stored = store_in("default", sent, dice)

        rejected = [dict(error.row) for error in stored.rejected if error.row is not None]
        assert {row["span_id"] for row in rejected} >= {span["span_id"] for span in theirs}
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT trace_id, span_id, start_time, end_time FROM trace_spans WHERE project = 'default'"
            ).fetchall()
        versions = {(span["trace_id"], span["span_id"], span["end_time"]): span for span in good}
        found = [versions[row[0].bytes, bytes(row[1]), row[3]] for row in rows]
        finished = {span["span_id"] for span in found if span["end_time"] is not None}
        # The rows of a batch are folded before they are looked at: a bad one may stand for a good one.
        bad = {span["span_id"] for span in sent if not is_good(span)}
        assert finished >= {span["span_id"] for span in good if span["end_time"] is not None} - bad
        everything = [*found, *({**span, "project": "theirs"} for span in theirs)]
        assert_usage_exact(database_url, everything)
        assert_summaries_exact(database_url)
        assert seen_by_sql(database_url) == contents(everything)
        assert read_back(pool, everything) == contents(everything)
        assert {uuid.UUID(bytes=span["trace_id"]) for span in found} == {row[0] for row in rows}
