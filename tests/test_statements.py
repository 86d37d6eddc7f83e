"""Every statement fits the migrated schema, and its result has the types that the code takes it for.

The statements of the repositories are listed with an example of each; SQL that is written by hand is found in
the source. What is new there fails here until its result is stated.
"""

from __future__ import annotations

import datetime as dt
import inspect
import uuid
from collections.abc import Iterator
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import psycopg
import pytest
from sqlalchemy import Select, select
from sqlalchemy.sql.dml import Delete

from observatory_storage.lifecycle import retention_sql
from observatory_storage.migrations import VERSION_TABLE
from observatory_storage.models import Trace
from observatory_storage.repositories import (
    SpanFilters,
    TraceFilters,
    TraceStats,
    UsageRow,
    content,
    content_search,
    name_search,
)
from observatory_storage.repositories import trace_deletion as deletion
from observatory_storage.repositories import trace_statements as statements
from observatory_storage.repositories.cursor import SpanCursor, TraceCursor
from observatory_storage.repositories.log_results import SnippetStyle
from observatory_storage.repositories.log_search import Search
from observatory_storage.repositories.log_windows import Window
from observatory_storage.repositories.results import TraceTimes
from observatory_storage.usage import statements as usage_sql
from observatory_storage.writers import sql as writers_sql
from observatory_storage.writers.tables import DATA_POINTS, EVENTS, LOGS, SPANS
from tests.log_statements import LOG_EXAMPLES, LOG_MODULES
from tests.metric_statements import METRIC_EXAMPLES, METRIC_MODULES, METRIC_ROWS
from tests.prepared import (
    Prepared,
    compiled,
    expected_types,
    filled,
    numbered,
    prepare,
    server_type,
    sql_in_source,
)
from tests.trace_rows import at, span_id, trace_id
from tests.usage_statements import MARKED_SPAN, USAGE_EXAMPLES, USAGE_MODULES, USAGE_RETURNS

pytestmark = pytest.mark.every_server

Connection = psycopg.Connection[tuple[object, ...]]

KEY, TIMES, NO_TIMES = trace_id("a"), TraceTimes(at(), at(1)), TraceTimes(None, None)
ALL: dict[str, Any] = {
    "project": "default",
    "service_name": "api",
    "start_time_from": at(),
    "start_time_before": at(1),
    "min_duration_us": 1,
    "max_duration_us": 2,
    "model": "gpt",
    "provider": "openai",
    "user_id": "u",
    "session_id": "s",
    "attributes": {"k": 1, "gen_ai.tool.definitions": [], "llm.tools.1.tool.json_schema": "{}"},
    "name": "chat",
}
EVERY_FILTER = TraceFilters(**ALL, status="ok", has_error=True, cursor=TraceCursor(at(), KEY).encode())
UNDATED = TraceFilters(status="error", has_error=False, cursor=TraceCursor(None, KEY).encode())
EVERY_SPAN_FILTER = SpanFilters(
    **ALL, operation="chat", environment="prod", cursor=SpanCursor(at(), KEY, span_id(1)).encode()
)
NAMES = name_search.Names([("default", "chat"), ("default", "chat" * 64)])
OLD, DATED = deletion.Expired(at(), "default"), deletion.Place(dated=True, start_time=at(), id=KEY)

