"""Statements whose plan the server keeps: to plan anew opens every partition each time."""

from __future__ import annotations

import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository
from observatory_storage.repositories import trace_statements as statements
from tests.prepared import compiled
from tests.trace_rows import at, span, store, trace

# psycopg prepares what it ran five times; then the server makes five plans for given values before it thinks of one
# for all of them.
_CALLS = 12
_PLANS = (
    "SELECT statement, generic_plans FROM pg_prepared_statements WHERE statement ~ '^SELECT traces.id.*trace_spans'"
)


def test_traces_of_a_model_or_provider_are_planned_once(pool: StoragePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observatory_storage.repositories.trace.FEW_SPANS", 50)
    rows = [trace(number, start_time=at(number)) for number in range(400)]
    store(pool, rows, [span(row, 1, model="gpt", provider="openai") for row in rows])
    with pool.session() as session:
        session.connection().exec_driver_sql("SET LOCAL plan_cache_mode = auto")
        session.connection().exec_driver_sql("ANALYZE traces, trace_spans")
        for filters in (TraceFilters(model="gpt", limit=5), TraceFilters(provider="openai", limit=5)):
            for _ in range(_CALLS):
                assert len(TraceRepository(session).list(filters)) == 5
        found = {str(row.statement): row.generic_plans for row in session.connection().exec_driver_sql(_PLANS)}
    assert sorted("model = " in statement for statement in found) == [False, True]
    assert min(found.values()) > 0


def test_a_pool_keeps_what_is_prepared_and_plans_all_but_lists_for_their_values(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.repositories.trace.FEW_SPANS", 50)
    rows = [trace(number, start_time=at(number)) for number in range(400)]
    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as pool:
        store(pool, rows, [span(row, 1, model="gpt") for row in rows])
        with pool.raw_connection() as connection:
            connection.execute("ANALYZE traces, trace_spans")
            connection.commit()
        for _ in range(_CALLS):
            assert len(TraceRepository(pool).list(TraceFilters(model="gpt", limit=5))) == 5
            assert len(TraceRepository(pool).get_trace_by_id(rows[0]["id"]).spans) == 1
        with pool.raw_connection() as connection:
            found = connection.execute(
                "SELECT statement ~ 'EXISTS', generic_plans, custom_plans FROM pg_prepared_statements "
                "WHERE statement ~ '^SELECT (traces.*EXISTS|trace_spans)'"
            ).fetchall()
    plans = {is_list: (generic, custom) for is_list, generic, custom in found}
    assert plans[True][0] > 0
    assert plans[False][0] == 0
    assert plans[False][1] > 5


def test_a_rare_model_is_found_by_a_plan_of_its_own(database_url: str) -> None:
    rows = [trace(number, start_time=at(number)) for number in range(400)]
    with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as pool:
        store(pool, rows, [span(row, 1, model="gpt") for row in rows])
        for _ in range(_CALLS):
            assert len(TraceRepository(pool).list(TraceFilters(model="gpt", limit=5))) == 5
        with pool.raw_connection() as connection:
            found = connection.execute(
                "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
                "WHERE statement ~ '^SELECT traces.* IN .SELECT'"
            ).fetchall()
    assert [(generic, custom > 5) for generic, custom in found] == [(0, True)]


def test_a_model_is_counted_and_a_rare_one_found_by_a_plan_of_its_own() -> None:
    assert "LIMIT $3" in compiled(statements.count_spans_of_model(TraceFilters(project="p", model="gpt"), 5))
    assert "DESC \n LIMIT 5" in compiled(statements.count_spans_of_model(TraceFilters(model="gpt"), 5))
    assert "LIMIT $2" in compiled(statements.list_traces(TraceFilters(model="gpt", limit=5), by_span_index=True))
    assert "LIMIT 6" in compiled(statements.list_traces(TraceFilters(model="gpt", limit=5)))
