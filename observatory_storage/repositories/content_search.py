"""Searches the messages that are stored once, and finds for each the first span that holds it.

A pack whose text matches is found by the text index of its partition, or read where the partition is not closed yet;
its messages are then looked through one by one. From a message to its spans the way leads over the uses of its pack,
which lie in the order of their start, so that of a prompt that thousands of traces share only the first are read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, TSQUERY, TSVECTOR
from sqlalchemy.orm import Session

from observatory_storage.models import MessagePack, MessageUse, Trace, TraceSpan
from observatory_storage.models.types import UtcDateTime
from observatory_storage.repositories.conditions import trace_conditions
from observatory_storage.repositories.content import LONGEST_PERIOD, first_period, holds
from observatory_storage.repositories.filter_model import refusal
from observatory_storage.repositories.filters import TraceFilters
from observatory_storage.repositories.log_results import SnippetStyle
from observatory_storage.repositories.log_search import Search, find_search
from observatory_storage.repositories.log_statements import headline_options
from observatory_storage.repositories.log_windows import Window, read_partitions, windows
from observatory_storage.repositories.results import ContentMatch

MATCHES: Final = 1_000
"""How many matching messages of a period are looked at, which is where a search for a common word ends."""

# How many traces that use a pack are looked at for a message, first of all and then where none of those holds it.
_TRACES: Final = (20, 2_000, 1_000_000)
_CONFIGURATION: Final[ColumnElement[Any]] = literal_column("'simple'")
_SNIPPET_CHARACTERS: Final = literal_column("2000", Integer)


def matching_messages(
    search: Search, window: Window, filters: TraceFilters, style: SnippetStyle | None, at_most: int
) -> Select[*tuple[Any, ...]]:
    """Select messages of a window that match: period, pack, position, message and snippet."""
    found = (
        func.jsonb_array_elements(MessagePack.messages)
        .table_valued(column("message", JSONB), with_ordinality="place", name="found")
        .render_derived()
    )
    message = found.c.message
    text = func.observatory_message_text(message, type_=Text)
    snippet: ColumnElement[Any] = literal_column("NULL", Text)
    if style is not None:
        headline = func.ts_headline(_CONFIGURATION, text, search.query, literal(headline_options(style), Text))
        snippet = func.left(headline, _SNIPPET_CHARACTERS, type_=Text)
    statement = (
        select(
            MessagePack.period,
            MessagePack.id.label("pack_id"),
            (cast(found.c.place, Integer) - 1).label("position"),
            message.label("message"),
            snippet.label("snippet"),
        )
        .select_from(MessagePack)
        .join(found, true())
        .where(
            *_within(MessagePack.period, window.lower, window.upper),
            _hint(search),
            _vector(MessagePack.messages).bool_op("@@")(_words_of(search)),
            _vector(message).bool_op("@@")(search.query),
        )
        .limit(at_most)
    )
    return statement if filters.project is None else statement.where(MessagePack.project == filters.project)


def first_spans(
    messages: Sequence[tuple[dt.datetime, int, int]], window: Window, filters: TraceFilters, at_most: int
) -> Select[*tuple[Any, ...]]:
    """Select the first span that holds each message, by the message's place, and how far that was looked for.

    Messages are given by period, pack and position. `use_count` is how many traces that use the pack were looked at,
    `last_start` the start of the last of them: a span before it is the first of all.
    """
    given = (
        func.unnest(
            literal([message[0] for message in messages], ARRAY(UtcDateTime)),
            literal([message[1] for message in messages], ARRAY(BigInteger)),
            literal([message[2] for message in messages], ARRAY(Integer)),
        )
        .table_valued(
            column("period", UtcDateTime),
            column("pack_id", BigInteger),
            column("position", Integer),
            with_ordinality="place",
            name="given",
        )
        .render_derived()
    )
    uses = (
        select(MessageUse.trace_id, MessageUse.start_time)
        .join(Trace, Trace.id == MessageUse.trace_id)
        .where(
            MessageUse.pack_id == given.c.pack_id,
            MessageUse.period == given.c.period,
            *_within(MessageUse.period, window.lower, window.upper),
            *trace_conditions(filters, by_span_index=False),
        )
        .order_by(MessageUse.start_time)
        .limit(at_most)
        .correlate(given)
        .subquery("uses")
    )
    looked_at = (
        select(
            func.array_agg(uses.c.trace_id, type_=ARRAY(Uuid)).label("trace_ids"),
            type_coerce(func.count(), BigInteger).label("use_count"),
            func.max(uses.c.start_time).label("last_start"),
        )
        .select_from(uses)
        .lateral("looked_at")
    )
    until = None if window.upper is None or window.upper > _LAST else window.upper + LONGEST_PERIOD
    span = (
        select(
            TraceSpan.trace_id,
            TraceSpan.span_id,
            TraceSpan.start_time,
            TraceSpan.end_time,
            TraceSpan.project,
            TraceSpan.name,
        )
        .where(
            TraceSpan.trace_id == any_(looked_at.c.trace_ids),
            TraceSpan.start_time >= given.c.period,
            *_within(TraceSpan.start_time, window.lower, until),
            holds(given.c.pack_id, given.c.position),
        )
        .order_by(TraceSpan.start_time, TraceSpan.span_id)
        .limit(1)
        .correlate(given, looked_at)
        .lateral("span")
    )
    columns = (span.c.trace_id, span.c.span_id, span.c.start_time, span.c.end_time, span.c.project, span.c.name)
    return (
        select(cast(given.c.place, BigInteger).label("place"), looked_at.c.use_count, looked_at.c.last_start, *columns)
        .select_from(given)
        .join(looked_at, true())
        .outerjoin(span, true())
    )


def search_content(
    session: Session, query: str, filters: TraceFilters, style: SnippetStyle | None
) -> Sequence[ContentMatch]:
    """Return what `TraceRepository.search_content` does."""
    if filters.cursor is not None:
        raise refusal("cursor: a search of contents has no pages; take offset, or a time range")
    search = find_search(session, query)
    assert search is not None
    # A trace's messages may lie in any period that its spans begin in, none of which ends before the trace starts.
    whole = Window(first_period(filters.start_time_from), None)
    found: list[ContentMatch] = []
    wanted = filters.offset + filters.limit
    for window in windows(read_partitions(session, MessagePack.__tablename__), whole, first=1):
        found += _in_window(session, search, window, filters, style)
        if len(found) >= wanted:
            break
    found.sort(key=lambda match: (match.start_time, match.span_id, match.trace_id), reverse=True)
    return found[filters.offset : wanted]


_LAST: Final = dt.datetime.max.replace(tzinfo=dt.UTC) - LONGEST_PERIOD


def _in_window(
    session: Session, search: Search, window: Window, filters: TraceFilters, style: SnippetStyle | None
) -> list[ContentMatch]:
    messages = session.execute(matching_messages(search, window, filters, style, MATCHES)).all()
    matches = []
    left = list(range(len(messages)))
    for at_most in _TRACES:
        if not left:
            break
        keys = [(messages[at].period, messages[at].pack_id, messages[at].position) for at in left]
        rows = session.execute(first_spans(keys, window, filters, at_most)).all()
        unsure = []
        for row in rows:
            at = left[row.place - 1]
            exhausted = row.use_count < at_most
            if row.start_time is not None and (exhausted or row.start_time <= row.last_start):
                message = messages[at]
                role = message.message.get("role") if isinstance(message.message, dict) else None
                matches.append(
                    ContentMatch(
                        message=message.message,
                        role=role if isinstance(role, str) else None,
                        trace_id=row.trace_id,
                        span_id=row.span_id,
                        start_time=row.start_time,
                        end_time=row.end_time,
                        project=row.project,
                        span_name=row.name,
                        snippet=message.snippet,
                    )
                )
            elif not exhausted:
                unsure.append(at)
        left = unsure
    return matches


def _vector(messages: ColumnElement[Any] | Any) -> ColumnElement[str]:
    # As the index has it, see `PACK_VECTOR_SQL`.
    return func.to_tsvector(_CONFIGURATION, func.observatory_message_text(messages, type_=Text), type_=TSVECTOR)


def _words_of(search: Search) -> ColumnElement[str]:
    """Return what a pack with a match fulfils: it has the words, wherever they stand, and perhaps excluded ones too."""
    looked_up = func.querytree(search.query, type_=Text)
    words = func.regexp_replace(
        looked_up, literal("<(-|[0-9]+)>", Text), literal("&", Text), literal("g", Text), type_=Text
    )
    return cast(words, TSQUERY)


def _hint(search: Search) -> ColumnElement[bool]:
    """Return what every match fulfils, and what is looked at in a fraction of the time that its words take."""
    if search.word is None or not search.word.isalnum():
        return true()
    # JSON has these letters and digits as they are. Lower case of ASCII alone, as others' depends on the locale.
    text = cast(MessagePack.messages, Text)
    contains = func.strpos(func.lower(text.collate("C")), literal(search.word, Text)) > literal_column("0", Integer)
    others = [
        func.strpos(text, literal(other, Text)) > literal_column("0", Integer)
        for letter, other in {"k": "\u212a", "i": "\u0130"}.items()
        if letter in search.word
    ]
    # In a CASE, because the planner takes it for as dear as the words themselves.
    return case((or_(contains, *others), true()), else_=false())


def _within(time: Any, lower: dt.datetime | None, upper: dt.datetime | None) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [and_(true())] if lower is None and upper is None else []
    # Written out: a plan for all parameters would be of all partitions.
    if lower is not None:
        found.append(time >= bindparam(None, lower, UtcDateTime(), literal_execute=True))
    if upper is not None:
        found.append(time < bindparam(None, upper, UtcDateTime(), literal_execute=True))
    return found
