"""The hand-written SQL of retention; names of tables and columns are formatted in as identifiers."""

from typing import Final

# Short waits: retention gives way and comes back. The role's own statement_timeout stays.
SETTINGS: Final = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL lock_timeout = '2s'; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'"
)

# The projects that have rows in a relation with an index on (project, …): one descent into the index for each.
PROJECTS: Final = """
WITH RECURSIVE found AS (
    (SELECT r.project FROM ONLY {relation} AS r ORDER BY r.project LIMIT 1)
    UNION ALL
    SELECT (SELECT r.project FROM ONLY {relation} AS r WHERE r.project > f.project ORDER BY r.project LIMIT 1)
    FROM found AS f WHERE f.project IS NOT NULL
)
SELECT project FROM found WHERE project IS NOT NULL
"""

# The same of points, by one descent for each metric, whose id says its project.
PROJECTS_OF_POINTS: Final = """
WITH RECURSIVE found AS (
    (SELECT r.metric_id, r.project FROM ONLY {relation} AS r ORDER BY r.metric_id LIMIT 1)
    UNION ALL
    SELECT n.metric_id, n.project FROM found AS f CROSS JOIN LATERAL (
        SELECT r.metric_id, r.project FROM ONLY {relation} AS r
        WHERE r.metric_id > f.metric_id ORDER BY r.metric_id LIMIT 1
    ) AS n
)
SELECT DISTINCT project FROM found ORDER BY project
"""

# A relation that was never analyzed must not be sorted to find its first project.
BY_INDEX: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"

CLOCK: Final = "SELECT clock_timestamp()"

BLOCKS: Final = """
SELECT pg_relation_size(to_regclass(quote_ident(%(relation)s))) / current_setting('block_size')::bigint
"""

_EXPIRED: Final = """
    SELECT r.ctid FROM ONLY {relation} AS r
    JOIN unnest(%(projects)s::text[], %(borders)s::timestamptz[]) AS given (project, border)
      ON given.project = r.project AND r.{column} < given.border
    WHERE r.ctid >= %(first)s::tid AND r.ctid < %(last)s::tid
"""
_ORPHANED: Final = """
      AND NOT EXISTS (
          SELECT FROM traces AS t
          WHERE t.id = r.trace_id AND (t.start_time IS NULL OR t.start_time <= r.{column})
      )
"""

# Delete what is expired in some blocks of a relation.
DELETE_EXPIRED: Final = (
    f"DELETE FROM ONLY {{relation}} WHERE ctid = ANY (ARRAY({_EXPIRED} FOR UPDATE OF r SKIP LOCKED))"
)

# Delete the spans or events in some blocks whose trace is gone.
DELETE_ORPHANED: Final = (
    f"DELETE FROM ONLY {{relation}} WHERE ctid = ANY (ARRAY({_EXPIRED}{_ORPHANED} FOR UPDATE OF r SKIP LOCKED))"
)

# Delete expired packs of messages in some blocks that no trace uses any more.
DELETE_UNUSED_PACKS: Final = f"""
DELETE FROM ONLY {{relation}} WHERE ctid = ANY (ARRAY({_EXPIRED}
      AND NOT EXISTS (
          SELECT FROM message_uses AS u JOIN traces AS t ON t.id = u.trace_id
          WHERE u.pack_id = r.id AND u.period = r.period
      ) FOR UPDATE OF r SKIP LOCKED))
"""

# Delete from some blocks what refers to a pack that is gone.
DELETE_WITHOUT_PACK: Final = """
DELETE FROM ONLY {relation} WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM ONLY {relation} AS r
    WHERE r.ctid >= %(first)s::tid AND r.ctid < %(last)s::tid
      AND NOT EXISTS (SELECT FROM message_packs AS p WHERE p.id = r.pack_id AND p.period = r.{column})
    FOR UPDATE OF r SKIP LOCKED
))
"""

HAS_EXPIRED: Final = """
SELECT EXISTS (
    SELECT FROM ONLY {relation} AS r
    JOIN unnest(%(projects)s::text[], %(borders)s::timestamptz[]) AS given (project, border)
      ON given.project = r.project AND r.{column} < given.border
)
"""

COUNT_EXPIRED: Final = """
SELECT count(*) FROM ONLY {relation} AS r
JOIN unnest(%(projects)s::text[], %(borders)s::timestamptz[]) AS given (project, border)
  ON given.project = r.project AND r.{column} < given.border
"""

# Spans or events that go with their traces, or whose traces are gone.
COUNT_OF_EXPIRED_TRACES: Final = (
    COUNT_EXPIRED
    + """
LEFT JOIN traces AS t ON t.id = r.trace_id AND (t.start_time IS NULL OR t.start_time <= r.{column})
LEFT JOIN unnest(%(projects)s::text[], %(borders)s::timestamptz[], %(cutoffs)s::timestamptz[])
    AS own (project, border, cutoff)
  ON own.project = t.project AND t.start_time < own.border AND coalesce(t.end_time, t.start_time) < own.cutoff
WHERE t.id IS NULL OR own.project IS NOT NULL
"""
)

_DATED: Final = "t.start_time < %(border)s AND coalesce(t.end_time, t.start_time) < %(cutoff)s"
_UNDATED: Final = "t.start_time IS NULL AND coalesce(t.end_time, t.created_at) < %(cutoff)s"

