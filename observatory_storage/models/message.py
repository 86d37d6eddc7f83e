"""Messages that are stored once: what spans refer to instead of holding a copy each.

Agent runs resend the whole conversation with each call. Each different message of a project is stored once in each
period, which is the partition of the spans that refer to it. Why packs and runs: `docs/decisions/messages-once.md`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from sqlalchemy import Connection, MetaData, SmallInteger, event
from sqlalchemy.orm import Mapped, mapped_column

from observatory_storage.models.base import Base, partitioned_by
from observatory_storage.models.types import BigInt, ContentId, Json, Project, Timestamp, TraceId

INPUT, OUTPUT, ATTRIBUTES = range(3)
"""What a run of a span's references stands for, see `TraceSpan.content_refs`."""

MESSAGE_TABLES: Final = ("messages", "message_packs", "message_uses")
"""The tables whose partitions are as wide as those of `trace_spans`."""

REPEATED_ATTRIBUTES: Final = (
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
    "gen_ai.request.tools",
    "ai.prompt.tools",
    "llm.invocation_parameters",
    "model_request_parameters",
)
"""Attributes that clients repeat with each call: definitions of tools, instructions, parameters with both in them."""

FLATTENED_ATTRIBUTES: Final = {
    "llm.tools.0.tool.json_schema": "llm.tools.",
    "llm.request.functions.0.name": "llm.request.functions.",
}
"""The same flattened to one attribute for each tool: the name of the first one, and what all begin with."""


def may_be_shared(attribute: str) -> bool:
    """Tell whether spans may have an attribute of this name among the messages instead of their own."""
    return attribute in REPEATED_ATTRIBUTES or attribute.startswith(tuple(FLATTENED_ATTRIBUTES.values()))


SEARCHED_CHARACTERS: Final = 125_000
"""How many characters of a pack, or of a message, a search looks at."""

PACK_VECTOR_SQL: Final = "to_tsvector('simple', observatory_message_text(messages))"
"""The expression of the text index of each partition of packs."""

_Position = Annotated[int, mapped_column(SmallInteger)]


class MessagePack(Base):
    """Messages that came together, as one JSON array, so that PostgreSQL compresses them together.

    A null in `messages` is a place that is not used. The id is random.
    """

    __tablename__ = "message_packs"

    id: Mapped[BigInt] = mapped_column(primary_key=True, autoincrement=False)
    period: Mapped[Timestamp] = mapped_column(primary_key=True)
    project: Mapped[Project]
    messages: Mapped[Json]

    __table_args__: Any = (partitioned_by("period"),)


class Message(Base):
    """Where a message is: its pack and the place in it. The id is the address of its content and its project."""

    __tablename__ = "messages"

    id: Mapped[ContentId] = mapped_column(primary_key=True)
    period: Mapped[Timestamp] = mapped_column(primary_key=True)
    pack_id: Mapped[BigInt]
    position: Mapped[_Position]

    __table_args__: Any = (partitioned_by("period"),)


class MessageUse(Base):
    """A trace whose spans refer to a pack, with the start of the earliest one that a batch brought."""

    __tablename__ = "message_uses"

    pack_id: Mapped[BigInt] = mapped_column(primary_key=True, autoincrement=False)
    start_time: Mapped[Timestamp] = mapped_column(primary_key=True)
    trace_id: Mapped[TraceId] = mapped_column(primary_key=True)
    period: Mapped[Timestamp] = mapped_column(primary_key=True)

    __table_args__: Any = (partitioned_by("period"),)


# All texts of a message but its role and the types of its parts, cut where every text fits into a tsvector. Names
# of members are no text: every message has the same.
CREATE_MESSAGE_TEXT: Final = f"""
CREATE FUNCTION observatory_message_text(message jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
SELECT left(string_agg(found.value #>> '{{}}', chr(10)), {SEARCHED_CHARACTERS}) FROM (
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

# What a span's references of one part stand for, in order, as a JSON array; null where there are none.
CREATE_CONTENT: Final = """
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


def _column(name: str, part: int) -> str:
    content = f"observatory_content(s.content_refs, {part}, s.finish_reason)"
    return (
        f"CASE WHEN s.content_refs IS NULL THEN s.{name}\n"
        f"            WHEN {content} IS NULL THEN s.{name}\n"
        f"            WHEN jsonb_typeof(s.{name}) = 'object'\n"
        f"            THEN s.{name} || jsonb_build_object('messages', {content})\n"
        f"            ELSE {content} END AS {name}"
    )


# Every span's content, wherever it is stored.
CREATE_SPAN_CONTENT: Final = f"""
CREATE VIEW span_content AS
SELECT s.trace_id, s.span_id, s.start_time, s.project,
       {_column("input", INPUT)},
       {_column("output", OUTPUT)},
       CASE WHEN s.content_refs IS NULL THEN s.attributes ELSE s.attributes || coalesce((
           SELECT jsonb_object_agg(member.key, member.value)
           FROM jsonb_array_elements(observatory_content(s.content_refs, {ATTRIBUTES}, NULL)) AS part (content)
           CROSS JOIN LATERAL jsonb_each(
               CASE jsonb_typeof(part.content) WHEN 'object' THEN part.content ELSE '{{}}' END
           ) AS member
       ), '{{}}'::jsonb) END AS attributes
FROM trace_spans AS s
"""


@event.listens_for(Base.metadata, "after_create")
def _create_functions(target: MetaData, connection: Connection, **options: Any) -> None:
    for statement in (CREATE_MESSAGE_TEXT, CREATE_CONTENT, CREATE_SPAN_CONTENT):
        connection.exec_driver_sql(statement)
