"""Messages are stored once, and spans refer to them.

Safe while others write: the new column is added without a rewrite, by a lock on the table that is held for a moment,
and what is stored already stays as it is. Downgrading puts the content of spans back into their own columns.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

_TIMESTAMP = sa.DateTime(timezone=True)
_TABLES = ("messages", "message_packs", "message_uses")

# As they were when this revision was made.
_MESSAGE_TEXT = """
CREATE FUNCTION observatory_message_text(message jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
SELECT left(string_agg(found.value #>> '{}', chr(10)), 125000) FROM (
    SELECT member -> 'value' AS value
    FROM jsonb_path_query(message, 'strict $.** ? (@.type() == "object").keyvalue()') AS member
    WHERE jsonb_typeof(member -> 'value') = 'string'
      AND member ->> 'key' NOT IN ('role', 'type', 'finish_reason')
    UNION ALL
    SELECT value FROM jsonb_path_query(
        message, 'strict $.** ? (@.type() == "array")[*] ? (@.type() == "string")'
    ) AS value
    UNION ALL
    SELECT message WHERE jsonb_typeof(message) = 'string'
) AS found
$function$
"""
_CONTENT = """
CREATE FUNCTION observatory_content(refs bigint[], part integer, finish_reason text) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE AS $function$
SELECT jsonb_agg(
    CASE WHEN run.bits >> 32 & 1 = 1 AND jsonb_typeof(found.message) = 'object'
         THEN found.message || jsonb_build_object('finish_reason', finish_reason)
         ELSE found.message END
    ORDER BY run.place, found.position
)
FROM (
    SELECT place, refs[place] AS pack_id, refs[place + 1] AS bits
    FROM generate_series(2, cardinality(refs), 2) AS place
    WHERE refs[place + 1] >> 33 = part
) AS run
JOIN message_packs AS pack
  ON pack.period = timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => refs[1] / 1000000::double precision)
 AND pack.id = run.pack_id
CROSS JOIN LATERAL jsonb_array_elements(pack.messages) WITH ORDINALITY AS found (message, position)
WHERE found.position > (run.bits >> 16 & 65535)
  AND found.position <= (run.bits >> 16 & 65535) + (run.bits & 65535)
$function$
"""
_SPAN_CONTENT = """
CREATE VIEW span_content AS
SELECT s.trace_id, s.span_id, s.start_time, s.project,
       CASE WHEN s.content_refs IS NULL THEN s.input
            WHEN observatory_content(s.content_refs, 0, s.finish_reason) IS NULL THEN s.input
            WHEN jsonb_typeof(s.input) = 'object'
            THEN s.input || jsonb_build_object('messages', observatory_content(s.content_refs, 0, s.finish_reason))
            ELSE observatory_content(s.content_refs, 0, s.finish_reason) END AS input,
       CASE WHEN s.content_refs IS NULL THEN s.output
            WHEN observatory_content(s.content_refs, 1, s.finish_reason) IS NULL THEN s.output
            WHEN jsonb_typeof(s.output) = 'object'
            THEN s.output || jsonb_build_object('messages', observatory_content(s.content_refs, 1, s.finish_reason))
            ELSE observatory_content(s.content_refs, 1, s.finish_reason) END AS output,
       CASE WHEN s.content_refs IS NULL THEN s.attributes ELSE s.attributes || coalesce((
           SELECT jsonb_object_agg(member.key, member.value)
           FROM jsonb_array_elements(observatory_content(s.content_refs, 2, NULL)) AS part (content)
           CROSS JOIN LATERAL jsonb_each(
               CASE jsonb_typeof(part.content) WHEN 'object' THEN part.content ELSE '{}' END
           ) AS member
       ), '{}'::jsonb) END AS attributes
FROM trace_spans AS s
"""
_PUT_BACK = """
UPDATE trace_spans AS s SET input = c.input, output = c.output, attributes = c.attributes
FROM span_content AS c
WHERE s.content_refs IS NOT NULL
  AND c.trace_id = s.trace_id AND c.span_id = s.span_id AND c.start_time = s.start_time
"""


def upgrade() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("period", _TIMESTAMP, nullable=False),
        sa.Column("pack_id", sa.BigInteger, nullable=False),
        sa.Column("position", sa.SmallInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", "period", name="messages_pkey"),
        postgresql_partition_by="RANGE (period)",
    )
    op.create_table(
        "message_packs",
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("period", _TIMESTAMP, nullable=False),
        sa.Column("project", sa.Text, nullable=False, server_default=sa.text("'default'")),
        sa.Column("messages", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("id", "period", name="message_packs_pkey"),
        postgresql_partition_by="RANGE (period)",
    )
    op.create_table(
        "message_uses",
        sa.Column("pack_id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("start_time", _TIMESTAMP, nullable=False),
        sa.Column("trace_id", sa.Uuid, nullable=False),
        sa.Column("period", _TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "start_time", "trace_id", "period", name="message_uses_pkey"),
        postgresql_partition_by="RANGE (period)",
    )
    for table in _TABLES:
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    # Without a default: rows that are there are not touched.
    op.add_column("trace_spans", sa.Column("content_refs", sa.ARRAY(sa.BigInteger)))
    for statement in (_MESSAGE_TEXT, _CONTENT, _SPAN_CONTENT):
        op.execute(sa.text(statement.replace(":", "\\:")))


def downgrade() -> None:
    op.execute(_PUT_BACK)
    op.execute("DROP VIEW span_content")
    op.execute("DROP FUNCTION observatory_content(bigint[], integer, text)")
    op.drop_column("trace_spans", "content_refs")
    for table in reversed(_TABLES):
        for partition in _partitions(table):
            op.execute(f"DROP TABLE {partition}")
        op.drop_table(table)
    # Indexes of partitions that maintenance built need it until now.
    op.execute("DROP FUNCTION observatory_message_text(jsonb)")


def _partitions(table: str) -> list[str]:
    if op.get_context().as_sql:
        return [f"{table}_default"]
    children = sa.text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:table)")
    return list(op.get_bind().scalars(children, {"table": table}))