EXAMPLES: list[tuple[str, Select[*tuple[Any, ...]] | Delete]] = [
    ("trace_by_id", statements.trace_by_id(KEY)),
    ("trace_times", statements.trace_times(KEY)),
    ("spans_of_trace", statements.spans_of_trace(KEY, NO_TIMES)),
    ("spans_of_trace", statements.spans_of_trace(KEY, TIMES, include_content=False, limit=1, offset=1)),
    ("span_by_id", statements.span_by_id(KEY, span_id(1), TIMES)),
    ("events_of_trace", statements.events_of_trace(KEY, NO_TIMES)),
    ("events_of_trace", statements.events_of_trace(KEY, TIMES, span_id(1))),
    ("resources_by_id", statements.resources_by_id([KEY])),
    ("usage_of_trace", statements.usage_of_trace(KEY, TIMES)),
    ("list_traces", statements.list_traces(TraceFilters())),
    ("list_traces", statements.list_traces(EVERY_FILTER)),
    ("list_traces", statements.list_traces(EVERY_FILTER, by_span_index=True, include_content=True)),
    ("list_traces", statements.list_traces(UNDATED)),
    ("list_traces", statements.list_traces(UNDATED, undated=1)),
    ("list_traces", statements.list_traces(TraceFilters(offset=1))),
    ("list_traces", statements.list_traces(EVERY_FILTER, names=NAMES)),
    ("list_traces", statements.list_traces(EVERY_FILTER, since=dt.datetime.now(dt.UTC))),
    ("starts_of_newest", statements.starts_of_newest(None, 10)),
    ("starts_of_newest", statements.starts_of_newest("default", 10)),
    ("list_traces", statements.list_traces(UNDATED.model_copy(update={"name": "chat"}), names=NAMES, undated=1)),
    ("matching_names", name_search.matching_names(of_project=True)),
    ("matching_names", name_search.matching_names(of_project=False)),
    ("newest_of_each", name_search.newest_of_each(NAMES, "chat", select(Trace.id, Trace.start_time))),
    ("is_distributed", name_search.is_distributed()),
    ("count_spans_of_model", statements.count_spans_of_model(EVERY_FILTER, 5)),
    ("trace_totals", statements.trace_totals(EVERY_FILTER)),
    ("trace_totals", statements.trace_totals(TraceFilters())),
    ("list_spans", statements.list_spans(SpanFilters())),
    ("list_spans", statements.list_spans(EVERY_SPAN_FILTER, include_content=True)),
    ("expired_traces", deletion.expired_traces(OLD, deletion.Place(), 5)),
    ("expired_traces", deletion.expired_traces(OLD, DATED, 5)),
    ("expired_traces", deletion.expired_traces(OLD, deletion.Place(dated=False, id=KEY), 5)),
    ("lock_traces", deletion.lock_traces([KEY], OLD, dated=True)),
    ("lock_traces", deletion.lock_traces([KEY], OLD, dated=False)),
    ("delete_events", deletion.delete_events([KEY], TIMES)),
    ("delete_spans", deletion.delete_spans([KEY], NO_TIMES)),
    ("delete_traces", deletion.delete_traces([KEY])),
    ("packs_by_id", content.packs_by_id([at()], [1])),
    ("packs_by_id", content.packs_by_id([at(), at(1)], [1, 2])),
    ("matching_messages", content_search.matching_messages(Search("a"), Window(), TraceFilters(), None, 5)),
    (
        "matching_messages",
        content_search.matching_messages(Search("kin", "kin"), Window(at(), at(1)), EVERY_FILTER, SnippetStyle(), 5),
    ),
    ("first_spans", content_search.first_spans([(at(), 1, 2)], Window(at(), at(1)), EVERY_FILTER, 5)),
    ("first_spans", content_search.first_spans([(at(), 1, 2)], Window(), TraceFilters(), 5)),
    *LOG_EXAMPLES,
    *METRIC_EXAMPLES,
    *USAGE_EXAMPLES,
]

