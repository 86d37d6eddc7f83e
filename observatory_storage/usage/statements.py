"""The SQL that decides what counts, and that adds it up, for writers and maintenance alike."""

from __future__ import annotations

from typing import Final

from observatory_storage.usage.sums import AMOUNTS, DIMENSIONS, TOKENS

_KEY: Final = ("key_id", "hour")
_SUMS: Final = ("calls", "errors", "unpriced_calls", *TOKENS)
_HISTOGRAMS: Final = ("latency_buckets", "latency_counts", "ttft_buckets", "ttft_counts")
_TYPES: Final = {
    "key_id": "uuid",
    "hour": "timestamptz",
    **dict.fromkeys(DIMENSIONS, "text"),
    **dict.fromkeys(_SUMS, "bigint"),
    "cost_usd": "numeric",
    **{name: "integer[]" if name.endswith("_buckets") else "bigint[]" for name in _HISTOGRAMS},
}
_COLUMNS: Final = ", ".join(_TYPES)

# Append what a transaction adds to usage, or takes from it.
INSERT_PARTS: Final = f"""
INSERT INTO usage_rollups ({_COLUMNS}, part)
SELECT {_COLUMNS}, %(part)s::uuid
FROM json_to_recordset(%(rows)s::json) AS given ({", ".join(f"{name} {kind}" for name, kind in _TYPES.items())})
"""

# All spans of some traces, as the rule about nested calls sees them.
SPANS_OF_TRACES: Final = """
SELECT uuid_send(t.id), s.span_id, s.start_time, s.parent_span_id, s.counts_usage, s.repeats_usage, s.has_usage
FROM traces AS t
CROSS JOIN LATERAL (
    SELECT s.span_id, s.start_time, s.parent_span_id, s.counts_usage, s.repeats_usage,
           s.input_tokens > 0 IS TRUE OR s.output_tokens > 0 IS TRUE OR s.total_tokens > 0 IS TRUE
           OR s.cost_usd <> 0 IS TRUE AS has_usage
    FROM trace_spans AS s
    WHERE s.trace_id = t.id AND s.start_time >= t.start_time AND s.start_time <= t.end_time
) AS s
WHERE t.id = ANY(%(ids)s::uuid[])
"""

# Note of model calls whether they count, and return what they used. Each finds its partition by its own start: bounds
# for all of them let the planner walk through that range for each call, where a table was not analyzed yet.
MARK_SPANS: Final = f"""
UPDATE trace_spans AS s SET counts_usage = given.counts, repeats_usage = NOT given.counts
FROM unnest(%(trace_ids)s::uuid[], %(span_ids)s::bytea[], %(start_times)s::timestamptz[], %(counts)s::boolean[])
    AS given (trace_id, span_id, start_time, counts)
WHERE s.trace_id = given.trace_id AND s.span_id = given.span_id AND s.start_time = given.start_time
RETURNING uuid_send(s.trace_id), s.span_id, s.start_time, {", ".join(f"s.{name}" for name in (*DIMENSIONS, *AMOUNTS))}
"""

# Sum the usage of traces anew from their spans, under their locks.
RECOUNT_TRACES: Final = """
UPDATE traces AS t SET
    input_tokens = spans.input_tokens, output_tokens = spans.output_tokens, total_tokens = spans.total_tokens,
    cost_usd = spans.cost_usd, updated_at = %(now)s::timestamptz
FROM traces AS b
CROSS JOIN LATERAL (
    SELECT coalesce(sum(s.input_tokens), 0)::bigint AS input_tokens,
           coalesce(sum(s.output_tokens), 0)::bigint AS output_tokens,
           coalesce(sum(s.total_tokens), 0)::bigint AS total_tokens,
           coalesce(sum(s.cost_usd), 0) AS cost_usd
    FROM trace_spans AS s
    WHERE s.trace_id = b.id AND s.counts_usage AND s.start_time >= b.start_time AND s.start_time <= b.end_time
) AS spans
WHERE b.id = t.id AND b.id = ANY(%(ids)s::uuid[]) AND t.id = ANY(%(ids)s::uuid[])
"""


