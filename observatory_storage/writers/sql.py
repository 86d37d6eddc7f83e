"""The SQL of the write path, built once from the columns of `tables` and never from data.

Placeholders are psycopg's: `%b` is an array in PostgreSQL's binary form, one for each column.
"""

from __future__ import annotations

from typing import Final

from observatory_storage.usage.sums import AMOUNTS, DIMENSIONS
from observatory_storage.writers.tables import (
    DATA_POINTS,
    EVENTS,
    LOGS,
    MESSAGE_PACKS,
    MESSAGE_USES,
    MESSAGES,
    METRICS,
    RESOURCES,
    SERIES,
    SPANS,
    TRACES,
    Layout,
    WriteTable,
)

# One transaction a batch. READ COMMITTED is stated, whatever the server's default: REPEATABLE READ fails
# with 40001 even on DO NOTHING. Joins with a few keys are meant to run by index whatever the planner
# thinks of their number.
BEGIN_BATCH: Final = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL lock_timeout = {lock_timeout_ms}; "
    "SET LOCAL idle_in_transaction_session_timeout = '5min'; "
    "SET LOCAL work_mem = '64MB'; "
    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
)

# A span's or an event's key as bytes, as clients compute it too.
_KEY_BYTES: Final = {
    "trace_spans": "uuid_send(trace_id) || span_id || timestamptz_send(start_time)",
    "trace_events": "uuid_send(trace_id) || span_id || timestamptz_send(span_start_time) || int8send(event_index)",
    "resources": "uuid_send(id)",
    "traces": "uuid_send(id)",
    "messages": "uuid_send(id) || timestamptz_send(period)",
    "message_packs": "int8send(id) || timestamptz_send(period)",
    "message_uses": "int8send(pack_id)",
    "metric_series": "uuid_send(metric_id) || uuid_send(id)",
    "metric_data_points": "uuid_send(metric_id) || uuid_send(series_id) || timestamptz_send(timestamp)",
    "logs": "uuid_send(id)",
}


def copy_into(table: str, layout: Layout) -> str:
    """COPY the columns of a layout into a table."""
    return f"COPY {table} ({', '.join(layout.names)}) FROM STDIN (FORMAT BINARY)"


def staging_name(table: WriteTable) -> str:
    """Return the name of the temporary table in which a batch is merged."""
    return f"observatory_staged_{table.name}"


def create_staging(table: WriteTable, layout: Layout) -> str:
    """Make the temporary table; it goes with the transaction, so that no pooled session keeps an old shape."""
    names = ", ".join(layout.names)
    source = f"SELECT {names} FROM {table.name}"
    return f"CREATE TEMPORARY TABLE {staging_name(table)} ON COMMIT DROP AS {source} WITH NO DATA"


def merge_staging(table: WriteTable, layout: Layout) -> str:
    """Insert what is new from the temporary table, in writing order; returns the keys of new rows."""
    names = ", ".join(layout.names)
    return (
        f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {staging_name(table)} "
        f"ORDER BY {', '.join(table.order)} "
        f"ON CONFLICT ({', '.join(table.key)}) DO NOTHING RETURNING {_KEY_BYTES[table.name]}"
    )


def _unnest(table: WriteTable) -> str:
    arrays = ", ".join(f"%b::{column.kind.array_type}[]" for column in table.columns)
    return f"unnest({arrays}) AS given ({', '.join(table.names)})"


def _values(table: WriteTable) -> str:
    return ", ".join(
        f"given.{column.name}::{column.kind.cast}" if column.kind.cast else f"given.{column.name}"
        for column in table.columns
    )


def insert_unnest(table: WriteTable) -> str:
    """Insert what is new from arrays, in their order; the same text for every size of batch."""
    return (
        f"INSERT INTO {table.name} ({', '.join(table.names)}) SELECT {_values(table)} FROM {_unnest(table)} "
        f"ON CONFLICT ({', '.join(table.key)}) DO NOTHING RETURNING {_KEY_BYTES[table.name]}"
    )


INSERT_SPANS: Final = insert_unnest(SPANS)
INSERT_EVENTS: Final = insert_unnest(EVENTS)
INSERT_RESOURCES: Final = insert_unnest(RESOURCES)
INSERT_MESSAGES: Final = insert_unnest(MESSAGES)
INSERT_MESSAGE_PACKS: Final = insert_unnest(MESSAGE_PACKS)
INSERT_MESSAGE_USES: Final = insert_unnest(MESSAGE_USES)
INSERT_DATA_POINTS: Final = insert_unnest(DATA_POINTS)
INSERT_LOGS: Final = insert_unnest(LOGS)

