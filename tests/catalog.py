"""Everything PostgreSQL's catalog says of a database's public schema, as comparable lines."""

from __future__ import annotations

import psycopg

_QUERIES = {
    "relation": """
        SELECT relname, relkind, relpersistence, relispartition, coalesce(reloptions::text, ''),
               coalesce(pg_get_partkeydef(oid), ''), coalesce(pg_get_expr(relpartbound, oid), '')
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
    """,
    "column": """
        SELECT attrelid::regclass, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
               attgenerated, attstorage, attcompression, attcollation::regcollation,
               coalesce(pg_get_expr(adbin, adrelid), '')
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
    """,
    "constraint": """
        SELECT conrelid::regclass, conname, contype, convalidated, conislocal, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    """,
    "index": """
        SELECT indrelid::regclass, indisvalid, indisready, indisunique, indisprimary, pg_get_indexdef(indexrelid)
        FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace = 'public'::regnamespace
    """,
    "inheritance": "SELECT inhrelid::regclass, inhparent::regclass FROM pg_inherits",
    "function": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "trigger": "SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT tgisinternal",
    "type": "SELECT typname, typtype FROM pg_type WHERE typnamespace = 'public'::regnamespace",
    "extension": "SELECT extname FROM pg_extension",
}


def describe(url: str) -> set[str]:
    """One line for each object and each property that matters."""
    with psycopg.connect(url) as connection:
        return {
            " ".join([kind, *map(str, row)])
            for kind, query in _QUERIES.items()
            for row in connection.execute(query).fetchall()
        }
