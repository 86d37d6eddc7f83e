"""Usage by the hour; spans say whether another one repeats their usage.

Safe while others write: no table is rewritten, each statement is a transaction of its own that holds a table's
lock for a moment, and the index of spans is built concurrently. What an interruption left is picked up again.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-22
"""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from observatory_storage.lifecycle.indexes import create_partitioned_index

revision: str = "0004"
down_revision = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_TABLE = "usage_rollups"
_INDEX = "trace_spans_trace_id_idx"
_DEFINITION = "(trace_id) WHERE counts_usage AND repeats_usage IS NULL"
_SUMS = (
    "calls",
    "errors",
    "unpriced_calls",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE trace_spans ADD COLUMN IF NOT EXISTS repeats_usage boolean")
        _create_table()
        op.create_index("usage_rollups_hour_idx", _TABLE, ["hour"], if_not_exists=True)
        op.create_index(
            "usage_rollups_unfolded_idx",
            _TABLE,
            ["key_id", "hour"],
            postgresql_where=sa.text("NOT is_folded"),
            if_not_exists=True,
        )
        if op.get_context().as_sql:
            # A script does not know which partitions there are.
            op.execute(
                "-- writers of spans wait for this index; `observatory-storage migrate` builds it beside them\n"
                f"CREATE INDEX IF NOT EXISTS {_INDEX} ON trace_spans {_DEFINITION}"
            )
        else:
            driver = op.get_bind().connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            create_partitioned_index(driver, "trace_spans", _INDEX, _DEFINITION)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        # Before the older release sums again by this column alone, what each span said comes back. Totals of traces
        # stay without what was repeated.
        op.execute("UPDATE trace_spans SET counts_usage = true WHERE repeats_usage")
        # Its index goes with the column.
        op.execute("ALTER TABLE trace_spans DROP COLUMN IF EXISTS repeats_usage")
        op.execute(f"DROP TABLE IF EXISTS {_TABLE}")


def _create_table() -> None:
    buckets: list[sa.Column[Any]] = []
    for measure in ("latency", "ttft"):
        buckets += [
            sa.Column(
                f"{measure}_buckets", ARRAY(sa.Integer), nullable=False, server_default=sa.text("'{}'::integer[]")
            ),
            sa.Column(
                f"{measure}_counts", ARRAY(sa.BigInteger), nullable=False, server_default=sa.text("'{}'::bigint[]")
            ),
        ]
    op.create_table(
        _TABLE,
        sa.Column("key_id", sa.Uuid, nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("part", sa.Uuid, nullable=False),
        sa.Column("is_folded", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        *(
            sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''"))
            for name in ("service_name", "provider", "model", "operation")
        ),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")) for name in _SUMS),
        sa.Column("cost_usd", sa.Numeric, nullable=False, server_default=sa.text("0")),
        *buckets,
        sa.PrimaryKeyConstraint("key_id", "hour", "part", name="usage_rollups_pkey"),
        if_not_exists=True,
    )