# Deletion spares what was sent within the hour, so that this may lag behind and need not be written each time. The
# server's clock, because deletion asks it too; not now(), because a transaction may have begun long before.
_UNSEEN: Final = "coalesce({row}.seen_at < clock_timestamp() - interval '5 minutes', true)"

# Insert metrics, in id order; of a metric that is stored the description is updated, for it is no part of its identity.
UPSERT_METRICS: Final = (
    f"INSERT INTO metrics AS m ({', '.join(METRICS.names)}) SELECT {_values(METRICS)} FROM {_unnest(METRICS)} "
    "ON CONFLICT (id) DO UPDATE "
    "SET description = coalesce(excluded.description, m.description), seen_at = clock_timestamp() "
    "WHERE excluded.description IS NOT NULL AND m.description IS DISTINCT FROM excluded.description "
    f"OR {_UNSEEN.format(row='m')}"
)

# Insert series, in the order of their keys; one that is stored is locked until the COMMIT, so that it cannot go.
INSERT_SERIES: Final = (
    f"INSERT INTO metric_series AS s ({', '.join(SERIES.names)}) SELECT {_values(SERIES)} FROM {_unnest(SERIES)} "
    f"ON CONFLICT (metric_id, id) DO UPDATE SET seen_at = clock_timestamp() WHERE {_UNSEEN.format(row='s')} "
    f"RETURNING {_KEY_BYTES['metric_series']}"
)


def _conflicting_points() -> str:
    content = [name for name in DATA_POINTS.names if name not in (*DATA_POINTS.key, "project")]
    stored = ", ".join(f"p.{name}" for name in content)
    values = dict(zip(DATA_POINTS.names, _values(DATA_POINTS).split(", "), strict=True))
    given = ", ".join(values[name] for name in content)
    rows = _unnest(DATA_POINTS).replace(") AS given (", ") WITH ORDINALITY AS given (").removesuffix(")")
    return (
        f"SELECT given.place - 1 FROM {rows}, place) JOIN metric_data_points AS p ON p.metric_id = given.metric_id "
        "AND p.series_id = given.series_id AND p.timestamp = given.timestamp "
        "AND p.timestamp >= %b::timestamptz AND p.timestamp <= %b::timestamptz "
        f"WHERE ({stored}) IS DISTINCT FROM ({given})"
    )


# The places, counted from 0, of given points under whose key something else is stored.
CONFLICTING_POINTS: Final = _conflicting_points()

# The GenAI events that are logged for some spans, with what those spans lack: model calls without input or output, or
# with one that came from events. Both the span and the event look here, each under the lock on the trace.
CONTENT_EVENTS: Final = """
SELECT uuid_send(s.trace_id), s.span_id, s.start_time, s.wants_input, s.wants_output,
       l.timestamp, uuid_send(l.id) AS id, l.event_name, l.body, l.body_json, l.attributes
FROM unnest(%b::uuid[], %b::bytea[]) AS given (trace_id, span_id)
JOIN traces AS t ON t.id = given.trace_id
CROSS JOIN LATERAL (
    SELECT s.trace_id, s.span_id, s.start_time, s.end_time, s.project,
           s.input IS NULL OR s.input_from_logs IS TRUE AS wants_input,
           s.output IS NULL OR s.output_from_logs IS TRUE AS wants_output
    FROM trace_spans AS s
    WHERE s.trace_id = t.id AND s.span_id = given.span_id
      AND s.start_time >= t.start_time AND s.start_time <= t.end_time AND s.operation = ANY(%b::text[])
) AS s
CROSS JOIN LATERAL (
    SELECT l.timestamp, l.id, l.event_name, l.body, l.body_json, l.attributes
    FROM logs AS l
    WHERE l.route_id = s.trace_id AND l.trace_id = s.trace_id AND l.span_id = s.span_id AND l.project = s.project
      AND l.timestamp >= s.start_time - %b::interval
      AND l.timestamp <= greatest(s.start_time, s.end_time) + %b::interval
      AND l.event_name = ANY(%b::text[])
) AS l
WHERE s.wants_input OR s.wants_output
"""

