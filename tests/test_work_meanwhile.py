"""Work that is done while the server is waited for changes no result and harms no connection."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from observatory_storage.connections import PooledConnection
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.convert import Rejections, WireRow
from observatory_storage.writers.rows import Ahead, insert_rows
from observatory_storage.writers.span_batch import SpanBatch
from observatory_storage.writers.tables import SPANS
from observatory_storage.writers.trace_transaction import TraceTransaction
from tests.telemetry import make_spans


def test_work_is_done_while_the_server_is_waited_for_and_no_longer(pool: StoragePool) -> None:
    pieces = 0

    def work() -> bool:
        nonlocal pieces
        pieces += 1
        time.sleep(0.001)
        return pieces < 20

    with pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        connection.meanwhile = work
        started = time.monotonic()
        assert connection.execute("SELECT 7 FROM pg_sleep(0.2)").fetchone() == (7,)
        assert 0.2 <= time.monotonic() - started < 5
        # Once more it is asked when a part of the answer is there and the rest is not.
        assert 20 <= pieces <= 25
        connection.meanwhile = lambda: True  # there is always more: the answer ends it
        assert connection.execute("SELECT 8 FROM pg_sleep(0.05)").fetchone() == (8,)
    with pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        assert connection.meanwhile is None


def test_an_interrupt_of_the_work_cancels_the_statement(pool: StoragePool) -> None:
    started = time.monotonic()

    def work() -> bool:
        # A server that has not begun would not notice that it is asked to stop.
        if time.monotonic() > started + 0.1:
            raise KeyboardInterrupt
        return True

    with pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        connection.meanwhile = work
        with pytest.raises(KeyboardInterrupt):
            connection.execute("SELECT pg_sleep(30)")
        assert time.monotonic() - started < 10
        assert getattr(connection, "meanwhile", work) is None
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_work_that_uses_the_connection_gets_an_error_and_the_statement_its_answer(pool: StoragePool) -> None:
    with pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        met: list[str] = []

        def work() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.Error as error:
                met.append(str(error))
            return False

        connection.meanwhile = work
        assert connection.execute("SELECT 2 FROM pg_sleep(0.1)").fetchone() == (2,)
        assert "another command is already in progress" in met[0]
        connection.meanwhile = None
        assert connection.execute("SELECT 3").fetchone() == (3,)


def test_rows_converted_ahead_are_the_rows_that_would_have_been() -> None:
    spans = make_spans(traces=30, spans=20)
    spans[77]["status"] = "no such status"
    plain = SpanBatch.from_rows(spans, "default", Rejections())
    plain.settle_usage()
    expected = [row for chunk in plain.chunks() for row in chunk]
    assert len(expected) == len(spans) - 1
    for ahead in (1, 2, 1_000_000):
        rejections = Rejections()
        batch = SpanBatch.from_rows(spans, "default", rejections)
        done = sum(1 for _ in range(ahead) if batch.convert_ahead())
        assert 0 < done <= ahead
        assert [row for chunk in batch.chunks() for row in chunk] == expected
        assert [row for chunk in batch.chunks() for row in chunk] == expected, "asked a second time"
        assert len(rejections.errors) == 1


def test_what_fails_while_a_statement_runs_is_raised_after_it(pool: StoragePool, database_url: str) -> None:
    batch = SpanBatch.from_rows(make_spans(traces=1, spans=1_500), "default", Rejections())
    rows = [row for chunk in batch.chunks() for row in chunk]

    def chunks() -> Iterator[Sequence[WireRow]]:
        yield rows[:1_000]
        raise LookupError("the second statement cannot be made")

    def stored(connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("SELECT count(*) FROM trace_spans").fetchone()
        assert row is not None
        return int(row[0])

    with pool.raw_connection() as connection:
        with pytest.raises(LookupError, match="second statement"):
            insert_rows(connection, SPANS, batch.layout, chunks())
        assert stored(connection) == 1_000
        connection.rollback()
        assert stored(connection) == 0
        assert len(insert_rows(connection, SPANS, batch.layout, [rows])) == 1_500


def test_what_is_made_ahead_comes_in_order_and_an_error_when_its_turn_comes() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    ahead = Ahead(items(), lambda made: len(made) >= 3)
    assert [ahead.make() for _ in range(4)] == [True, True, True, False]
    assert next(ahead) == 0
    assert [ahead.make() for _ in range(2)] == [True, False]
    assert [next(ahead), next(ahead)] == [1, 2]
    assert [ahead.make() for _ in range(2)] == [True, False]
    assert [next(ahead), next(ahead)] == [3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(ahead)
    assert not ahead.has_more()
    assert list(ahead) == []


def test_large_spans_do_not_wait_to_be_added_up(pool: StoragePool, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []
    add = TraceTransaction._add

    def watched(self: TraceTransaction, chunks: list[list[tuple[Any, ...]]], *given: Any) -> None:
        rows = [row for chunk in chunks for row in chunk]
        held.append((len(rows), sum(len(value) for row in rows for value in row if isinstance(value, bytes))))
        add(self, chunks, *given)

    monkeypatch.setattr(TraceTransaction, "_add", watched)
    for size in (100, 40_000):
        held.clear()
        spans = [{**span, "input": "x" * size} for span in make_spans(traces=60, spans=20, seed=size)]
        with TraceWriter(pool, WriterConfig(method=WriteMethod.COPY, batch_size=1_200)) as writer:
            writer.write_spans(spans)
        assert sum(rows for rows, _ in held) == 1_200
        if size == 100:
            # The first thousand together, since the server has nothing to do before it has them.
            assert held[0][0] >= 1_000
        else:
            assert max(written for _, written in held) < 10 * 1024 * 1024
