"""The tables of traces, metrics and logs, with one DEFAULT partition for each partitioned table.

Revision ID: 0001
Revises:
Create Date: 2026-11-22
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_TIMESTAMP = sa.DateTime(timezone=True)
_TABLES = (
    "resources",
    "traces",
    "trace_spans",
    "trace_events",
    "metrics",
    "metric_series",
    "metric_data_points",
    "logs",
)
_PARTITIONED = ("trace_spans", "trace_events", "metric_data_points", "logs")


def upgrade() -> None:
    op.create_table(
        "resources",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("service_name", sa.Text),
        sa.Column("schema_url", sa.Text),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="resources_pkey"),
    )

    op.create_table(
        "traces",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("name", sa.Text),
        sa.Column("service_name", sa.Text),
        sa.Column("has_root", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("root_span_id", sa.LargeBinary),
        sa.Column("root_start_time", _TIMESTAMP),
        sa.Column("start_time", _TIMESTAMP),
        sa.Column("end_time", _TIMESTAMP),
        sa.Column("duration_us", sa.BigInteger),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'unset'")),
        sa.Column("status_message", sa.Text),
        sa.Column("own_status", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("span_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("error_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("input_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("output_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("total_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("cost_usd", sa.Numeric, nullable=False, server_default=sa.text("0")),
        sa.Column("user_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("resource_id", sa.Uuid),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("own_attributes", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.Column("updated_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="traces_pkey"),
        sa.CheckConstraint("status IN ('unset', 'ok', 'error')", name=op.f("traces_status_check")),
    )
    op.create_index("traces_start_time_idx", "traces", [sa.text("start_time DESC NULLS LAST"), sa.text("id DESC")])
    op.create_index(
        "traces_errors_idx",
        "traces",
        ["project", sa.text("start_time DESC NULLS LAST"), sa.text("id DESC")],
        postgresql_where=sa.text("status = 'error' OR error_count > 0"),
    )
    op.create_index(
        "traces_project_service_name_start_time_idx",
        "traces",
        ["project", "service_name", sa.text("start_time DESC NULLS LAST"), sa.text("id DESC")],
    )
    op.create_index(
        "traces_project_start_time_idx",
        "traces",
        ["project", sa.text("start_time DESC NULLS LAST"), sa.text("id DESC")],
    )
    op.create_index(
        "traces_session_id_idx",
        "traces",
        ["session_id", sa.text("start_time DESC NULLS LAST")],
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index(
        "traces_user_id_idx",
        "traces",
        ["user_id", sa.text("start_time DESC NULLS LAST")],
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )

    op.create_table(
        "trace_spans",
        sa.Column("trace_id", sa.Uuid, nullable=False),
        sa.Column("span_id", sa.LargeBinary, nullable=False),
        sa.Column("start_time", _TIMESTAMP, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("parent_span_id", sa.LargeBinary),
        sa.Column("name", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("kind", sa.Text, nullable=False, server_default=sa.text("'unspecified'")),
        sa.Column("service_name", sa.Text),
        sa.Column("end_time", _TIMESTAMP),
        sa.Column("duration_us", sa.BigInteger),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'unset'")),
        sa.Column("status_message", sa.Text),
        sa.Column("operation", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("response_model", sa.Text),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cached_input_tokens", sa.BigInteger),
        sa.Column("cache_write_input_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("total_tokens", sa.BigInteger),
        sa.Column("counts_usage", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("input_cost_usd", sa.Numeric),
        sa.Column("output_cost_usd", sa.Numeric),
        sa.Column("cost_usd", sa.Numeric),
        sa.Column("ttft_us", sa.BigInteger),
        sa.Column("finish_reason", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("environment", sa.Text),
        sa.Column("tags", sa.ARRAY(sa.Text)),
        sa.Column("input", JSONB),
        sa.Column("output", JSONB),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("links", JSONB),
        sa.Column("scope_name", sa.Text),
        sa.Column("scope_version", sa.Text),
        sa.Column("scope_attributes", JSONB),
        sa.Column("trace_state", sa.Text),
        sa.Column("flags", sa.BigInteger),
        sa.Column("dropped_attributes_count", sa.BigInteger),
        sa.Column("dropped_events_count", sa.BigInteger),
        sa.Column("dropped_links_count", sa.BigInteger),
        sa.Column("resource_id", sa.Uuid),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("trace_id", "span_id", "start_time", name="trace_spans_pkey"),
        sa.CheckConstraint(
            "kind IN ('unspecified', 'internal', 'server', 'client', 'producer', 'consumer')",
            name=op.f("trace_spans_kind_check"),
        ),
        sa.CheckConstraint("octet_length(span_id) = 8", name=op.f("trace_spans_span_id_check")),
        sa.CheckConstraint("status IN ('unset', 'ok', 'error')", name=op.f("trace_spans_status_check")),
        postgresql_partition_by="RANGE (start_time)",
    )
    op.create_index(
        "trace_spans_model_start_time_idx",
        "trace_spans",
        ["model", sa.text("start_time DESC")],
        postgresql_where=sa.text("model IS NOT NULL"),
    )
    op.create_index(
        "trace_spans_open_idx",
        "trace_spans",
        ["trace_id", "span_id"],
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_index("trace_spans_project_start_time_idx", "trace_spans", ["project", sa.text("start_time DESC")])

    op.create_table(
        "trace_events",
        sa.Column("trace_id", sa.Uuid, nullable=False),
        sa.Column("span_id", sa.LargeBinary, nullable=False),
        sa.Column("span_start_time", _TIMESTAMP, nullable=False),
        sa.Column("event_index", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("timestamp", _TIMESTAMP, nullable=False),
        sa.Column("name", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("dropped_attributes_count", sa.BigInteger),
        sa.PrimaryKeyConstraint("trace_id", "span_id", "span_start_time", "event_index", name="trace_events_pkey"),
        sa.CheckConstraint("octet_length(span_id) = 8", name=op.f("trace_events_span_id_check")),
        postgresql_partition_by="RANGE (span_start_time)",
    )

    op.create_table(
        "metrics",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("service_name", sa.Text),
        sa.Column("scope_name", sa.Text),
        sa.Column("scope_version", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("unit", sa.Text),
        sa.Column("metric_type", sa.Text, nullable=False),
        sa.Column("temporality", sa.Text, nullable=False, server_default=sa.text("'unspecified'")),
        sa.Column("is_monotonic", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="metrics_pkey"),
        sa.CheckConstraint(
            "metric_type IN ('gauge', 'counter', 'histogram', 'exponential_histogram', 'summary')",
            name=op.f("metrics_metric_type_check"),
        ),
        sa.CheckConstraint(
            "temporality IN ('unspecified', 'delta', 'cumulative')", name=op.f("metrics_temporality_check")
        ),
    )
    op.create_index("metrics_project_name_idx", "metrics", ["project", "name"])

    op.create_table(
        "metric_series",
        sa.Column("metric_id", sa.Uuid, nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("resource_id", sa.Uuid),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("metric_id", "id", name="metric_series_pkey"),
    )

    op.create_table(
        "metric_data_points",
        sa.Column("metric_id", sa.Uuid, nullable=False),
        sa.Column("series_id", sa.Uuid, nullable=False),
        sa.Column("timestamp", _TIMESTAMP, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("start_time", _TIMESTAMP),
        sa.Column("flags", sa.BigInteger),
        sa.Column("value", sa.Double),
        sa.Column("value_int", sa.BigInteger),
        sa.Column("count", sa.BigInteger),
        sa.Column("sum", sa.Double),
        sa.Column("min", sa.Double),
        sa.Column("max", sa.Double),
        sa.Column("bucket_bounds", sa.ARRAY(sa.Double)),
        sa.Column("bucket_counts", sa.ARRAY(sa.BigInteger)),
        sa.Column("scale", sa.Integer),
        sa.Column("zero_count", sa.BigInteger),
        sa.Column("zero_threshold", sa.Double),
        sa.Column("positive_offset", sa.Integer),
        sa.Column("positive_counts", sa.ARRAY(sa.BigInteger)),
        sa.Column("negative_offset", sa.Integer),
        sa.Column("negative_counts", sa.ARRAY(sa.BigInteger)),
        sa.Column("quantiles", JSONB),
        sa.Column("exemplars", JSONB),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("metric_id", "series_id", "timestamp", name="metric_data_points_pkey"),
        postgresql_partition_by="RANGE (timestamp)",
    )

    op.create_table(
        "logs",
        sa.Column("timestamp", _TIMESTAMP, nullable=False),
        sa.Column("route_id", sa.Uuid, nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("observed_timestamp", _TIMESTAMP),
        sa.Column("severity_number", sa.Integer),
        sa.Column("severity_text", sa.Text),
        sa.Column("body", sa.Text),
        sa.Column("body_json", JSONB),
        sa.Column("event_name", sa.Text),
        sa.Column("trace_id", sa.Uuid),
        sa.Column("span_id", sa.LargeBinary),
        sa.Column("trace_flags", sa.BigInteger),
        sa.Column("service_name", sa.Text),
        sa.Column("scope_name", sa.Text),
        sa.Column("scope_version", sa.Text),
        sa.Column("scope_attributes", JSONB),
        sa.Column("attributes", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("dropped_attributes_count", sa.BigInteger),
        sa.Column("resource_id", sa.Uuid),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("timestamp", "route_id", "id", name="logs_pkey"),
        sa.CheckConstraint("severity_number BETWEEN 0 AND 24", name=op.f("logs_severity_number_check")),
        postgresql_partition_by="RANGE (timestamp)",
    )
    op.create_index(
        "logs_attributes_idx",
        "logs",
        ["attributes"],
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
    )
    op.create_index(
        "logs_project_service_name_timestamp_idx",
        "logs",
        ["project", "service_name", sa.text("timestamp DESC")],
    )
    op.create_index("logs_trace_id_idx", "logs", ["trace_id"], postgresql_where=sa.text("trace_id IS NOT NULL"))
    for table in _PARTITIONED:
        # A row that no other partition takes, as one from a broken clock, still lands.
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")


def downgrade() -> None:
    for table in reversed(_TABLES):
        for partition in _partitions(table) if table in _PARTITIONED else ():
            op.execute(f"DROP TABLE {partition}")
        op.drop_table(table)


def _partitions(table: str) -> list[str]:
    if op.get_context().as_sql:
        return [f"{table}_default"]
    children = sa.text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:table)")
    return list(op.get_bind().scalars(children, {"table": table}))