# Give spans the content that was logged for them; null leaves what is there.
FILL_SPANS: Final = """
UPDATE trace_spans AS s SET
    input = coalesce(given.input, s.input), output = coalesce(given.output, s.output),
    input_from_logs = given.input IS NOT NULL OR s.input_from_logs,
    output_from_logs = given.output IS NOT NULL OR s.output_from_logs
FROM unnest(%b::uuid[], %b::bytea[], %b::timestamptz[], %b::jsonb[], %b::jsonb[])
    AS given (trace_id, span_id, start_time, input, output)
WHERE s.trace_id = given.trace_id AND s.span_id = given.span_id AND s.start_time = given.start_time
  AND s.start_time >= %b::timestamptz AND s.start_time <= %b::timestamptz
  AND (s.input IS DISTINCT FROM coalesce(given.input, s.input)
       OR s.output IS DISTINCT FROM coalesce(given.output, s.output))
RETURNING 1
"""


# Where messages are that another transaction stored, and whether their packs are there.
STORED_MESSAGES: Final = """
SELECT timestamptz_send(m.period) AS period, uuid_send(m.id) AS id, m.pack_id, m.position, p.id IS NOT NULL AS is_there
FROM unnest(%b::timestamptz[], %b::uuid[]) AS given (period, id)
JOIN messages AS m ON m.id = given.id AND m.period = given.period
LEFT JOIN message_packs AS p ON p.id = m.pack_id AND p.period = m.period
"""

# Which of some packs are there. The partitions are locked by this, so that they stay until the commit.
STORED_PACKS: Final = """
SELECT timestamptz_send(p.period) AS period, p.id
FROM unnest(%b::timestamptz[], %b::bigint[]) AS given (period, id)
JOIN message_packs AS p ON p.id = given.id AND p.period = given.period
"""

# Messages whose pack somebody took away.
DELETE_MESSAGES: Final = """
DELETE FROM messages AS m USING unnest(%b::timestamptz[], %b::uuid[]) AS given (period, id)
WHERE m.id = given.id AND m.period = given.period
"""


def _unclaimed(row: str) -> str:
    """A trace of which nothing is known but that log events name it: it belongs to whoever tells more of it."""
    nothing = " AND ".join(f"{row}.{column} IS NULL" for column in ("root_span_id", "start_time", "name"))
    return f"({nothing} AND NOT {row}.own_status AND NOT {row}.own_attributes)"


# Traces of a batch that belong to another project than the batch says.
FOREIGN_TRACES: Final = f"""
SELECT uuid_send(t.id), t.project
FROM unnest(%b::uuid[], %b::text[]) AS given (id, project)
JOIN traces AS t ON t.id = given.id AND t.project <> given.project AND NOT {_unclaimed("t")}
"""


def _stored(table: WriteTable, time: str) -> str:
    keys = table.columns[: len(table.key)]
    arrays = ", ".join(f"%b::{column.kind.array_type}[]" for column in keys)
    same = " AND ".join(f"stored.{column.name} = given.{column.name}" for column in keys)
    return f"""
SELECT given.place
FROM unnest({arrays}) WITH ORDINALITY AS given ({", ".join(table.key)}, place)
CROSS JOIN LATERAL (
    SELECT FROM {table.name} AS stored
    WHERE {same}
      AND stored.{time} >= %b::timestamptz AND stored.{time} <= %b::timestamptz
    LIMIT 1
) AS found
"""


# Which of the given keys are stored, by their places among those given, from 1 on. LIMIT keeps the look-up one by the
# primary key: joined, a batch of many hours would be compared with all that these hours hold.
STORED_SPANS: Final = _stored(SPANS, "start_time")
STORED_LOGS: Final = _stored(LOGS, "timestamp")

# Open spans of some traces within the batch's times, by the index on open spans.
OPEN_SPANS: Final = """
SELECT uuid_send(trace_id) || span_id || timestamptz_send(start_time)
FROM trace_spans
WHERE end_time IS NULL AND trace_id = ANY(%b::uuid[])
  AND start_time >= %b::timestamptz AND start_time <= %b::timestamptz
"""

# Take out the open versions of spans whose finished versions came; those return in their place. Returns what usage
# the open ones were counted with.
DELETE_OPEN_SPANS: Final = f"""
DELETE FROM trace_spans AS s
USING unnest(%b::uuid[], %b::bytea[], %b::timestamptz[]) AS given (trace_id, span_id, start_time)
WHERE s.trace_id = given.trace_id AND s.span_id = given.span_id AND s.start_time = given.start_time
  AND s.end_time IS NULL AND s.start_time >= %b::timestamptz AND s.start_time <= %b::timestamptz
RETURNING uuid_send(s.trace_id) || s.span_id || timestamptz_send(s.start_time), s.parent_span_id, s.counts_usage,
    s.repeats_usage, {", ".join(f"s.{name}" for name in (*DIMENSIONS, *AMOUNTS))}
"""

