"""The deletion of old traces, in batches.

Locks are taken on traces alone and never waited for, so that a deletion cannot deadlock with writers, which
lock a trace before they change a stored span. A span that arrives for a trace while it is deleted starts
the trace anew.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Delete, Select, Uuid, any_, delete, func, literal, select, tuple_
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import CollectionAggregate

from observatory_storage.models import Trace, TraceEvent, TraceSpan
from observatory_storage.repositories.conditions import within
from observatory_storage.repositories.results import DeletedCounts, TraceTimes

DEFAULT_BATCH_SIZE: Final = 1000


class Expired(NamedTuple):
    """Which traces are to go: those that ended before `cutoff`, of one project or of all."""

    cutoff: dt.datetime
    project: str | None


class Place(NamedTuple):
    """How far a deletion has come: traces with a start go first, the oldest first, then those without."""

    dated: bool = True
    start_time: dt.datetime | None = None
    id: uuid.UUID | None = None


def expired_traces(expired: Expired, place: Place, batch_size: int) -> Select[uuid.UUID, dt.datetime | None]:
    """Select the next batch of expired traces."""
    statement = select(Trace.id, Trace.start_time).where(*_conditions(expired, place.dated))
    if place.id is not None and place.dated:
        start_time, trace_id = literal(place.start_time, Trace.start_time.type), literal(place.id, Trace.id.type)
        statement = statement.where(tuple_(Trace.start_time, Trace.id) > tuple_(start_time, trace_id))
    elif place.id is not None:
        statement = statement.where(Trace.id > place.id)
    # NULLS FIRST is what the indexes on (start_time, id) have when they are read backwards.
    return statement.order_by(Trace.start_time.asc().nulls_first(), Trace.id).limit(batch_size)


def lock_traces(
    ids: Sequence[uuid.UUID], expired: Expired, *, dated: bool
) -> Select[uuid.UUID, dt.datetime | None, dt.datetime | None]:
    """Lock those of the traces that nobody holds and that are still expired, in id order."""
    statement = select(Trace.id, Trace.start_time, Trace.end_time)
    statement = statement.where(Trace.id == _any(ids), *_conditions(expired, dated))
    return statement.order_by(Trace.id).with_for_update(skip_locked=True)


def delete_events(ids: Sequence[uuid.UUID], times: TraceTimes) -> Delete:
    """Delete the events of traces within the times of them all."""
    return delete(TraceEvent).where(TraceEvent.trace_id == _any(ids), *within(TraceEvent.span_start_time, times))


def delete_spans(ids: Sequence[uuid.UUID], times: TraceTimes) -> Delete:
    """Delete the spans of traces within the times of them all."""
    return delete(TraceSpan).where(TraceSpan.trace_id == _any(ids), *within(TraceSpan.start_time, times))


def delete_traces(ids: Sequence[uuid.UUID]) -> Delete:
    """Delete traces."""
    return delete(Trace).where(Trace.id == _any(ids))


def delete_batch(
    session: Session, expired: Expired, place: Place, batch_size: int
) -> tuple[DeletedCounts, Place | None, Sequence[uuid.UUID]]:
    """Delete the next batch; returns what went, the place that follows (None where all is done), and which traces."""
    found = session.execute(expired_traces(expired, place, batch_size)).all()
    following: Place | None
    if len(found) == batch_size:
        following = Place(place.dated, found[-1].start_time, found[-1].id)
    else:
        following = Place(dated=False) if place.dated else None
    if not found:
        return DeletedCounts(), following, ()
    locked = session.execute(lock_traces([row.id for row in found], expired, dated=place.dated)).all()
    ids = [row.id for row in locked]
    if not ids:
        return DeletedCounts(skipped=len(found)), following, ()
    starts, ends = [row.start_time for row in locked], [row.end_time for row in locked]
    times = TraceTimes(None if None in starts else min(starts), None if None in ends else max(ends))
    counts = DeletedCounts(
        events=_run(session, delete_events(ids, times)),
        spans=_run(session, delete_spans(ids, times)),
        traces=_run(session, delete_traces(ids)),
        skipped=len(found) - len(ids),
    )
    return counts, following, ids


def _run(session: Session, statement: Delete) -> int:
    result = session.connection().execute(statement)
    return result.rowcount


def _conditions(expired: Expired, dated: bool) -> list[ColumnElement[bool]]:
    if dated:
        conditions = [
            Trace.start_time < expired.cutoff,
            func.coalesce(Trace.end_time, Trace.start_time) < expired.cutoff,
        ]
    else:
        conditions = [
            Trace.start_time.is_(None),
            func.coalesce(Trace.end_time, Trace.created_at) < expired.cutoff,
        ]
    if expired.project is not None:
        conditions.append(Trace.project == expired.project)
    return conditions


def _any(ids: Sequence[uuid.UUID]) -> CollectionAggregate[bool]:
    return any_(literal(list(ids), ARRAY(Uuid)))