# The types of the columns that hand-written SQL returns, as its callers take them, by the variable or the
# function that holds it.
RETURNS: dict[str, tuple[str, ...]] = {
    "migrations._refuse_foreign_tables.rows": ("text",),
    "connections._LIMIT": ("integer",),
    "lifecycle.sql.LIST_PARTITIONS": (
        "text",
        "boolean",
        "timestamp with time zone",
        "timestamp with time zone",
    ),
    "lifecycle.sql.LOCK_TABLE_MAINTENANCE": ("void",),
    "lifecycle.sql.COUNT_IN_DEFAULT": ("bigint",),
    "lifecycle.sql.MOVE_FROM_DEFAULT": (),
    "lifecycle.sql.PARTITIONS_AND_INDEX": ("text", "boolean"),
    "lifecycle.sql.INDEX_IS_VALID": ("boolean",),
    "lifecycle.sql.TABLE_EXISTS": ("boolean",),
    "lifecycle.sql.LOCK_TIMEOUT": ("integer",),
    "lifecycle.sql.SET_LOCK_TIMEOUT": ("text",),
    "lifecycle.sql.CLOSED_PARTITIONS": ("text", "text[]", "boolean"),
    "lifecycle.sql.LIMIT_BUILD_MEMORY": ("text",),
    "lifecycle.sql.SUMMARIZE_BRIN": ("bigint",),
    "lifecycle.sql.LIMIT_ANALYZED_ROWS": ("boolean",),
    "lifecycle.sql.UNKNOWN_WORDS": ("text",),
    "lifecycle.sql.ROWS_IN_DEFAULT": ("timestamp with time zone", "bigint"),
    "lifecycle.sql.PARTITION_SIZES": ("text", "bigint", "bigint"),
    "lifecycle.sql.TRY_MAINTENANCE_LOCK": ("boolean",),
    "lifecycle.sql.UNLOCK_MAINTENANCE": ("boolean",),
    "lifecycle.retention_sql.PROJECTS": ("text",),
    "lifecycle.retention_sql.PROJECTS_OF_POINTS": ("text",),
    "lifecycle.retention_sql.CLOCK": ("timestamp with time zone",),
    "lifecycle.retention_sql.BLOCKS": ("bigint",),
    "lifecycle.retention_sql._EXPIRED": ("tid",),
    "lifecycle.retention_sql.DELETE_EXPIRED": (),
    "lifecycle.retention_sql.DELETE_ORPHANED": (),
    "lifecycle.retention_sql.HAS_EXPIRED": ("boolean",),
    "lifecycle.retention_sql.COUNT_EXPIRED": ("bigint",),
    "lifecycle.retention_sql.DATED_TRACES": ("uuid", "timestamp with time zone", "timestamp with time zone"),
    "lifecycle.retention_sql.UNDATED_TRACES": ("uuid", "timestamp with time zone", "timestamp with time zone"),
    "lifecycle.retention_sql.COUNT_TRACES": ("bigint",),
    "lifecycle.retention_sql.DELETE_OF_TRACES": (),
    "lifecycle.retention_sql.DELETE_TRACES": (),
    "lifecycle.retention_sql.HAS_TRACES": ("boolean",),
    "lifecycle.retention_sql.HAS_SPANS": ("boolean",),
    "lifecycle.retention_sql.HAS_PACKS": ("boolean",),
    "lifecycle.retention_sql.HAS_OTHER_PROJECTS": ("boolean",),
    "lifecycle.retention_sql.HAS_LATER_USES": ("boolean",),
    "lifecycle.retention_sql.EVENT_PROJECTS": ("text",),
    "lifecycle.retention_sql.NEXT_SERIES": ("uuid", "uuid"),
    "lifecycle.retention_sql.DELETE_SERIES": (),
    "lifecycle.retention_sql.NEXT_METRICS": ("uuid", "uuid"),
    "lifecycle.retention_sql.DELETE_METRICS": (),
    "lifecycle.retention_sql.PROJECTS_OF_METRICS": ("text",),
    "lifecycle.retention_sql.KEYS_OF_USAGE": ("uuid", "text", "timestamp with time zone"),
    "lifecycle.retention_sql.COUNT_USAGE": ("bigint",),
    "lifecycle.retention_sql.DELETE_USAGE": (),
    "migrations.schema_state.row": ("boolean",),
    "migrations.schema_state.versions": ("character varying",),
    "migrations._oldest_transaction.row": ("integer", "text", "text", "integer"),
    "migrations._try_lock.row": ("boolean",),
    "migrations._lock_holder.row": ("integer", "text"),
    "pool.StoragePool.health_check_postgres": ("integer",),
    "repositories.log_windows.LIST_PARTITIONS": (
        "boolean",
        "timestamp with time zone",
        "timestamp with time zone",
        "boolean",
        "boolean",
    ),
    "repositories.reading.SET_TIMEOUT": ("text", "text"),
    "repositories.reading.RESTORE_TIMEOUT": ("text",),
    "writers.sql.FOREIGN_TRACES": ("bytea", "text"),
    "writers.sql.STORED_SPANS": ("bigint",),
    "writers.sql.STORED_LOGS": ("bigint",),
    "writers.sql.OPEN_SPANS": ("bytea",),
    "writers.sql.DELETE_OPEN_SPANS": ("bytea", "bytea", "boolean", "boolean", *MARKED_SPAN),
    "writers.sql.DELETE_EVENTS": (),
    "writers.sql.STORED_MESSAGES": ("bytea", "bytea", "bigint", "smallint", "boolean"),
    "writers.sql.STORED_PACKS": ("bytea", "bigint"),
    "writers.sql.DELETE_MESSAGES": (),
    "lifecycle.retention_sql.DELETE_UNUSED_PACKS": (),
    "lifecycle.retention_sql.DELETE_WITHOUT_PACK": (),
    "writers.sql.RECOMPUTE_TRACES": (),
    "writers.sql.merge_staging.trace_spans": ("bytea",),
    "writers.sql.merge_staging.trace_events": ("bytea",),
    "writers.sql.INSERT_SPANS": ("bytea",),
    "writers.sql.INSERT_EVENTS": ("bytea",),
    "writers.sql.INSERT_RESOURCES": ("bytea",),
    "writers.sql.INSERT_MESSAGES": ("bytea",),
    "writers.sql.INSERT_MESSAGE_PACKS": ("bytea",),
    "writers.sql.INSERT_MESSAGE_USES": ("bytea",),
    "writers.sql.UPSERT_TRACES": ("bytea", "bigint"),
    "writers.sql.INSERT_SERIES": ("bytea",),
    "writers.sql.INSERT_DATA_POINTS": ("bytea",),
    "writers.sql.INSERT_LOGS": ("bytea",),
    "writers.sql.UPSERT_METRICS": (),
    "writers.sql.CONFLICTING_POINTS": ("bigint",),
    "writers.sql.CONTENT_EVENTS": (
        "bytea",
        "bytea",
        "timestamp with time zone",
        "boolean",
        "boolean",
        "timestamp with time zone",
        "bytea",
        "text",
        "text",
        "jsonb",
        "jsonb",
    ),
    "writers.sql.FILL_SPANS": ("integer",),
    "writers.sql.merge_staging.metric_data_points": ("bytea",),
    "writers.sql.merge_staging.logs": ("bytea",),
    **USAGE_RETURNS,
}