# The events of a replaced span go with it; events that were written by themselves stay.
DELETE_EVENTS: Final = """
DELETE FROM trace_events AS e
USING unnest(%b::uuid[], %b::bytea[], %b::timestamptz[]) AS given (trace_id, span_id, start_time)
WHERE e.trace_id = given.trace_id AND e.span_id = given.span_id AND e.span_start_time = given.start_time
  AND e.event_index < %b::bigint AND e.span_start_time >= %b::timestamptz AND e.span_start_time <= %b::timestamptz
"""

# Whether the row that is added names a better root than the stored one.
_ROOT_WINS: Final = """(excluded.root_span_id IS NOT NULL AND (t.root_span_id IS NULL OR
        (NOT excluded.has_root, excluded.root_start_time, excluded.root_span_id)
      < (NOT t.has_root, t.root_start_time, t.root_span_id)))"""


# Text is compared as Python compares it, whatever the database's collation.
_BY_CODE_POINT: Final = ' COLLATE "C"'


def _of_root(column: str) -> str:
    return (
        f"{column} = CASE WHEN {_ROOT_WINS} THEN excluded.{column} "
        f"WHEN t.root_span_id IS NULL THEN coalesce(excluded.{column}, t.{column}) ELSE t.{column} END"
    )


def _extreme(function: str, column: str, collation: str = "") -> str:
    return (
        "CASE WHEN t.root_span_id IS NULL THEN "
        f"CASE WHEN excluded.root_span_id IS NULL THEN coalesce(excluded.{column}, t.{column}) "
        f"ELSE excluded.{column} END "
        f"WHEN excluded.root_span_id IS NULL THEN t.{column} "
        f"ELSE {function}(t.{column}{collation}, excluded.{column}{collation}) END"
    )


def _own(column: str, flag: str) -> str:
    return (
        f"{column} = CASE WHEN excluded.{flag} THEN excluded.{column} WHEN t.{flag} THEN t.{column} "
        f"WHEN {_ROOT_WINS} THEN excluded.{column} ELSE t.{column} END"
    )


def _microseconds(end: str, start: str) -> str:
    return f"(EXTRACT(epoch FROM ({end}) - ({start})) * 1000000)::bigint"


def _upsert_traces() -> str:
    start, end = _extreme("LEAST", "start_time"), _extreme("GREATEST", "end_time")
    sums = ("span_count", "error_count", "input_tokens", "output_tokens", "total_tokens", "cost_usd")
    assignments = [
        "project = excluded.project",
        *(f"{column} = t.{column} + excluded.{column}" for column in sums),
        *(_of_root(column) for column in ("name", "service_name", "resource_id", "root_span_id", "root_start_time")),
        f"has_root = CASE WHEN {_ROOT_WINS} THEN excluded.has_root ELSE t.has_root END",
        f"start_time = {start}",
        f"end_time = {end}",
        f"duration_us = {_microseconds(end, start)}",
        f"user_id = {_extreme('LEAST', 'user_id', _BY_CODE_POINT)}",
        f"session_id = {_extreme('LEAST', 'session_id', _BY_CODE_POINT)}",
        _own("status", "own_status"),
        _own("status_message", "own_status"),
        "own_status = t.own_status OR excluded.own_status",
        _own("attributes", "own_attributes"),
        "own_attributes = t.own_attributes OR excluded.own_attributes",
        "updated_at = excluded.updated_at",
    ]
    names = ", ".join(TRACES.names)
    return (
        f"INSERT INTO traces AS t ({names}, duration_us, created_at, updated_at) "
        f"SELECT {_values(TRACES)}, {_microseconds('given.end_time', 'given.start_time')}, "
        f"batch.now, batch.now FROM {_unnest(TRACES)}, (SELECT %b::timestamptz AS now) AS batch "
        f"ON CONFLICT (id) DO UPDATE SET {', '.join(assignments)} "
        f"WHERE t.project = excluded.project OR ({_unclaimed('t')} AND NOT {_unclaimed('excluded')}) "
        "RETURNING uuid_send(t.id), t.span_count"
    )


