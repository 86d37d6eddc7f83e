"""Millions of spans over a month, made by the server itself: what is measured is how they are read."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import psycopg

from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.models import TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool

DAYS: Final = 30
SPANS_PER_TRACE: Final = 8
MODELS: Final = ("gpt-4o", "gpt-4o-mini", "o3", "claude-sonnet-4", "claude-haiku-4", "gemini-2.5-pro")

# A root, and below it tools and model calls by turns; about 400 bytes a row. Whoever asks for a day gets the same.
_SPANS: Final = """
INSERT INTO trace_spans (
    trace_id, span_id, start_time, parent_span_id, name, kind, service_name, end_time, duration_us, status,
    counts_usage, operation, provider, model, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens,
    total_tokens, cost_usd, input_cost_usd, output_cost_usd, ttft_us, user_id, session_id, attributes
)
SELECT md5(%(day)s::text || trace)::uuid, substr(decode(md5(trace || '/' || step), 'hex'), 1, 8), start_time,
       CASE WHEN step > 0 THEN substr(decode(md5(trace || '/0'), 'hex'), 1, 8) END,
       CASE WHEN is_call THEN 'chat ' || model WHEN step = 0 THEN 'invoke_agent' ELSE 'execute_tool' END,
       CASE WHEN is_call THEN 'client' ELSE 'internal' END, 'service-' || trace %% 4,
       start_time + duration_us * interval '1 microsecond', duration_us,
       CASE WHEN chance < 0.01 THEN 'error' ELSE 'ok' END, is_call,
       CASE WHEN is_call THEN 'chat' WHEN step = 0 THEN 'invoke_agent' ELSE 'execute_tool' END,
       CASE WHEN is_call THEN (ARRAY['openai', 'openai', 'openai', 'anthropic', 'anthropic', 'gcp.gemini'])[kind] END,
       CASE WHEN is_call THEN model END, CASE WHEN is_call THEN tokens END, CASE WHEN is_call THEN tokens / 3 END,
       CASE WHEN is_call THEN tokens / 10 END, CASE WHEN is_call THEN tokens / 40 END,
       CASE WHEN is_call THEN tokens + tokens / 10 END, CASE WHEN is_call AND chance < 0.9 THEN tokens * 0.0000025 END,
       CASE WHEN is_call THEN tokens * 0.000002 END, CASE WHEN is_call THEN tokens * 0.0000005 END,
       CASE WHEN is_call THEN duration_us / 5 END, 'user-' || trace %% 5000, 'session-' || trace %% 50000,
       jsonb_build_object('gen_ai.response.id', md5(trace || '-' || step), 'gen_ai.request.temperature', 0.2)
FROM (
    SELECT trace, step, is_call, kind, (%(models)s::text[])[kind] AS model, chance,
           %(day)s::timestamptz + interval '1 day' * trace / %(traces)s + interval '1 second' * step AS start_time,
           (50000 + 20000000 * chance * chance * chance)::bigint AS duration_us, (100 + 4000 * chance)::bigint AS tokens
    FROM (
        SELECT trace, step, step %% 2 = 1 AS is_call, 1 + (trace * 7 + step) %% %(kinds)s AS kind, random() AS chance
        FROM generate_series(0, %(traces)s - 1) AS trace, generate_series(0, %(steps)s - 1) AS step
    ) AS chosen
) AS made
"""
_TRACES: Final = """
INSERT INTO traces (
    id, service_name, start_time, end_time, span_count, error_count, input_tokens, output_tokens, total_tokens,
    cost_usd, user_id, session_id
)
SELECT trace_id, min(service_name), min(start_time), max(end_time), count(*), count(*) FILTER (WHERE status = 'error'),
       sum(input_tokens) FILTER (WHERE counts_usage), sum(output_tokens) FILTER (WHERE counts_usage),
       sum(total_tokens) FILTER (WHERE counts_usage), coalesce(sum(cost_usd) FILTER (WHERE counts_usage), 0),
       min(user_id), min(session_id)
FROM trace_spans
WHERE start_time >= %(day)s AND start_time < %(day)s + interval '26 hours' AND created_at = now()
GROUP BY trace_id
"""


def load(pool: StoragePool, connection: psycopg.Connection[Any], spans: int) -> None:
    """Store so many spans, spread over the days before today, and their traces."""
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today - dt.timedelta(days=number) for number in range(DAYS, 0, -1)]
    PartitionManager(pool).ensure(table_of(TraceSpan), [*days, today], at_most=DAYS + 1)
    for day in days:
        traces = spans // DAYS // SPANS_PER_TRACE
        given = {"day": day, "traces": traces, "steps": SPANS_PER_TRACE, "models": [*MODELS], "kinds": len(MODELS)}
        connection.execute("SELECT setseed(0.5)")
        connection.execute(_SPANS, given)
        connection.execute(_TRACES, given)
        connection.commit()
