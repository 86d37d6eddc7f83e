"""Adds to the rollups what was stored without them: before they were there, by an older release, by bare COPY."""

from __future__ import annotations

import uuid
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from observatory_storage.usage import statements
from observatory_storage.usage.recount import insert_parts, recount
from observatory_storage.usage.sums import UsageSums

START: Final = uuid.UUID(int=0)

# The joins have a few hundred keys and are meant to run by index, whatever the planner thinks of their number.
SETTINGS: Final = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL lock_timeout = '5s'"


class Added(NamedTuple):
    """What one step did: the trace after which to go on, None where all were seen; the spans that were added, and the
    traces that may have changed by it."""

    after: uuid.UUID | None
    spans: int
    trace_ids: list[bytes]


def add_unrolled(connection: psycopg.Connection[Any], partition: str, after: uuid.UUID, limit: int) -> Added:
    """Add the model calls of the next traces of a partition of spans; the caller commits.

    Traces that a writer holds, and spans whose trace is not stored, are left out. Locks are taken as writers take
    them: traces first, then spans, and what the locks wait for is seen by the statements that follow.
    """
    connection.execute(SETTINGS)
    query = sql.SQL(statements.UNROLLED_TRACES).format(partition=sql.Identifier(partition))
    found = [row[0] for row in connection.execute(query, {"after": after, "limit": limit})]
    if not found:
        return Added(None, 0, [])
    locked = [row[0].bytes for row in connection.execute(statements.LOCK_TRACES, {"ids": found})]
    sums = UsageSums()
    added = recount(connection, locked, sums)
    insert_parts(connection, sums)
    return Added(found[-1] if len(found) == limit else None, added, locked if added else [])