def _merged(measure: str) -> str:
    return f"""{measure} AS (
    SELECT key_id, hour, array_agg(bucket ORDER BY bucket) AS buckets, array_agg(size ORDER BY bucket) AS counts
    FROM (
        SELECT key_id, hour, bucket, sum(size)::bigint AS size
        FROM gone, unnest(gone.{measure}_buckets, gone.{measure}_counts) AS counted (bucket, size)
        GROUP BY key_id, hour, bucket HAVING sum(size) <> 0
    ) AS counted
    GROUP BY key_id, hour
)"""


# Merge some parts that wait with each other and with what is folded of the same hour and dimensions. What another
# session holds is left to it, so that an hour can be in several folded parts; each part is in one place at any time.
FOLD: Final = f"""
WITH waiting AS MATERIALIZED (
    SELECT key_id, hour, part FROM usage_rollups
    WHERE NOT is_folded
    ORDER BY key_id, hour LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), folded AS MATERIALIZED (
    SELECT u.key_id, u.hour, u.part
    FROM (SELECT DISTINCT key_id, hour FROM waiting) AS w
    JOIN usage_rollups AS u ON u.key_id = w.key_id AND u.hour = w.hour AND u.is_folded
    FOR UPDATE OF u SKIP LOCKED
), gone AS (
    DELETE FROM usage_rollups AS u
    USING (SELECT * FROM waiting UNION ALL SELECT * FROM folded) AS taken
    WHERE u.key_id = taken.key_id AND u.hour = taken.hour AND u.part = taken.part
    RETURNING u.*
), {_merged("latency")}, {_merged("ttft")}, made AS (
    INSERT INTO usage_rollups ({_COLUMNS}, part, is_folded)
    SELECT gone.key_id, gone.hour, {", ".join(f"min(gone.{name})" for name in DIMENSIONS)},
           {", ".join(f"sum(gone.{name})::bigint" for name in _SUMS)}, sum(gone.cost_usd),
           coalesce(min(latency.buckets), '{{}}'), coalesce(min(latency.counts), '{{}}'),
           coalesce(min(ttft.buckets), '{{}}'), coalesce(min(ttft.counts), '{{}}'), %(part)s::uuid, true
    FROM gone
    LEFT JOIN latency ON latency.key_id = gone.key_id AND latency.hour = gone.hour
    LEFT JOIN ttft ON ttft.key_id = gone.key_id AND ttft.hour = gone.hour
    GROUP BY gone.key_id, gone.hour
    HAVING {" OR ".join(f"sum(gone.{name}) <> 0" for name in (*_SUMS, "cost_usd"))}
       OR count(latency.key_id) > 0 OR count(ttft.key_id) > 0
)
SELECT count(*) FROM waiting
"""

# Traces with model calls of a partition that are not in the rollups: those that were there before the rollups were,
# and what a writer of an older release or bare COPY wrote since.
UNROLLED_TRACES: Final = """
SELECT DISTINCT s.trace_id FROM {partition} AS s
WHERE s.counts_usage AND s.repeats_usage IS NULL AND s.trace_id > %(after)s::uuid
ORDER BY s.trace_id LIMIT %(limit)s
"""

# Lock traces that nobody holds, in id order.
LOCK_TRACES: Final = """
SELECT id FROM traces WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
"""

COUNT_WAITING: Final = "SELECT count(*) FROM usage_rollups WHERE NOT is_folded"

# The model calls of stored traces that are not in the rollups.
COUNT_UNROLLED: Final = """
SELECT count(*) FROM trace_spans AS s
WHERE s.counts_usage AND s.repeats_usage IS NULL AND EXISTS (SELECT FROM traces AS t WHERE t.id = s.trace_id)
"""
