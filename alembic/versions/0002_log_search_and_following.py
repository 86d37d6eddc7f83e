"""Logs say which transaction stored them, spans which content came from logs, metrics when they were last sent.

Safe while others write: no table is rewritten, each statement is a transaction of its own that holds a table's
lock for a moment, and indexes are built concurrently. What an interruption left is picked up again.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22
"""

from __future__ import annotations

from typing import Any

import psycopg
from alembic import op

from observatory_storage.lifecycle.indexes import create_partitioned_index, drop_index, index_name, patience

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_INDEX = "logs_transaction_id_idx"
_DEFINITION = "USING brin (transaction_id) WITH (pages_per_range = 32)"
# Rows that writers send again now and then, so that a deletion knows which ones they rely on.
_SEEN = ("metrics", "metric_series")
# What maintenance builds on each partition of logs from this revision on.
_TEXT_INDEX_SUFFIX = "_text_idx"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # The default is set apart from the column: rows that are there keep null and are not rewritten.
        op.execute("ALTER TABLE logs ADD COLUMN IF NOT EXISTS transaction_id bigint")
        op.execute("ALTER TABLE logs ALTER COLUMN transaction_id SET DEFAULT (pg_current_xact_id()::text)::bigint")
        op.execute(
            "ALTER TABLE trace_spans ADD COLUMN IF NOT EXISTS input_from_logs boolean,"
            " ADD COLUMN IF NOT EXISTS output_from_logs boolean"
        )
        for table in _SEEN:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS seen_at timestamptz")
            op.execute(f"ALTER TABLE {table} ALTER COLUMN seen_at SET DEFAULT now()")
        if op.get_context().as_sql:
            # A script does not know which partitions there are.
            op.execute(
                f"-- writers of logs wait for this index; `observatory-storage migrate` builds it beside them\n"
                f"CREATE INDEX IF NOT EXISTS {_INDEX} ON logs {_DEFINITION}"
            )
        else:
            create_partitioned_index(_driver_connection(), "logs", _INDEX, _DEFINITION)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        if not op.get_context().as_sql:
            connection = _driver_connection()
            children = (
                "SELECT relname::text FROM pg_class JOIN pg_inherits ON inhrelid = oid"
                " WHERE inhparent = 'logs'::regclass"
            )
            with patience(connection):
                for (partition,) in connection.execute(children).fetchall():
                    drop_index(connection, index_name(partition, _TEXT_INDEX_SUFFIX))
        for table in _SEEN:
            op.execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS seen_at")
        # Its index goes with the column.
        op.execute("ALTER TABLE logs DROP COLUMN IF EXISTS transaction_id")
        op.execute(
            "ALTER TABLE trace_spans DROP COLUMN IF EXISTS input_from_logs, DROP COLUMN IF EXISTS output_from_logs"
        )


def _driver_connection() -> psycopg.Connection[Any]:
    driver = op.get_bind().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
