"""Puts messages that are stored once back into the spans that refer to them, and says in SQL which spans do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    any_,
    column,
    exists,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from observatory_storage.models import MessagePack, TraceSpan
from observatory_storage.models.message import ATTRIBUTES, INPUT, OUTPUT

_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_COLUMNS: Final = {INPUT: "input", OUTPUT: "output"}
_BITS: Final = 0xFFFF
_PLACE_BITS: Final = literal_column(str(_BITS), BigInteger)

LONGEST_PERIOD: Final = dt.timedelta(days=31)
"""No period is longer: a span's messages are of one that begins so long before it at most."""


def packs_by_id(periods: Sequence[dt.datetime], ids: Sequence[int]) -> Select[int, Any]:
    """Select packs of messages; ids are unique whatever the period."""
    statement = select(MessagePack.id, MessagePack.messages)
    statement = statement.where(MessagePack.id == any_(literal(list(ids), ARRAY(BigInteger))))
    if len(periods) == 1:
        return statement.where(MessagePack.period == periods[0])
    return statement.where(MessagePack.period.in_(periods))


def restore_content(session: Session, spans: Iterable[TraceSpan]) -> None:
    """Give spans the messages that they refer to, by one statement where any does; the spans were just read.

    Their `content_refs` are None from then on, which tells them from spans whose content is still elsewhere. Spans of
    one conversation share the objects of its messages. A message that was taken out of the store by somebody else is
    null.
    """
    referring = [span for span in spans if span.content_refs]
    if not referring:
        return
    periods = sorted({period_of(span.content_refs) for span in referring if span.content_refs})
    ids = sorted({pack_id for span in referring for _, pack_id, _, _, _ in runs_of(span.content_refs or ())})
    packs: dict[int, Any] = {row.id: row.messages for row in session.execute(packs_by_id(periods, ids))}
    for span in referring:
        _restore(span, packs)


def period_of(refs: Sequence[int]) -> dt.datetime:
    """Return the period that references are of."""
    return _EPOCH + dt.timedelta(microseconds=refs[0])


def runs_of(refs: Sequence[int]) -> Iterator[tuple[int, int, bool, int, int]]:
    """Yield the runs of references: part, pack, whether messages get the finish reason, first place, and number."""
    for pack_id, bits in zip(refs[1::2], refs[2::2], strict=True):
        yield bits >> 33, pack_id, bool(bits >> 32 & 1), bits >> 16 & _BITS, bits & _BITS


def first_period(time: dt.datetime | None) -> dt.datetime | None:
    """Return a time that no period of the spans from `time` on begins before; None where there is none."""
    if time is None or time < dt.datetime.min.replace(tzinfo=dt.UTC) + LONGEST_PERIOD:
        return None
    return time - LONGEST_PERIOD


def holds(
    pack_id: ColumnElement[int],
    position: ColumnElement[int],
    *,
    part: int | None = None,
    among: FromClause | None = None,
) -> ColumnElement[bool]:
    """Return whether a span's references hold a message, for any part of it or for one, or any message of `among`."""
    refs = TraceSpan.content_refs
    place = (
        func.generate_series(literal_column("2", Integer), func.cardinality(refs), literal_column("2", Integer))
        .table_valued(column("place", Integer), name="run")
        .render_derived()
    )
    bits = refs[place.c.place + 1]
    first = bits.op(">>")(literal_column("16", Integer)).op("&")(_PLACE_BITS)
    number = bits.op("&")(_PLACE_BITS)
    conditions: list[ColumnElement[bool]] = [
        refs[place.c.place] == pack_id,
        position >= first,
        position < first.op("+")(number),
    ]
    if part is not None:
        conditions.append(bits.op(">>")(literal_column("33", Integer)) == literal_column(str(part), BigInteger))
    sources: list[FromClause] = [place] if among is None else [place, among]
    run = select(literal_column("1", Integer)).select_from(*sources).where(*conditions)
    return exists(run.correlate_except(*sources))


def _restore(span: TraceSpan, packs: Mapping[int, Any]) -> None:
    parts: dict[int, list[Any]] = {}
    for part, pack_id, is_cut, first, number in runs_of(span.content_refs or ()):
        pack = packs.get(pack_id)
        found = [None] * number if pack is None else pack[first : first + number]
        if is_cut:
            found = [message and {**message, "finish_reason": span.finish_reason} for message in found]
        parts.setdefault(part, []).extend(found)
    for part, messages in parts.items():
        if part == ATTRIBUTES:
            attributes = dict(span.attributes)
            for message in messages:
                attributes |= message or {}
            set_committed_value(span, "attributes", attributes)
            continue
        stored = getattr(span, _COLUMNS[part])
        restored = {**stored, "messages": messages} if isinstance(stored, dict) else messages
        set_committed_value(span, _COLUMNS[part], restored)
    set_committed_value(span, "content_refs", None)
