"""Reads traces with their spans and events, and deletes old ones."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, Unpack

from sqlalchemy.orm import Session

from observatory_storage.caching import Cached
from observatory_storage.errors import NotFoundError, RejectedRowError
from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.models import Trace, TraceEvent, TraceSpan
from observatory_storage.models.rows import SpanIdValue, TraceIdValue
from observatory_storage.repositories import trace_statements as statements
from observatory_storage.repositories.content import restore_content
from observatory_storage.repositories.content_search import search_content
from observatory_storage.repositories.cursor import Page, SpanCursor, TraceCursor
from observatory_storage.repositories.filter_model import (
    check_given,
    check_limits,
    check_project,
    check_text,
    check_time,
    filters_or_all,
    refusal,
)
from observatory_storage.repositories.filters import PageOptions, SearchOptions, SpanFilters, TraceFilters
from observatory_storage.repositories.log_results import SnippetStyle, style_problems
from observatory_storage.repositories.name_search import find_names
from observatory_storage.repositories.reading import Reader
from observatory_storage.repositories.results import (
    ContentMatch,
    DeletedCounts,
    TraceDetail,
    TraceStatistics,
    TraceStats,
    TraceTimes,
    UsageRow,
)
from observatory_storage.repositories.trace_deletion import DEFAULT_BATCH_SIZE, Expired, Place, delete_batch

# Up to so many spans of a model, their traces are found by the index on (model, start_time) and sorted;
# beyond, traces are read newest first and their spans probed. Measured with 200,000 traces of 5 spans in 60
# partitions: a model of 10 spans takes 0.6 ms by the first and 380 ms by the second, one of 200,000 spans
# 90 ms by the first and 1.7 ms by the second. To count 2,000 takes 2 to 5 ms.
FEW_SPANS: Final = 2000
# So many of the newest traces are looked at first for those of a model: one in twenty has it where a page of 50 is
# full. Where it is not they are looked at twice, a millisecond or two of what to go on takes.
NEWEST_TRACES: Final = 1000
_NEWEST_WITHIN: Final = dt.timedelta(days=2)
_OF_SPANS: Final = frozenset({"model", "provider"})

_Item = TypeVar("_Item")


class TraceRepository(Reader):
    """Reads traces, spans and events; deletes old traces.

    Takes a session, in whose transaction it reads and which it never commits, or a pool, from which it takes
    a short session for each call, and through whose cache it reads traces by id and their statistics where Redis is
    configured. A trace id may be a UUID, 16 bytes or text, as
    `observatory_storage.identity.resolve_trace_id` reads it; a span id 8 bytes or text. Objects that are
    returned are detached snapshots; naive times are UTC.

    `get_` methods of one object raise NotFoundError where it is not stored, and so do those that ask for
    what belongs to a trace; `find_` methods return None. Every method raises ReadTimeoutError where the
    server takes too long, and StorageError where it fails.
    """

    def get_by_id(self, trace_id: TraceIdValue) -> Trace:
        """Return a trace, its attributes included; for its spans take `get_trace_by_id`."""
        key = _trace_key(trace_id)

        def read() -> Trace:
            with self._reading() as session:
                return _one(session.execute(statements.trace_by_id(key)).scalar_one_or_none(), trace_id)

        return self._cached(Cached.TRACE, key.bytes, read)

    def get_by_trace_id(self, trace_id: TraceIdValue) -> Trace:
        """Return a trace by its id in any form: `"trace_xyz789"`, hex digits, dashed or not, bytes, a UUID."""
        return self.get_by_id(trace_id)

    def find_by_id(self, trace_id: TraceIdValue) -> Trace | None:
        """Return a trace, or None where it is not stored."""
        try:
            return self.get_by_id(trace_id)
        except NotFoundError:
            return None

    def get_trace_by_id(self, trace_id: TraceIdValue) -> TraceDetail:
        """Return a trace with its spans in start order, their events and resources.

        By four statements, and one more where spans hold messages that are stored once.
        """
        key = _trace_key(trace_id)
        return self._cached(Cached.TRACE_DETAIL, key.bytes, lambda: self._read_detail(key, trace_id))

    def _read_detail(self, key: uuid.UUID, trace_id: TraceIdValue) -> TraceDetail:
        with self._reading() as session:
            trace = _one(session.execute(statements.trace_by_id(key)).scalar_one_or_none(), trace_id)
            times = TraceTimes(trace.start_time, trace.end_time)
            spans = session.execute(statements.spans_of_trace(key, times)).scalars().all()
            restore_content(session, spans)
            found = session.execute(statements.events_of_trace(key, times)).scalars().all()
            named = (trace.resource_id, *(span.resource_id for span in spans))
            ids = sorted({key for key in named if key is not None})
            resources = session.execute(statements.resources_by_id(ids)).scalars().all() if ids else ()
        events = {**dict.fromkeys((span.span_id for span in spans), ()), **_by_span(found)}
        return TraceDetail(trace, tuple(spans), events, {resource.id: resource for resource in resources})

    def list(self, filters: TraceFilters | None = None, *, include_content: bool = False) -> Page[Trace]:
        """Return a page of traces, newest first; those without a start come last.

        The traces' `attributes` are read only with `include_content`; without, asking a trace for them
        raises sqlalchemy.orm.exc.DetachedInstanceError. A trace whose start moves between two pages, because an
        earlier span arrives, may show on both or on neither.
        """
        filters = filters_or_all(TraceFilters, filters)
        with self._reading() as session:
            few = _has_few_spans(session, filters)
            recent = [] if few else _newest_of_model(session, filters, include_content=include_content)
            if len(recent) > filters.limit:
                return _page(recent, filters.limit, _place)
            names = None if few else find_names(session, filters)
            if names is not None and not names.found:
                return Page(())
            statement = statements.list_traces(filters, by_span_index=few, names=names, include_content=include_content)
            found = [*session.execute(statement).scalars()]
            missing = filters.limit + 1 - len(found)
            if missing and _may_go_on_undated(filters):
                rest = statements.list_traces(filters, names=names, undated=missing, include_content=include_content)
                found += session.execute(rest).scalars()
        return _page(found, filters.limit, _place)

    def get_traces(self, start: dt.datetime, end: dt.datetime, **options: Unpack[PageOptions]) -> Page[Trace]:
        """Return a page of the traces that began at `start` or later and before `end`, as `list` does."""
        return self.list(TraceFilters(start_time_from=start, start_time_before=end, **options))

    def search_by_service(self, service_name: str, **options: Unpack[SearchOptions]) -> Page[Trace]:
        """Return a page of the traces of a service, as `list` does."""
        return self.list(TraceFilters(service_name=check_given("service_name", service_name), **options))

    def search_errors(self, **options: Unpack[SearchOptions]) -> Page[Trace]:
        """Return a page of the traces that failed or hold a span that did, as `list` does."""
        return self.list(TraceFilters(has_error=True, **options))

    def search_traces(self, text: str, **options: Unpack[SearchOptions]) -> Page[Trace]:
        """Return a page of the traces whose root span's name contains a text in any case, as `list` does.

        Goes by the different names of traces. Where there are more than 1,000, or where a page of each name that holds
        the text comes to more than 20,000 traces, it reads traces instead, the newest first until the page is full:
        give a time range there, or a smaller `limit`.
        """
        return self.list(TraceFilters(name=check_given("text", text), **options))

    def search_content(
        self, query: str, filters: TraceFilters | None = None, *, snippets: bool | SnippetStyle = False
    ) -> Sequence[ContentMatch]:
        """Return the messages that match, each with the first span that holds it, of the traces the filters allow.

        `query` is as a search engine takes it: words, `"a phrase"`, `or`, `-without`. Newest spans first, `limit` of
        them; the newest period is searched first, and of each up to 1,000 matching messages are looked at.

        Searched are the messages, instructions and definitions of tools that are stored once, which are those of
        conversations: three messages, or a long system prompt, and a kilobyte in all. Not searched is what stays in
        the span's own columns: small contents, plain prompts, arguments and results of tools, what was filled in from
        logs, spans that were written by `CopyWriter` or before messages were stored once; docs/messages.md has the
        SQL for them. A message of several periods comes once for each. `filters.cursor` is
        refused. Raises InvalidFilterError for a query without a word, or that only excludes some.
        """
        filters = filters_or_all(TraceFilters, filters)
        style = snippets if isinstance(snippets, SnippetStyle) else SnippetStyle()
        problems = tuple(style_problems(style))
        if problems:
            raise refusal(*problems)
        text = check_text("query", query)
        with self._reading() as session:
            return search_content(session, text, filters, style if snippets else None)

    def get_spans(
        self,
        trace_id: TraceIdValue,
        *,
        limit: int | None = None,
        offset: int = 0,
        include_content: bool = True,
    ) -> Sequence[TraceSpan]:
        """Return a trace's spans in start order, those that start together by span id.

        All of them unless `limit` says otherwise. Without `include_content` their `input`, `output` and
        `attributes` are not read, and asking for them raises sqlalchemy.orm.exc.DetachedInstanceError.
        """
        check_limits(limit, offset)
        key = _trace_key(trace_id)
        with self._reading() as session:
            times = _times(session, key, trace_id)
            statement = statements.spans_of_trace(
                key, times, include_content=include_content, limit=limit, offset=offset
            )
            spans = session.execute(statement).scalars().all()
            if include_content:
                restore_content(session, spans)
            return spans

    def list_spans(self, filters: SpanFilters | None = None, *, include_content: bool = False) -> Page[TraceSpan]:
        """Return a page of spans of any traces, newest first; `include_content` as in `get_spans`."""
        filters = filters_or_all(SpanFilters, filters)
        with self._reading() as session:
            statement = statements.list_spans(filters, include_content=include_content)
            found = session.execute(statement).scalars().all()
            if include_content:
                restore_content(session, found)
        return _page(found, filters.limit, lambda last: SpanCursor(last.start_time, last.trace_id, last.span_id))

    def get_span_by_id(self, trace_id: TraceIdValue, span_id: SpanIdValue) -> TraceSpan:
        """Return a span; of several with this id, which differ in their starts, the earliest."""
        key, span_key = _trace_key(trace_id), _span_key(span_id)
        with self._reading() as session:
            times = _times(session, key, trace_id)
            span = session.execute(statements.span_by_id(key, span_key, times)).scalar_one_or_none()
            restore_content(session, [] if span is None else [span])
        if span is None:
            raise NotFoundError(f"the trace {_shown(trace_id)} has no span {_shown(span_id)}")
        return span

    def get_events(self, trace_id: TraceIdValue, span_id: SpanIdValue | None = None) -> Sequence[TraceEvent]:
        """Return a trace's events, or one span's, by the start of their span and their place in it."""
        key = _trace_key(trace_id)
        span_key = None if span_id is None else _span_key(span_id)
        with self._reading() as session:
            times = _times(session, key, trace_id)
            return session.execute(statements.events_of_trace(key, times, span_key)).scalars().all()

    def get_trace_statistics(self, trace_id: TraceIdValue) -> TraceStatistics:
        """Return figures about a trace, computed from its spans."""
        key = _trace_key(trace_id)
        return self._cached(Cached.TRACE_STATISTICS, key.bytes, lambda: self._read_statistics(key, trace_id))

    def _read_statistics(self, key: uuid.UUID, trace_id: TraceIdValue) -> TraceStatistics:
        with self._reading() as session:
            summary = _one(session.execute(statements.trace_times(key)).one_or_none(), trace_id)
            times = TraceTimes(summary.start_time, summary.end_time)
            usage = tuple(UsageRow(*row) for row in session.execute(statements.usage_of_trace(key, times)))
        return TraceStatistics(key, times.start_time, times.end_time, summary.duration_us, usage)

    def get_stats(self, filters: TraceFilters | None = None) -> TraceStats:
        """Return totals over all traces that the filters let through, whatever their limit and cursor.

        Give a time range: the work grows with the number of traces.
        """
        filters = filters_or_all(TraceFilters, filters)
        with self._reading() as session:
            return TraceStats(*session.execute(statements.trace_totals(filters)).one())

    def delete_before(
        self, cutoff: dt.datetime, *, project: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> DeletedCounts:
        """Delete the traces that ended before `cutoff` with their spans and events, the oldest first.

        A trace without an end counts by its start, and one without both by when it was stored. With a pool
        each batch is committed by itself, and what is done stays done where a later one fails; with a
        session all batches stand in its transaction and the caller commits, so prefer a pool. Traces that
        another transaction holds are skipped and counted. Resources stay. The read timeout does not apply.
        """
        check_limits(batch_size, 0, name="batch_size")
        expired = Expired(check_time("cutoff", cutoff), check_project(project))
        counts = DeletedCounts()
        place: Place | None = Place()
        while place is not None:
            ids: Sequence[uuid.UUID] = ()
            try:
                with self._batch() as session:
                    deleted, place, ids = delete_batch(session, expired, place, batch_size)
            finally:
                # Also where the COMMIT failed: nobody knows what became of it.
                self._forget_traces(key.bytes for key in ids)
            counts = counts.plus(deleted)
        return counts


def _trace_key(trace_id: TraceIdValue) -> uuid.UUID:
    try:
        return resolve_trace_id(trace_id)
    except RejectedRowError as error:
        raise NotFoundError(f"no trace has such an id: {error.reason}") from error


def _span_key(span_id: SpanIdValue) -> bytes:
    try:
        return resolve_span_id(span_id)
    except RejectedRowError as error:
        raise NotFoundError(f"no span has such an id: {error.reason}") from error


def _one(found: _Item | None, trace_id: TraceIdValue) -> _Item:
    if found is None:
        raise NotFoundError(f"no trace is stored with the id {_shown(trace_id)}")
    return found


def _shown(key: TraceIdValue | SpanIdValue) -> str:
    return key.hex() if isinstance(key, bytes) else str(key)


def _times(session: Session, key: uuid.UUID, trace_id: TraceIdValue) -> TraceTimes:
    row = _one(session.execute(statements.trace_times(key)).one_or_none(), trace_id)
    return TraceTimes(row.start_time, row.end_time)


def _has_few_spans(session: Session, filters: TraceFilters) -> bool:
    # A provider alone has no index to find its spans by.
    if filters.model is None:
        return False
    count = session.execute(statements.count_spans_of_model(filters, FEW_SPANS + 1)).scalar_one()
    return count <= FEW_SPANS


def _newest_of_model(session: Session, filters: TraceFilters, *, include_content: bool) -> Sequence[Trace]:
    """Return the traces of a model among the newest: a page and one more, or what is no page.

    A statement over few partitions of spans, where one over all of them takes 0.1 ms for each to be planned. Nothing
    where it would be over many, or over all traces, or is not likely to be a page.
    """
    named = {name for name, value in filters if value is not None} - {"project", "limit"}
    if filters.offset or not named & _OF_SPANS or not named <= _OF_SPANS | {"offset"}:
        return []
    if filters.limit * 4 > NEWEST_TRACES:
        return []
    number, since, last = session.execute(statements.starts_of_newest(filters.project, NEWEST_TRACES)).one()
    if number < NEWEST_TRACES or since is None or last is None or last - since > _NEWEST_WITHIN:
        return []
    statement = statements.list_traces(filters, since=since, include_content=include_content)
    found = session.execute(statement).scalars().all()
    # What is read once more is to show what is stored then.
    session.expunge_all()
    return found


def _place(last: Trace) -> TraceCursor:
    return TraceCursor(last.start_time, last.id)


def _may_go_on_undated(filters: TraceFilters) -> bool:
    after = filters.after
    in_range = filters.start_time_from is not None or filters.start_time_before is not None
    return after is not None and after.start_time is not None and not in_range


def _page(found: Sequence[_Item], limit: int, cursor_of: Callable[[_Item], TraceCursor | SpanCursor]) -> Page[_Item]:
    items = tuple(found[:limit])
    return Page(items, cursor_of(items[-1]).encode() if len(found) > limit else None)


def _by_span(events: Sequence[TraceEvent]) -> dict[str, tuple[TraceEvent, ...]]:
    grouped: dict[str, tuple[TraceEvent, ...]] = {}
    ordered = sorted(events, key=lambda event: event.span_id)
    for span_id, found in itertools.groupby(ordered, key=lambda event: event.span_id):
        grouped[span_id] = tuple(found)
    return grouped