# Tables whose rows are merged through a temporary one.
STAGED = (SPANS, EVENTS, DATA_POINTS, LOGS)

# SQL that is put together when the program runs: where that happens, and what comes of it.
PUT_TOGETHER: dict[str, dict[str, str]] = {
    "migrations.schema_state.versions": {
        "migrations.schema_state.versions": f"SELECT version_num FROM {VERSION_TABLE}",
    },
    "writers.sql.insert_unnest": {
        "writers.sql.INSERT_SPANS": writers_sql.INSERT_SPANS,
        "writers.sql.INSERT_EVENTS": writers_sql.INSERT_EVENTS,
        "writers.sql.INSERT_RESOURCES": writers_sql.INSERT_RESOURCES,
        "writers.sql.INSERT_MESSAGES": writers_sql.INSERT_MESSAGES,
        "writers.sql.INSERT_MESSAGE_PACKS": writers_sql.INSERT_MESSAGE_PACKS,
        "writers.sql.INSERT_MESSAGE_USES": writers_sql.INSERT_MESSAGE_USES,
        "writers.sql.INSERT_DATA_POINTS": writers_sql.INSERT_DATA_POINTS,
        "writers.sql.INSERT_LOGS": writers_sql.INSERT_LOGS,
    },
    "writers.sql.merge_staging": {
        f"writers.sql.merge_staging.{table.name}": writers_sql.merge_staging(table, table.full) for table in STAGED
    },
    **{
        f"lifecycle.retention_sql.{name}": {f"lifecycle.retention_sql.{name}": getattr(retention_sql, name)}
        for name in (
            "DELETE_EXPIRED",
            "DELETE_ORPHANED",
            "DELETE_UNUSED_PACKS",
            "DATED_TRACES",
            "UNDATED_TRACES",
            "COUNT_TRACES",
        )
    },
    **{
        f"usage.statements.{name}": {f"usage.statements.{name}": getattr(usage_sql, name)}
        for name in ("INSERT_PARTS", "MARK_SPANS", "FOLD")
    },
    "writers.sql.DELETE_OPEN_SPANS": {"writers.sql.DELETE_OPEN_SPANS": writers_sql.DELETE_OPEN_SPANS},
    # It is a part of a CREATE TABLE.
    "writers.sql.create_staging.source": {},
    "writers.sql.FOREIGN_TRACES": {"writers.sql.FOREIGN_TRACES": writers_sql.FOREIGN_TRACES},
    "writers.sql._upsert_traces": {"writers.sql.UPSERT_TRACES": writers_sql.UPSERT_TRACES},
    "writers.sql.UPSERT_METRICS": {"writers.sql.UPSERT_METRICS": writers_sql.UPSERT_METRICS},
    "writers.sql.INSERT_SERIES": {"writers.sql.INSERT_SERIES": writers_sql.INSERT_SERIES},
    "writers.sql._stored": {
        "writers.sql.STORED_SPANS": writers_sql.STORED_SPANS,
        "writers.sql.STORED_LOGS": writers_sql.STORED_LOGS,
    },
    "writers.sql._conflicting_points": {"writers.sql.CONFLICTING_POINTS": writers_sql.CONFLICTING_POINTS},
    "writers.sql.RECOMPUTE_TRACES": {"writers.sql.RECOMPUTE_TRACES": writers_sql.RECOMPUTE_TRACES},
}

