"""An index by the names of traces, for the search in them.

Safe while others write: it is built concurrently. What an interruption left is dropped and built again.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-28
"""

from __future__ import annotations

from typing import Any

import psycopg
from alembic import op

from observatory_storage.lifecycle.indexes import create_index, drop_index, patience

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

_INDEX = "traces_project_name_start_time_idx"
_DEFINITION = "(project, left(name, 255), start_time DESC NULLS LAST, id DESC) WHERE name IS NOT NULL"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        if op.get_context().as_sql:
            op.execute(
                "-- writers of spans wait for this index; `observatory-storage migrate` builds it beside them\n"
                f"CREATE INDEX IF NOT EXISTS {_INDEX} ON traces {_DEFINITION}"
            )
        else:
            connection = _driver_connection()
            with patience(connection):
                create_index(connection, "traces", _INDEX, _DEFINITION)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        if op.get_context().as_sql:
            op.execute(f"DROP INDEX IF EXISTS {_INDEX}")
        else:
            connection = _driver_connection()
            with patience(connection):
                drop_index(connection, _INDEX)


def _driver_connection() -> psycopg.Connection[Any]:
    driver = op.get_bind().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
