"""Reads log records, searches and follows them, and deletes old ones."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, Unpack

from sqlalchemy import Delete, Row
from sqlalchemy.orm import Session

from observatory_storage.errors import (
    ConfigurationError,
    InvalidFilterError,
    NotFoundError,
    RejectedRowError,
)
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models import LogRecord
from observatory_storage.models.rows import TraceIdValue
from observatory_storage.models.severity import LEVELS, Severity, level_of
from observatory_storage.repositories import log_statements as statements
from observatory_storage.repositories.cursor import Page
from observatory_storage.repositories.filter_model import (
    check_filters,
    check_given,
    check_project,
    check_time,
    count_problems,
    filters_or_all,
    refusal,
)
from observatory_storage.repositories.log_cursor import LogCursor, RankCursor
from observatory_storage.repositories.log_filters import (
    Level,
    LogFilters,
    LogLevelOptions,
    LogPageOptions,
    LogServiceOptions,
    LogTextOptions,
    LogTraceOptions,
)
from observatory_storage.repositories.log_follow import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_POLL_INTERVAL_SECONDS,
    LogStream,
    duration_problems,
)
from observatory_storage.repositories.log_position import Position
from observatory_storage.repositories.log_reading import LogReader, Ranked
from observatory_storage.repositories.log_results import LogMatch, LogStats, SnippetStyle, style_problems
from observatory_storage.repositories.log_search import Search
from observatory_storage.repositories.log_statements import Key
from observatory_storage.repositories.log_windows import LARGEST_WINDOW, Window, read_partitions, windows

# A ranked search makes a tsvector of each match, 30 µs for a body of 250 characters: these take 0.2 s.
RANKED_MATCHES: Final = 5000
DELETE_BATCH_SIZE: Final = 5000
# How far from its trace a record may lie to be looked for: clocks differ, and work goes on after a trace.
TRACE_MARGIN: Final = dt.timedelta(days=1)

_MICROSECOND: Final = dt.timedelta(microseconds=1)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_LAST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)

_Item = TypeVar("_Item")


class LogRepository(LogReader):
    """Reads log records; deletes old ones.

    Takes a session, in whose transaction it reads and which it never commits, or a pool, from which it takes a
    short session for each window of time that it reads. Prefer a pool, or give a time range: a transaction that
    has read hundreds of partitions keeps locks on all of them. Ids may be in any form that
    `observatory_storage.identity` reads. Objects that are returned are detached snapshots; naive times are UTC.

    Lists leave `body_json`, `attributes` and `scope_attributes` unread unless `include_content` asks for them;
    asking a record for them then raises sqlalchemy.orm.exc.DetachedInstanceError. `body` is always read: for a
    structured body it holds its words. A call that reads several windows reads each at a moment of its own.

    Every method raises InvalidFilterError for filters that cannot hold, ReadTimeoutError where the server takes
    too long, and StorageError where it fails.
    """

    def get_by_id(self, log_id: uuid.UUID | str, *, timestamp: dt.datetime | None = None) -> LogRecord:
        """Return a record with all its columns; raises NotFoundError where none has this id.

        An id that the writer computed says when its record was made. For one that was given to the writer name
        the record's `timestamp` as well, or all partitions are searched, unless its version is 8, which only
        computed ones should have.
        """
        try:
            key = log_id if isinstance(log_id, uuid.UUID) else uuid.UUID(log_id)
        except (ValueError, TypeError, AttributeError) as error:
            raise NotFoundError(f"no log record has such an id: {log_id!r} is no UUID") from error
        whole = _moment(check_time("timestamp", timestamp)) if timestamp is not None else _window_of(key)
        with self._reading() as session:
            found = windows(read_partitions(session), whole)
        for window in found:
            with self._reading() as session:
                record = session.execute(statements.log_by_id(key, window)).scalar_one_or_none()
            if record is not None:
                return record
        raise NotFoundError(f"no log record is stored with the id {key}")

    def list(self, filters: LogFilters | None = None, *, include_content: bool = False) -> Page[LogRecord]:
        """Return a page of records, newest first, those of one time by id."""
        filters = filters_or_all(LogFilters, filters)
        after = _time_cursor(filters)
        found = self._newest(
            self._reach(filters, after), filters.limit + 1, after=after, include_content=include_content
        )
        return _page(found, filters.limit, _place)

    def get_logs(self, start: dt.datetime, end: dt.datetime, **options: Unpack[LogPageOptions]) -> Page[LogRecord]:
        """Return a page of the records from `start` on and before `end`, as `list` does."""
        return self.list(LogFilters(timestamp_from=start, timestamp_before=end, **options))

    def search_by_service(self, service_name: str, **options: Unpack[LogServiceOptions]) -> Page[LogRecord]:
        """Return a page of the records of a service, as `list` does."""
        return self.list(LogFilters(service_name=check_given("service_name", service_name), **options))

    def search_by_trace(self, trace_id: TraceIdValue, **options: Unpack[LogTraceOptions]) -> Page[LogRecord]:
        """Return a page of the records of a trace, newest first, as `list` does.

        Without a time range all partitions are searched; `get_logs_by_trace` looks around the trace.
        """
        check_given("trace_id", trace_id)
        return self.list(LogFilters(trace_id=trace_id, **options))

    def get_logs_by_trace(
        self, trace_id: TraceIdValue, *, everywhere: bool = False, include_content: bool = True
    ) -> Sequence[LogRecord]:
        """Return all records of a trace in time order, those of one time by id.

        Those from a day before the trace began to a day after it ended, and those without any time; with
        `everywhere`, or where the trace has no times or is not stored, all there are.
        """
        try:
            key = resolve_trace_id(trace_id)
        except RejectedRowError as error:
            raise NotFoundError(f"no trace has such an id: {error.reason}") from error
        with self._reading() as session:
            times = session.execute(statements.times_of_trace(key)).one_or_none()
            around = None if everywhere or times is None else _around(times.start_time, times.end_time)
            if around is not None:
                statement = statements.logs_of_trace(key, around, with_undated=True, include_content=include_content)
                return session.execute(statement).scalars().all()
            every = (*windows(read_partitions(session), Window()),)
        found: list[LogRecord] = []
        for window in reversed(every):
            with self._reading() as session:
                statement = statements.logs_of_trace(key, window, include_content=include_content)
                found += session.execute(statement).scalars()
        return found

    def search_by_level(self, level: Level, **options: Unpack[LogLevelOptions]) -> Page[LogRecord]:
        """Return a page of the records of a severity, as `list` does.

        A level's name (`"warning"`), one severity's name or number (`"WARN2"`, 14), or a pair for a range.
        """
        check_given("level", level)
        return self.list(LogFilters(severity=level, **options))

    def get_errors(self, **options: Unpack[LogLevelOptions]) -> Page[LogRecord]:
        """Return a page of the records of the levels ERROR and FATAL, as `list` does."""
        return self.list(LogFilters(severity=("ERROR", "FATAL"), **options))

    def search_text(
        self,
        text: str,
        *,
        ranked: bool = False,
        snippets: bool | SnippetStyle = False,
        **options: Unpack[LogTextOptions],
    ) -> Page[LogMatch]:
        """Return a page of the records whose body matches a text, as `search_logs` does."""
        return self.search_logs(
            LogFilters(search=check_given("text", text), **options), ranked=ranked, snippets=snippets
        )

    def search_logs(
        self,
        filters: LogFilters,
        *,
        ranked: bool = False,
        snippets: bool | SnippetStyle = False,
        include_content: bool = False,
    ) -> Page[LogMatch]:
        """Return a page of what a search and all other filters find: newest first, or the best first.

        A ranked search ranks the newest 5,000 matches, however many there are, and returns those whose words lie
        close together and come often first, equal ones newest first. Records that arrive between two of its pages
        can push others out of those. `snippets` shows where a body matches, in a statement more.
        """
        filters = check_filters(LogFilters, filters)
        if filters.search is None and (ranked or snippets):
            raise refusal("search: name what is searched for, to rank it or to show it")
        style = snippets if isinstance(snippets, SnippetStyle) else SnippetStyle()
        problems = tuple(style_problems(style))
        if problems:
            raise refusal(*problems)
        if ranked:
            page, search = self._best(filters, include_content)
        else:
            after = _time_cursor(filters)
            reach = self._reach(filters, after)
            found = self._newest(reach, filters.limit + 1, after=after, include_content=include_content)
            logs = _page(found, filters.limit, _place)
            page, search = Page(tuple(LogMatch(log) for log in logs), logs.next_cursor), reach.search
        if not snippets or search is None or not page:
            return page
        with self._reading() as session:
            keys = [_key(match.log) for match in page]
            shown = {
                (row.timestamp, row.id): row.snippet
                for row in session.execute(statements.snippets(keys, search, style))
            }
        matches = (match._replace(snippet=shown.get((match.log.timestamp, match.log.id))) for match in page)
        return Page(tuple(matches), page.next_cursor)

    def get_stats(self, filters: LogFilters | None = None) -> LogStats:
        """Return totals over all records that the filters let through, whatever their limit and cursor.

        Give a time range: the work grows with the number of records.
        """
        levels: Counter[str | None] = Counter(dict.fromkeys((*LEVELS, None), 0))
        services: Counter[str | None] = Counter()
        errors = 0
        times: list[dt.datetime] = []
        reach = self._reach(filters_or_all(LogFilters, filters), first=LARGEST_WINDOW)
        for window in reach.windows:
            with self._reading() as session:
                rows = session.execute(statements.totals(reach.filters, window, reach.search)).all()
            for service_name, severity_number, log_count, first, last in rows:
                levels[level_of(severity_number)] += log_count
                services[service_name] += log_count
                errors += log_count if (severity_number or 0) >= Severity.ERROR else 0
                times += (first, last)
        return LogStats(
            log_count=services.total(),
            error_count=errors,
            first_timestamp=min(times, default=None),
            last_timestamp=max(times, default=None),
            by_level=dict(levels),
            by_service=dict(services.most_common()),
        )

    def count_by_level(self, filters: LogFilters | None = None) -> Mapping[str | None, int]:
        """Count the records of each level, TRACE to FATAL, as `get_stats` does; None stands for those without one."""
        return self.get_stats(filters).by_level

    def stream_logs(
        self,
        filters: LogFilters | None = None,
        *,
        position: str | None = None,
        recent: int = 0,
        poll_interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS,
        idle_timeout_seconds: float | None = None,
        stop: Callable[[], bool] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        include_content: bool = False,
    ) -> LogStream:
        """Return an iterator over the records that are committed from now on, for ever.

        Each comes once, when its transaction has committed, however old its timestamp is and in whatever order
        transactions commit; those that were committed between two polls come in time order. It looks every
        `poll_interval_seconds`, less often where one look takes long, and ends when `stop` returns true, which is
        asked before each record and ten times a second, or when there was nothing for `idle_timeout_seconds`.

        `stream.position` goes into `position` to go on after the last record, in another process too. `recent`
        begins with so many of the newest records that are there already. `batch_size` is how many records are held
        at most. Limit, offset and cursor of the filters do not count. A time range spares looking into each
        partition for late records.

        Needs a pool: between polls no transaction may stay open, or nothing new would be seen and no dead row be
        cleared away. Records from before the store noted transactions are never new.
        """
        if isinstance(self._source, Session):
            raise ConfigurationError("following log records needs a pool: LogRepository(pool).stream_logs(…)")
        filters = filters_or_all(LogFilters, filters)
        problems = [*count_problems("batch_size", batch_size, 1), *count_problems("recent", recent, 0)]
        problems += duration_problems("poll_interval_seconds", poll_interval_seconds)
        if idle_timeout_seconds is not None:
            problems += duration_problems("idle_timeout_seconds", idle_timeout_seconds)
        if problems:
            raise refusal(*problems)
        place = None
        if position is not None:
            try:
                place = Position.decode(position)
            except ValueError as error:
                raise refusal(f"position: {error}") from error
        return LogStream(
            self._source,
            filters.model_copy(update={"offset": 0, "cursor": None}),
            position=place,
            recent=recent,
            poll_interval_seconds=poll_interval_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            stop=stop,
            batch_size=batch_size,
            include_content=include_content,
            statement_timeout_seconds=self._timeout_seconds,
        )

    def delete_before(
        self, cutoff: dt.datetime, *, project: str | None = None, batch_size: int = DELETE_BATCH_SIZE
    ) -> int:
        """Delete the records with a timestamp before `cutoff`, the oldest first; returns how many went.

        With a pool each batch is committed by itself, and what is done stays done where a later one fails; with a
        session all batches stand in its transaction and the caller commits, so prefer a pool. The read timeout
        does not apply. To drop whole partitions costs next to nothing where no project is named.
        """
        problems = tuple(count_problems("batch_size", batch_size, 1))
        if problems:
            raise refusal(*problems)
        whole = Window(None, check_time("cutoff", cutoff))
        project = check_project(project)
        with self._batch() as session:
            found = (*windows(read_partitions(session), whole, first=LARGEST_WINDOW),)
        deleted = 0
        for window in reversed(found):
            rest: Window | None = window
            while rest is not None:
                with self._batch() as session:
                    last = session.execute(statements.end_of_batch(rest, batch_size, project)).one_or_none()
                    key = None if last is None else _key(last)
                    deleted += _run(session, statements.delete_logs(rest, key, project))
                rest = None if key is None else Window(key[0], rest.upper)
        return deleted

    def _best(self, filters: LogFilters, include_content: bool) -> tuple[Page[LogMatch], Search | None]:
        reach = self._reach(filters)
        found = sorted(self._ranked(reach, RANKED_MATCHES), reverse=True)
        after = _rank_cursor(filters)
        if after is not None:
            place = (after.rank, after.place.timestamp, after.place.id)
            found = [ranked for ranked in found if ranked[:3] < place]
        best = _page(found[filters.offset :], filters.limit, _rank_place)
        if not best:
            return Page(()), reach.search
        statement = statements.logs_by_key([ranked.key for ranked in best], include_content=include_content)
        with self._reading() as session:
            logs = {(log.timestamp, log.id): log for log in session.execute(statement).scalars()}
        # One that was deleted in between is left out.
        matches = (LogMatch(logs[ranked[1:3]], ranked.rank) for ranked in best if ranked[1:3] in logs)
        return Page(tuple(matches), best.next_cursor), reach.search


def _run(session: Session, statement: Delete) -> int:
    result = session.connection().execute(statement)
    return result.rowcount


def _key(record: LogRecord | Row[dt.datetime, uuid.UUID, uuid.UUID]) -> Key:
    return record.timestamp, record.route_id, record.id


def _page(found: Sequence[_Item], limit: int, cursor_of: Callable[[_Item], LogCursor | RankCursor]) -> Page[_Item]:
    items = tuple(found[:limit])
    return Page(items, cursor_of(items[-1]).encode() if len(found) > limit else None)


def _place(log: LogRecord) -> LogCursor:
    return LogCursor(log.timestamp, log.id)


def _rank_place(ranked: Ranked) -> RankCursor:
    return RankCursor(ranked.rank, LogCursor(ranked.timestamp, ranked.id))


def _time_cursor(filters: LogFilters) -> LogCursor | None:
    after = filters.after
    if isinstance(after, RankCursor):
        raise _other_order("the cursor belongs to a ranked search")
    return after


def _rank_cursor(filters: LogFilters) -> RankCursor | None:
    after = filters.after
    if isinstance(after, LogCursor):
        raise _other_order("the cursor belongs to a list by time, not to a ranked search")
    return after


def _other_order(reason: str) -> InvalidFilterError:
    return refusal(f"cursor: {reason}")


def _moment(time: dt.datetime) -> Window:
    return Window(time, time + _MICROSECOND if time < _LAST else None)


def _window_of(log_id: uuid.UUID) -> Window:
    """Return when a record with this id was made: computed ids begin with milliseconds, others can be any time's."""
    if log_id.version != 8:
        return Window()
    milliseconds = log_id.int >> 80
    made = _shifted(statements.EPOCH, dt.timedelta(milliseconds=milliseconds))
    if made is None or made >= _LAST - _MILLISECOND:
        return Window()
    # All that was before 1970 counts as its first millisecond.
    return Window(made if milliseconds else None, made + _MILLISECOND)


def _around(start: dt.datetime | None, end: dt.datetime | None) -> Window | None:
    if start is None or end is None:
        return None
    return Window(_shifted(start, -TRACE_MARGIN), _shifted(end, TRACE_MARGIN))


def _shifted(time: dt.datetime, by: dt.timedelta) -> dt.datetime | None:
    try:
        return time + by
    except OverflowError:
        return None