IDENTIFIERS = {
    "table": "trace_spans",
    "default": "trace_spans_default",
    "partition": "trace_spans_default",
    "relation": "trace_spans_default",
    "column": "start_time",
}

# Statements that are about another table than those.
OF_OTHER_TABLES = {
    "lifecycle.retention_sql.PROJECTS_OF_POINTS": {"relation": "metric_data_points_default"},
    "lifecycle.retention_sql.DELETE_UNUSED_PACKS": {"relation": "message_packs_default", "column": "period"},
    "lifecycle.retention_sql.DELETE_WITHOUT_PACK": {"relation": "messages_default", "column": "period"},
}

# What a column of each Python type may be in PostgreSQL: the sums of integers are numeric.
PYTHON_TYPES: dict[type, set[str]] = {
    int: {"integer", "bigint", "numeric"},
    str: {"text"},
    float: {"double precision"},
    bool: {"boolean"},
    Decimal: {"numeric"},
    uuid.UUID: {"uuid"},
    dt.datetime: {"timestamp with time zone"},
}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def hand_written() -> Iterator[tuple[str, str]]:
    for found in sql_in_source():
        if found.sql is not None:
            yield found.place, found.sql
        else:
            yield from PUT_TOGETHER.get(found.place, {}).items()


def test_each_statement_of_the_repositories_fits_the_schema_and_its_types(connection: Connection) -> None:
    for name, statement in EXAMPLES:
        result = prepare(connection, compiled(statement))
        if isinstance(statement, Select):
            expected = expected_types(connection, statement)
            assert result.columns, name
            assert dict(result.columns).items() <= expected.items(), name
        else:
            assert result.columns == (), name


