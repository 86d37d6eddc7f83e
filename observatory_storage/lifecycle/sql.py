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