# Add what new spans say to their traces; takes the lock on each, in id order. A trace of another project
# is not touched and not returned. By the number of its spans that a trace has now, the writer knows whether it had any.
UPSERT_TRACES: Final = _upsert_traces()

# Compute traces anew from their spans. Only under their locks, only for those with a replaced span.
RECOMPUTE_TRACES: Final = f"""
UPDATE traces AS t SET
    name = root.name, service_name = root.service_name, resource_id = root.resource_id,
    has_root = root.parent_span_id IS NULL, root_span_id = root.span_id, root_start_time = root.start_time,
    status = CASE WHEN t.own_status THEN t.status ELSE root.status END,
    status_message = CASE WHEN t.own_status THEN t.status_message ELSE root.status_message END,
    attributes = CASE WHEN t.own_attributes THEN t.attributes ELSE root.attributes END,
    start_time = spans.start_time, end_time = spans.end_time,
    duration_us = {_microseconds("spans.end_time", "spans.start_time")},
    span_count = spans.span_count, error_count = spans.error_count, input_tokens = spans.input_tokens,
    output_tokens = spans.output_tokens, total_tokens = spans.total_tokens, cost_usd = spans.cost_usd,
    user_id = spans.user_id, session_id = spans.session_id, updated_at = %b::timestamptz
FROM traces AS b
CROSS JOIN LATERAL (
    SELECT min(s.start_time) AS start_time, max(greatest(s.start_time, s.end_time)) AS end_time,
           count(*) AS span_count, count(*) FILTER (WHERE s.status = 'error') AS error_count,
           coalesce(sum(s.input_tokens) FILTER (WHERE s.counts_usage), 0)::bigint AS input_tokens,
           coalesce(sum(s.output_tokens) FILTER (WHERE s.counts_usage), 0)::bigint AS output_tokens,
           coalesce(sum(s.total_tokens) FILTER (WHERE s.counts_usage), 0)::bigint AS total_tokens,
           coalesce(sum(s.cost_usd) FILTER (WHERE s.counts_usage), 0) AS cost_usd,
           min(s.user_id COLLATE "C") AS user_id, min(s.session_id COLLATE "C") AS session_id
    FROM trace_spans AS s
    WHERE s.trace_id = b.id AND s.start_time >= b.start_time AND s.start_time <= b.end_time
) AS spans
CROSS JOIN LATERAL (
    SELECT s.span_id, s.start_time, s.parent_span_id, s.name, s.service_name, s.resource_id, s.status,
           s.status_message, s.attributes
    FROM trace_spans AS s
    WHERE s.trace_id = b.id AND s.start_time >= b.start_time AND s.start_time <= b.end_time
    ORDER BY s.parent_span_id IS NOT NULL, s.start_time, s.span_id
    LIMIT 1
) AS root
WHERE b.id = t.id AND b.id = ANY(%b::uuid[]) AND t.id = ANY(%b::uuid[])
"""

STATEMENTS: Final = {
    "INSERT_SPANS": INSERT_SPANS,
    "INSERT_EVENTS": INSERT_EVENTS,
    "INSERT_RESOURCES": INSERT_RESOURCES,
    "INSERT_SERIES": INSERT_SERIES,
    "INSERT_MESSAGES": INSERT_MESSAGES,
    "INSERT_MESSAGE_PACKS": INSERT_MESSAGE_PACKS,
    "INSERT_MESSAGE_USES": INSERT_MESSAGE_USES,
    "STORED_MESSAGES": STORED_MESSAGES,
    "STORED_PACKS": STORED_PACKS,
    "DELETE_MESSAGES": DELETE_MESSAGES,
    "INSERT_DATA_POINTS": INSERT_DATA_POINTS,
    "INSERT_LOGS": INSERT_LOGS,
    "UPSERT_METRICS": UPSERT_METRICS,
    "CONFLICTING_POINTS": CONFLICTING_POINTS,
    "CONTENT_EVENTS": CONTENT_EVENTS,
    "FILL_SPANS": FILL_SPANS,
    "FOREIGN_TRACES": FOREIGN_TRACES,
    "STORED_SPANS": STORED_SPANS,
    "STORED_LOGS": STORED_LOGS,
    "OPEN_SPANS": OPEN_SPANS,
    "DELETE_OPEN_SPANS": DELETE_OPEN_SPANS,
    "DELETE_EVENTS": DELETE_EVENTS,
    "UPSERT_TRACES": UPSERT_TRACES,
    "RECOMPUTE_TRACES": RECOMPUTE_TRACES,
}