# The next expired traces of a project that nobody holds, the oldest first, locked.
DATED_TRACES: Final = f"""
SELECT t.id, t.start_time, t.end_time FROM traces AS t
WHERE t.project = %(project)s AND {_DATED}
  AND (%(after_time)s::timestamptz IS NULL OR (t.start_time, t.id) > (%(after_time)s, %(after_id)s::uuid))
ORDER BY t.start_time, t.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
UNDATED_TRACES: Final = f"""
SELECT t.id, t.start_time, t.end_time FROM traces AS t
WHERE t.project = %(project)s AND {_UNDATED} AND (%(after_id)s::uuid IS NULL OR t.id > %(after_id)s)
ORDER BY t.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
COUNT_TRACES: Final = f"SELECT count(*) FROM traces AS t WHERE t.project = %(project)s AND ({_DATED} OR {_UNDATED})"

DELETE_OF_TRACES: Final = """
DELETE FROM {table} WHERE trace_id = ANY(%(ids)s::uuid[])
  AND {column} >= coalesce(%(lower)s, '-infinity'::timestamptz)
  AND {column} < coalesce(%(upper)s, 'infinity'::timestamptz)
"""
DELETE_TRACES: Final = "DELETE FROM traces WHERE id = ANY(%(ids)s::uuid[])"

# Whether a trace that is still there, of these projects, has a span in a partition. Of some traces the spans may
# be expired while the trace is not; `cutoffs` is that of each project, or infinite to ask for all that are there.
HAS_TRACES: Final = """
SELECT EXISTS (
    SELECT FROM unnest(%(projects)s::text[], %(cutoffs)s::timestamptz[]) AS given (project, cutoff)
    JOIN traces AS t ON t.project = given.project AND t.start_time < %(upper)s
     AND coalesce(t.end_time, t.start_time) >= given.cutoff
    WHERE EXISTS (SELECT FROM ONLY {relation} AS s WHERE s.trace_id = t.id AND s.start_time >= t.start_time)
)
"""

HAS_SPANS: Final = "SELECT EXISTS (SELECT FROM trace_spans WHERE start_time >= %(lower)s AND start_time < %(upper)s)"
# Uses of messages by traces that first used them later than the times of their partition, and that are still there:
# where partitions were removed and made anew with another width, a period may lie before the partition of its spans.
HAS_LATER_USES: Final = """
SELECT EXISTS (
    SELECT FROM message_uses AS u
    WHERE u.period >= %(lower)s AND u.period < %(end)s AND u.start_time >= %(upper)s
      AND EXISTS (
          SELECT FROM trace_spans AS s
          WHERE s.trace_id = u.trace_id AND s.start_time >= %(upper)s AND s.start_time < %(end)s + interval '31 days'
      )
)
"""
HAS_PACKS: Final = "SELECT EXISTS (SELECT FROM message_packs WHERE period >= %(lower)s AND period < %(upper)s)"
HAS_OTHER_PROJECTS: Final = (
    "SELECT EXISTS (SELECT FROM ONLY {relation} AS r WHERE r.project <> ALL(%(projects)s::text[]))"
)
EVENT_PROJECTS: Final = "SELECT DISTINCT project FROM ONLY {relation} ORDER BY project"

# The next series that no writer sent since the cutoff, locked; writers lock those that they send until they commit.
NEXT_SERIES: Final = """
SELECT s.metric_id, s.id FROM metric_series AS s
WHERE s.project = %(project)s AND coalesce(s.seen_at, s.created_at) < %(cutoff)s
  AND (%(after_metric)s::uuid IS NULL OR (s.metric_id, s.id) > (%(after_metric)s, %(after_id)s::uuid))
ORDER BY s.metric_id, s.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
DELETE_SERIES: Final = """
DELETE FROM metric_series AS s USING unnest(%(metrics)s::uuid[], %(ids)s::uuid[]) AS given (metric_id, id)
WHERE s.metric_id = given.metric_id AND s.id = given.id AND (
    SELECT true FROM metric_data_points AS p WHERE p.metric_id = s.metric_id AND p.series_id = s.id LIMIT 1
) IS NULL
"""
NEXT_METRICS: Final = """
SELECT m.id, m.id FROM metrics AS m
WHERE m.project = %(project)s AND coalesce(m.seen_at, m.created_at) < %(cutoff)s
  AND (%(after_metric)s::uuid IS NULL OR m.id > %(after_metric)s)
ORDER BY m.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
DELETE_METRICS: Final = """
DELETE FROM metrics AS m WHERE m.id = ANY(%(ids)s::uuid[])
  AND (SELECT true FROM metric_series AS s WHERE s.metric_id = m.id LIMIT 1) IS NULL
  AND (SELECT true FROM metric_data_points AS p WHERE p.metric_id = m.id LIMIT 1) IS NULL
"""
# Each combination of dimensions with rollups before a time, and the first hour that it has.
KEYS_OF_USAGE: Final = """
SELECT u.key_id, min(u.project), min(u.hour) FROM usage_rollups AS u
WHERE u.hour < %(horizon)s GROUP BY u.key_id ORDER BY u.key_id
"""
COUNT_USAGE: Final = """
SELECT count(*) FROM usage_rollups AS u
JOIN unnest(%(key_ids)s::uuid[], %(borders)s::timestamptz[]) AS given (key_id, border)
  ON given.key_id = u.key_id AND u.hour < given.border
"""
# Delete the first expired parts of one combination that nobody folds.
DELETE_USAGE: Final = """
WITH expired AS MATERIALIZED (
    SELECT u.key_id, u.hour, u.part FROM usage_rollups AS u
    WHERE u.key_id = %(key_id)s AND u.hour < %(border)s
    ORDER BY u.key_id, u.hour, u.part LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM usage_rollups AS u USING expired
WHERE u.key_id = %(key_id)s AND u.key_id = expired.key_id AND u.hour = expired.hour AND u.part = expired.part
"""
PROJECTS_OF_METRICS: Final = "SELECT DISTINCT project FROM metrics ORDER BY project"
