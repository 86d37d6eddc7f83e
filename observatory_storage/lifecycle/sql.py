"""The hand-written SQL of the lifecycle; names of tables are formatted in as identifiers."""

from typing import Final

# The partitions of a table with their bounds, DEFAULT included (bounds null); ordered by name.
LIST_PARTITIONS: Final = """
SELECT c.relname::text AS name,
       pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default,
       (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz AS lower,
       (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([^'']+)''\\)'))[1]::timestamptz AS upper
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(table)s::regclass
ORDER BY c.relname
"""

# One maintainer at a time for each table, until the end of the transaction.
LOCK_TABLE_MAINTENANCE: Final = """
SELECT pg_advisory_xact_lock(hashtext('observatory_storage.partitions'), hashtext(%(table)s))
"""

# Short waits: a maintainer gives way to writers and comes back.
MAINTENANCE_SETTINGS: Final = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL lock_timeout = '2s'; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'"
)

# A table like the parent, with its indexes and constraints; attached afterwards, because CREATE TABLE …
# PARTITION OF would wait for every open writer and make new ones wait behind it.
CREATE_LIKE: Final = "CREATE TABLE {partition} (LIKE {table} INCLUDING ALL)"

# Whether DEFAULT holds rows of a range, and whether so many that a writer should not move them.
COUNT_IN_DEFAULT: Final = """
SELECT count(*) FROM (
    SELECT 1 FROM {default} WHERE {column} >= %(lower)s AND {column} < %(upper)s LIMIT %(limit)s
) AS found
"""

SHORT_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '250ms'"

LOCK_DEFAULT: Final = "LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE"

# Rows of the range move with the attachment, or it would be refused (23514).
MOVE_FROM_DEFAULT: Final = """
WITH moved AS (DELETE FROM {default} WHERE {column} >= %(lower)s AND {column} < %(upper)s RETURNING *)
INSERT INTO {partition} SELECT * FROM moved
"""

ATTACH: Final = "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM ({lower}) TO ({upper})"

# What each partition takes; ordered by name. The estimate is -1 before the first ANALYZE or VACUUM.
PARTITION_SIZES: Final = """
SELECT c.relname::text, pg_total_relation_size(c.oid), nullif(c.reltuples, -1)::bigint
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(table)s::regclass ORDER BY c.relname
"""

# What DROP and DETACH lock by themselves, but for DEFAULT: one after the other, so that each wait is a short one.
LOCK_PARENT: Final = "LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"
LOCK_PARTITION: Final = "LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE"
DROP_PARTITION: Final = "DROP TABLE {partition}"
DETACH_PARTITION: Final = "ALTER TABLE {table} DETACH PARTITION {partition}"

# The plain partitions of a table and whether each has its part of a partitioned index; ordered by name.
PARTITIONS_AND_INDEX: Final = """
SELECT c.relname::text AS partition,
       EXISTS (
           SELECT FROM pg_index AS x JOIN pg_inherits AS xi ON xi.inhrelid = x.indexrelid
           WHERE x.indrelid = c.oid AND xi.inhparent = %(index)s::regclass
       ) AS attached
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(table)s::regclass AND c.relkind = 'r'
ORDER BY c.relname
"""

# Whether an index is valid; no row where there is none of that name.
INDEX_IS_VALID: Final = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(quote_ident(%(index)s))"

# Whether a table is there; retention may have dropped it.
TABLE_EXISTS: Final = "SELECT to_regclass(quote_ident(%(table)s)) IS NOT NULL"

CREATE_INDEX: Final = "CREATE INDEX CONCURRENTLY {index} ON {partition} {definition}"

CREATE_INDEX_ON_PARENT: Final = "CREATE INDEX IF NOT EXISTS {index} ON ONLY {table} {definition}"

ATTACH_INDEX: Final = "ALTER INDEX {parent} ATTACH PARTITION {index}"

# The memory for the next builds: an eighth of what the table takes, between 1 MB and what the session had.
LIMIT_BUILD_MEMORY: Final = """
SELECT set_config('maintenance_work_mem', least(
    (SELECT setting::bigint FROM pg_settings WHERE name = 'maintenance_work_mem'),
    greatest(1024, pg_total_relation_size(to_regclass(quote_ident(%(table)s))) / 8192)
) || 'kB', false)
"""

RESET_BUILD_MEMORY: Final = "RESET maintenance_work_mem"

ANALYZE: Final = "ANALYZE {partition}"

# Of columns alone, without what indexes on expressions hold.
ANALYZE_COLUMNS: Final = "ANALYZE {partition} ({columns})"