def test_errors_are_found_by_their_index_whatever_the_parameters(connection: Connection) -> None:
    # A plan that is made once for all parameters cannot know that one of them is 'error'.
    for setting in ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "enable_bitmapscan = off"):
        connection.execute(f"SET {setting}".encode())
    for number, filters in enumerate((TraceFilters(project="p", has_error=True), TraceFilters(status="error"))):
        sql = compiled(statements.list_traces(filters))
        nulls = ", ".join("NULL" for _ in prepare(connection, sql).parameters)
        connection.execute(f"PREPARE p{number} AS {sql}".encode())
        plan = connection.execute(f"EXPLAIN EXECUTE p{number} ({nulls})".encode()).fetchall()
        assert "traces_errors_idx" in str(plan)


def test_each_statement_of_the_repositories_is_listed() -> None:
    listed = {name for name, _ in EXAMPLES}
    for module in (
        statements,
        deletion,
        content,
        content_search,
        name_search,
        *LOG_MODULES,
        *METRIC_MODULES,
        *USAGE_MODULES,
    ):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            if _is_statement(get_type_hints(function).get("return")):
                assert name in listed, f"give an example of {module.__name__}.{name} in EXAMPLES"


def _is_statement(made: object) -> bool:
    origin = getattr(made, "__origin__", made)
    return isinstance(origin, type) and issubclass(origin, (Select, Delete))


@pytest.mark.parametrize(
    ("row_type", "statement"),
    [
        (UsageRow, statements.usage_of_trace(KEY, TIMES)),
        (TraceStats, statements.trace_totals(TraceFilters())),
        *METRIC_ROWS,
    ],
)
def test_rows_have_the_fields_that_their_statement_returns(
    connection: Connection, row_type: type[NamedTuple], statement: Select[*tuple[Any, ...]]
) -> None:
    columns = prepare(connection, compiled(statement)).columns
    assert tuple(name for name, _ in columns) == row_type._fields
    for name, hint in get_type_hints(row_type).items():
        (python_type,) = (member for member in get_args(hint) or (hint,) if member is not NoneType)
        assert dict(columns)[name] in PYTHON_TYPES[python_type], name


def test_each_hand_written_statement_fits_the_schema_and_returns_what_its_caller_takes(connection: Connection) -> None:
    with connection.transaction():
        for table in STAGED:
            connection.execute(writers_sql.create_staging(table, table.full).encode())
        check_hand_written(connection)


def check_hand_written(connection: Connection) -> None:
    for place, sql in hand_written():
        assert place in RETURNS, f"say in RETURNS what {place} returns"
        assert (
            prepare(connection, numbered(filled(sql, IDENTIFIERS | OF_OTHER_TABLES.get(place, {})))).types
            == RETURNS[place]
        ), place


def test_no_hand_written_statement_is_missing() -> None:
    put_together = {found.place for found in sql_in_source() if found.sql is None}
    missing = put_together - PUT_TOGETHER.keys()
    assert not missing, f"say in PUT_TOGETHER what comes of the SQL in {missing}"
    gone = (PUT_TOGETHER.keys() - put_together) | (RETURNS.keys() - {place for place, _ in hand_written()})
    assert not gone, f"these are no longer in the source: {gone}"


def test_what_does_not_fit_is_noticed(connection: Connection) -> None:
    with pytest.raises(AssertionError, match="no_such_column"):
        prepare(connection, "SELECT no_such_column FROM traces")
    sql = numbered("SELECT sum(span_count), '%%' FROM {table} WHERE project = %(p)s AND id = %s OR name = %(p)s")
    assert prepare(connection, filled(sql, {"table": "traces"})) == Prepared(
        ("text", "uuid"), (("sum", "numeric"), ("?column?", "text"))
    )
    assert server_type(connection, "TIMESTAMP WITH TIME ZONE") == "timestamp with time zone"
