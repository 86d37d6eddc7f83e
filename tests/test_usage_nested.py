"""Usage that nested model calls repeat counts once; rollups, traces and spans say the same, whatever arrives how."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.pool import StoragePool
from observatory_storage.usage.nesting import Node, find_repeats
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.store import Stored
from observatory_storage.writers.trace_store import TraceStore
from tests.forked import Program
from tests.usage_cases import Span, assert_usage_exact, make_tree, opened, stored_usage

CLEAR = "TRUNCATE trace_spans, trace_events, traces, resources, usage_rollups"


@pytest.fixture(params=["copy", "insert"])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


def call(name: str, parent: str | None, tokens: int | None, **columns: Any) -> Span:
    span = make_tree(random.Random(1), 1)[0]
    return {
        **span,
        "span_id": name.encode().ljust(8),
        "parent_span_id": None if parent is None else parent.encode().ljust(8),
        "operation": "chat",
        "model": "gpt-4o",
        "counts_usage": True,
        "status": "ok",
        "input_tokens": tokens,
        "output_tokens": None,
        "cost_usd": None,
        **columns,
    }


def step(name: str, parent: str | None) -> Span:
    return call(name, parent, None, counts_usage=False, operation="execute_tool", model=None)


def figures(url: str) -> tuple[int, int, int]:
    """Calls, errors and input tokens."""
    groups = stored_usage(url).values()
    return (
        sum(one["calls"] for one in groups),
        sum(one["errors"] for one in groups),
        sum(one["input_tokens"] for one in groups),
    )


CASES: dict[str, tuple[Sequence[Span], tuple[int, int, int]]] = {
    "a call inside a call": ([call("outer", None, 100), call("inner", "outer", 100)], (1, 0, 100)),
    "with spans between": (
        [call("outer", None, 90), step("a", "outer"), step("b", "a"), call("inner", "b", 100)],
        (1, 0, 100),
    ),
    "the inner one says nothing": ([call("outer", None, 100), call("inner", "outer", None)], (1, 0, 100)),
    "two attempts inside": (
        [call("outer", None, 100), call("a", "outer", None, status="error"), call("b", "outer", 100)],
        (2, 1, 100),
    ),
    "both failed": (
        [call("outer", None, None, status="error"), call("inner", "outer", None, status="error")],
        (1, 1, 0),
    ),
    "side by side": ([step("root", None), call("a", "root", 1), call("b", "root", 2)], (2, 0, 3)),
    "three deep": ([call("a", None, 1), call("b", "a", 2), call("c", "b", 4)], (1, 0, 4)),
    "zero is no usage": ([call("outer", None, 5), call("inner", "outer", 0, cost_usd=Decimal(0))], (1, 0, 5)),
    "its own parent": ([call("a", "a", 1), call("b", "a", 2)], (1, 0, 2)),
    "below a circle": (
        [call("a", "x", 1), step("x", "a"), call("c", "x", 2), call("d", "c", 4)],
        (2, 0, 5),
    ),
    "a circle": ([call("a", "b", 1), call("b", "a", 2)], (2, 0, 3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_usage_counts_once(
    pool: StoragePool, database_url: str, method: WriteMethod, name: str, apart: bool, backwards: bool
) -> None:
    spans, expected = CASES[name]
    ordered = spans[::-1] if backwards else spans
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        for part in [[span] for span in ordered] if apart else [ordered]:
            writer.write_spans(part)
            writer.flush()
    assert figures(database_url) == expected
    assert_usage_exact(database_url, spans)


def test_any_trees_in_any_order_and_any_split(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    upkeep = UsageUpkeep(pool, PartitionManager(pool))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 14), min_size=1, max_size=3))
    # An open version comes again with a new child: what it says is not what is stored.
    @example(seed=5484, sizes=[10, 6, 8])
    def arrive(seed: int, sizes: list[int]) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(CLEAR)
        dice = random.Random(seed)
        finished = [span for size in sizes for span in make_tree(dice, size)]
        before = [opened(span, dice) for span in finished if dice.random() < 0.4]
        delivered = [*before, *finished, *dice.choices(finished, k=3)]
        # Some are never finished.
        delivered = [span for span in delivered if span["end_time"] is None or span["span_id"][0] % 8]
        dice.shuffle(delivered)
        left = list(delivered)
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            while left:
                size = dice.randrange(1, 12)
                writer.write_spans(left[:size])
                del left[:size]
                writer.flush()
                if dice.random() < 0.2:
                    upkeep.fold(at_once=dice.randrange(1, 5))
        assert_usage_exact(database_url, delivered)
        upkeep.fold()
        assert_usage_exact(database_url, delivered)

    arrive()


WRITE = """
import json, random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.usage_cases import make_tree, opened
import tests.usage_cases, datetime