# ANALYZE keeps the words of all rows that it looks at, 300 for each unit of its target, in memory that nothing bounds.
# So fewer where rows are large: what lies in 32 MB of the table, and what the session would look at at most.
LIMIT_ANALYZED_ROWS: Final = """
WITH wanted AS (
    SELECT setting::bigint AS usual,
           greatest(1, 32 * 1024 * 1024 / 300 * greatest(reltuples, 1)::bigint / greatest(pg_table_size(oid), 1)) AS fit
    FROM pg_class CROSS JOIN pg_settings
    WHERE oid = to_regclass(quote_ident(%(table)s)) AND name = 'default_statistics_target'
)
SELECT set_config('default_statistics_target', least(usual, fit)::text, false)::bigint < usual AS are_fewer FROM wanted
"""

RESET_ANALYZED_ROWS: Final = "RESET default_statistics_target"

# Partitions with rows and a text index whose words the server knows nothing of, the newest first: where ANALYZE was
# kept from them, and those that older releases indexed. What was never analyzed nor indexed has -1 rows. Counted, so
# that each partition is looked up: joined to all statistics, 600 partitions took seven seconds.
UNKNOWN_WORDS: Final = """
SELECT c.relname::text
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_index AS x ON x.indrelid = c.oid AND x.indisvalid
JOIN pg_class AS xc ON xc.oid = x.indexrelid AND right(xc.relname, 9) = '_text_idx'
WHERE i.inhparent = %(table)s::regclass AND c.reltuples <> 0 AND pg_relation_size(c.oid) > 0
  AND (SELECT count(*) FROM pg_stats AS s WHERE s.schemaname = n.nspname AND s.tablename = xc.relname) = 0
ORDER BY c.relname DESC
LIMIT %(at_most)s::integer
"""

# Waits for whoever uses the table, but makes nobody wait behind it.
DROP_INDEX: Final = "DROP INDEX CONCURRENTLY IF EXISTS {index}"

# The session's limit for the wait for a lock, in milliseconds; 0 is none.
LOCK_TIMEOUT: Final = "SELECT setting::integer FROM pg_settings WHERE name = 'lock_timeout'"

SET_LOCK_TIMEOUT: Final = "SELECT set_config('lock_timeout', %(milliseconds)s::text, false)"

# The plain partitions of a table that are closed, which is those whose upper bound has passed by so many
# seconds, and DEFAULT; each with its valid indexes and whether it has a page. Newest first, DEFAULT last.
CLOSED_PARTITIONS: Final = """
SELECT p.name, ARRAY(
    SELECT xc.relname::text FROM pg_index AS x JOIN pg_class AS xc ON xc.oid = x.indexrelid
    WHERE x.indrelid = p.oid AND x.indisvalid
) AS indexes, pg_relation_size(p.oid) > 0 AS has_pages
FROM (
    SELECT c.oid, c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([^'']+)''\\)'))[1]::timestamptz AS upper
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = %(table)s::regclass AND c.relkind = 'r'
) AS p
WHERE p.is_default OR p.upper <= clock_timestamp() - make_interval(secs => %(grace)s::double precision)
ORDER BY p.is_default, p.upper DESC
"""

# Summarises what came in since the last vacuum: what is not summarised, every search by a BRIN index reads.
SUMMARIZE_BRIN: Final = """
SELECT sum(brin_summarize_new_values(x.indexrelid)) FROM pg_index AS x
JOIN pg_class AS c ON c.oid = x.indexrelid
JOIN pg_am AS a ON a.oid = c.relam
WHERE a.amname = 'brin' AND x.indisvalid AND x.indrelid = to_regclass(quote_ident(%(table)s))
"""

# How many rows DEFAULT has of each hour, within bounds.
ROWS_IN_DEFAULT: Final = """
SELECT date_trunc('hour', {column}) AS hour, count(*) AS rows FROM {default}
WHERE {column} >= %(lower)s AND {column} < %(upper)s GROUP BY 1
"""

# One maintainer at a time in a database, until the session ends.
TRY_MAINTENANCE_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('observatory_storage.maintenance'), 0)"

UNLOCK_MAINTENANCE: Final = "SELECT pg_advisory_unlock(hashtext('observatory_storage.maintenance'), 0)"

# The session of whoever maintains waits for locks as long as it is told, and for statements without limit: what
# suits the queries of an application does not suit the building of an index.
MAINTENANCE_SESSION: Final = "SET statement_timeout = 0; SET timezone = 'UTC'; SET datestyle = 'ISO'"