url, method, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
tests.usage_cases.BASE = datetime.datetime.fromisoformat(sys.argv[4])
trees = random.Random(9)
finished = [span for _ in range(60) for span in make_tree(trees, trees.randrange(1, 14))]
openings = [opened(span, trees) for span in finished]
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with TraceWriter(pool, WriterConfig(method=method, batch_size=200)) as writer:
        for round in range(3):
            spans = openings + finished
            dice.shuffle(spans)
            while spans:
                size = dice.randrange(1, 120)
                writer.write_spans(spans[:size])
                del spans[:size]
                writer.flush()
        stats = writer.write_stats()
print(json.dumps([stats.spans_written, stats.rows_rejected, stats.failures]))
"""


@pytest.mark.every_server
@pytest.mark.parametrize("methods", [["copy"] * 4, ["copy", "insert", "copy", "insert"]])
def test_four_processes_at_once_while_parts_are_folded(
    database_url: str, pool: StoragePool, methods: list[str]
) -> None:
    from tests.usage_cases import BASE

    programs = [
        Program(WRITE, database_url, method, str(seed), BASE.isoformat()) for seed, method in enumerate(methods)
    ]
    upkeep = UsageUpkeep(pool, PartitionManager(pool))
    folded = 0
    while any(program.is_running() for program in programs):
        folded += upkeep.fold(at_once=7)
    counts = [json.loads(program.output()) for program in programs]
    trees = random.Random(9)
    finished = [span for _ in range(60) for span in make_tree(trees, trees.randrange(1, 14))]
    assert folded > 0
    assert sum(written for written, *_ in counts) == len(finished)
    assert all(rejected == 0 and failures == 0 for _, rejected, failures in counts)
    assert_usage_exact(database_url, finished)


def test_what_is_rejected_takes_its_usage_along(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    outer, inner = call("outer", None, 100), call("inner", "outer", 100)
    rejected: list[object] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_spans([outer, {**inner, "kind": "no such kind"}])
    assert len(rejected) == 1
    assert figures(database_url) == (1, 0, 100)
    assert_usage_exact(database_url, [outer])


def test_what_is_rejected_ahead_takes_its_usage_along(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    outer, inner = call("outer", None, 100), call("inner", "outer", 100)
    store = TraceStore(pool, WriterConfig(method=method), "default", pool.config.retry)
    rows = [outer, {**inner, "kind": "no such kind"}]
    prepared = store.prepare({"span": rows, "event": [], "trace": []})
    # As while the batch before is stored: whether the outer call counts is decided before the inner one is rejected.
    assert prepared.convert_ahead()
    stored = Stored()
    store.store(prepared, stored)
    assert len(stored.rejected) == 1
    assert figures(database_url) == (1, 0, 100)
    assert_usage_exact(database_url, [outer])


def test_a_trace_that_is_not_locked_is_not_decided(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    outer, inner = call("outer", None, 100), call("inner", "outer", 100)
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        writer.write_spans([outer, inner])
    with psycopg.connect(database_url) as holder:
        holder.execute("UPDATE trace_spans SET counts_usage = true, repeats_usage = NULL")
        holder.execute("TRUNCATE usage_rollups")
        holder.commit()
        # Maintenance is about to add them.
        holder.execute("SELECT FROM traces FOR UPDATE")
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            writer.write_spans([outer, {**inner, "kind": "no such kind"}])
            writer.flush()
            assert writer.write_stats().retries == 0
        (left,) = holder.execute("SELECT count(*) FROM trace_spans WHERE repeats_usage IS NULL").fetchone() or ()
    assert left == 2
    assert UsageUpkeep(pool, PartitionManager(pool)).run().spans_added == 2
    assert figures(database_url) == (1, 0, 100)


def test_a_long_chain_and_a_deep_tree_take_no_recursion() -> None:
    chain = [Node(b"%08d" % place, b"%08d" % (place - 1), place % 2 == 0, True) for place in range(20_000)]
    assert find_repeats(chain).count(True) == 9_999
    circle = [Node(b"%08d" % place, b"%08d" % ((place + 1) % 5_000), True, True) for place in range(5_000)]
    assert not any(find_repeats(circle))


@pytest.mark.parametrize("shuffle", [random.Random(n).shuffle for n in range(3)])
def test_the_rule_does_not_ask_for_an_order(shuffle: Callable[[list[Any]], None]) -> None:
    dice = random.Random(5)
    ids = [b"%08d" % number for number in range(40)]
    nodes = [
        Node(dice.choice(ids), dice.choice([None, *ids]), dice.random() < 0.6, dice.random() < 0.6) for _ in range(60)
    ]
    expected = {(node, repeats) for node, repeats in zip(nodes, find_repeats(nodes), strict=True)}
    shuffle(nodes)
    assert {(node, repeats) for node, repeats in zip(nodes, find_repeats(nodes), strict=True)} == expected
