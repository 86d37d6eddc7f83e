"""The statements that read and delete log records: one function for each.

Each is of one window of time (`log_windows`), whose bounds are written out: a plan that is made for all parameters
would be of all partitions.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Delete,
    Double,
    Integer,
    Interval,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
)
from sqlalchemy.orm import defer
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from observatory_storage.models import LogRecord, Trace
from observatory_storage.models.log import SEARCHED_CHARACTERS, search_vector
from observatory_storage.repositories.log_cursor import LogCursor
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_position import Snapshot, Step
from observatory_storage.repositories.log_results import SnippetStyle
from observatory_storage.repositories.log_search import Search
from observatory_storage.repositories.log_windows import Window

_CONTENT: Final = (LogRecord.body_json, LogRecord.attributes, LogRecord.scope_attributes)
_KEY: Final = (LogRecord.timestamp, LogRecord.route_id, LogRecord.id)
# What filters compare beside the time.
_FILTERED: Final = (
    LogRecord.project,
    LogRecord.service_name,
    LogRecord.trace_id,
    LogRecord.span_id,
    LogRecord.event_name,
    LogRecord.scope_name,
    LogRecord.severity_number,
    LogRecord.attributes,
)
_NEWEST_FIRST: Final = (LogRecord.timestamp.desc(), LogRecord.id.desc())
_Columns = ReadOnlyColumnCollection[str, ColumnElement[Any]]
# So much of a body is searched, and so long a snippet may be whatever its words are like.
_SEARCHED_CHARACTERS: Final = literal_column(str(SEARCHED_CHARACTERS), Integer)
_SNIPPET_CHARACTERS: Final = literal_column("2000", Integer)
_CONFIGURATION: Final[ColumnElement[Any]] = literal_column("'simple'")

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""The timestamp of a record that came without any."""

Key = tuple[dt.datetime, uuid.UUID, uuid.UUID]
"""The primary key of a record: timestamp, route_id, id."""


def log_by_id(log_id: uuid.UUID, window: Window) -> Select[LogRecord]:
    """Select the latest record of a window with this id."""
    statement = select(LogRecord).where(LogRecord.id == log_id, *in_window(window))
    return statement.order_by(LogRecord.timestamp.desc()).limit(1)


def list_logs(
    filters: LogFilters,
    window: Window,
    limit: int,
    *,
    offset: int = 0,
    search: Search | None = None,
    after: LogCursor | None = None,
    seen_by: Snapshot | None = None,
    include_content: bool = False,
) -> Select[LogRecord]:
    """Select the newest records of a window, those of one time by id, the largest first.

    With `seen_by` only those that a snapshot shows.
    """
    wanted = _of_page(filters, window, search, after, seen_by)
    statement = select(LogRecord).where(*wanted).order_by(*_NEWEST_FIRST).options(*content_options(include_content))
    return statement.limit(limit).offset(offset or None)


def few_matches(
    filters: LogFilters,
    window: Window,
    search: Search,
    limit: int,
    *,
    at_most: int,
    offset: int = 0,
    after: LogCursor | None = None,
    seen_by: Snapshot | None = None,
) -> Select[int, dt.datetime, uuid.UUID, uuid.UUID]:
    """Select the keys of the newest matches of a window with the number of all, and no further than `at_most`."""
    # Without an order of its own: the planner would read a rare word's partitions by time to be spared the sort.
    some = select(*_KEY).where(*_of_page(filters, window, search, after, seen_by)).limit(at_most).subquery()
    keys = (some.c.timestamp, some.c.route_id, some.c.id)
    statement = select(type_coerce(func.count().over(), BigInteger).label("match_count"), *keys)
    return statement.order_by(some.c.timestamp.desc(), some.c.id.desc()).limit(limit).offset(offset or None)


def few_of_text(
    filters: LogFilters,
    window: Window,
    search: Search,
    limit: int,
    *,
    at_most: int,
    offset: int = 0,
    after: LogCursor | None = None,
    seen_by: Snapshot | None = None,
) -> Select[int, dt.datetime | None, uuid.UUID | None, uuid.UUID | None]:
    """Select what `few_matches` does, but look for the text first, and for what the filters say in what is found.

    `match_count` is of the text alone, and comes in a row without a key where nothing passes the filters. Left to
    itself PostgreSQL combines the text index with that of services or of attributes, from which it reads an entry for
    each record of the service, in each partition, to find the ten that have a rare word.
    """
    of_text = _of_page(LogFilters(), window, search, after, seen_by)
    some = select(*_KEY, *_FILTERED).where(*of_text).limit(at_most).cte("some")
    counted = select(_count().label("match_count")).select_from(some).subquery("counted")
    passed = select(some.c.timestamp, some.c.route_id, some.c.id).where(*conditions(filters, None, some.c))
    page = passed.order_by(some.c.timestamp.desc(), some.c.id.desc()).limit(limit).offset(offset or None).subquery()
    statement = select(counted.c.match_count, page.c.timestamp, page.c.route_id, page.c.id)
    return statement.select_from(counted.outerjoin(page, true()))


def count_logs(filters: LogFilters, window: Window, at_most: int, search: Search | None = None) -> Select[int]:
    """Count the records of a window, and no further than `at_most`."""
    found = select(literal_column("1", Integer)).select_from(LogRecord)
    found = found.where(*conditions(filters, search), *in_window(window)).limit(at_most)
    return select(_count().label("log_count")).select_from(found.subquery())


def rank_logs(
    filters: LogFilters, window: Window, search: Search, limit: int
) -> Select[float, dt.datetime, uuid.UUID, uuid.UUID]:
    """Select rank and key of the newest records of a window that match a search."""
    newest = (
        select(*_KEY, LogRecord.body)
        .where(*conditions(filters, search), *in_window(window))
        .order_by(*_NEWEST_FIRST)
        .limit(limit)
        .subquery()
    )
    # Divided by 1 + the logarithm of the length, so that a long body does not win by its length alone.
    rank = func.ts_rank_cd(search_vector(newest.c.body), search.query, literal_column("1", Integer))
    return select(cast(rank, Double).label("rank"), newest.c.timestamp, newest.c.route_id, newest.c.id)


def logs_by_key(keys: Sequence[Key], *, include_content: bool = False) -> Select[LogRecord]:
    """Select records by their keys, in no order."""
    return select(LogRecord).where(*_has_key(keys)).options(*content_options(include_content))


def snippets(keys: Sequence[Key], search: Search, style: SnippetStyle) -> Select[dt.datetime, uuid.UUID, str]:
    """Select timestamp, id and snippet of records that match a search."""
    body = func.left(LogRecord.body, _SEARCHED_CHARACTERS)
    headline = func.ts_headline(_CONFIGURATION, body, search.query, literal(headline_options(style), Text))
    snippet = func.left(headline, _SNIPPET_CHARACTERS, type_=Text)
    return select(LogRecord.timestamp, LogRecord.id, snippet.label("snippet")).where(*_has_key(keys))


def times_of_trace(trace_id: uuid.UUID) -> Select[dt.datetime | None, dt.datetime | None]:
    """Select when a trace began and ended."""
    return select(Trace.start_time, Trace.end_time).where(Trace.id == trace_id)


def logs_of_trace(
    trace_id: uuid.UUID, window: Window, *, with_undated: bool = False, include_content: bool = True
) -> Select[LogRecord]:
    """Select a trace's records of a window, and on request those that came without any time, in time order."""
    within = and_(true(), *in_window(window))
    if with_undated:
        within = or_(within, LogRecord.timestamp == _written_out(EPOCH))
    statement = select(LogRecord).where(LogRecord.trace_id == trace_id, within)
    return statement.order_by(LogRecord.timestamp, LogRecord.id).options(*content_options(include_content))


def totals(filters: LogFilters, window: Window, search: Search | None = None) -> Select[*tuple[Any, ...]]:
    """Count the records of a window by service and severity."""
    kinds = (LogRecord.service_name, LogRecord.severity_number)
    return (
        select(
            *kinds,
            _count().label("log_count"),
            func.min(LogRecord.timestamp).label("first_timestamp"),
            func.max(LogRecord.timestamp).label("last_timestamp"),
        )
        .where(*conditions(filters, search), *in_window(window))
        .group_by(*kinds)
    )


def end_of_batch(window: Window, batch_size: int, project: str | None) -> Select[*tuple[Any, ...]]:
    """Select the key of the last record of a batch that is to be deleted: none where the rest is less than one."""
    statement = select(*_KEY).where(*in_window(window), *_of_project(project)).order_by(*_KEY)
    return statement.offset(batch_size - 1).limit(1)


def delete_logs(window: Window, last: Key | None, project: str | None) -> Delete:
    """Delete the records of a window up to a key, or all of them."""
    statement = delete(LogRecord).where(*in_window(window), *_of_project(project))
    if last is None:
        return statement
    place = tuple_(*(literal(value, column.type) for value, column in zip(last, _KEY, strict=True)))
    # The first condition prunes partitions, which a comparison of rows does not.
    return statement.where(LogRecord.timestamp <= _written_out(last[0]), tuple_(*_KEY) <= place)


def new_logs(
    filters: LogFilters,
    window: Window,
    step: Step,
    limit: int,
    *,
    search: Search | None = None,
    after: LogCursor | None = None,
    include_content: bool = False,
) -> Select[LogRecord]:
    """Select the first records of a window that were committed between two snapshots, in time order."""
    statement = select(LogRecord).where(*conditions(filters, search), *in_window(window), *_stored_in(step))
    if after is not None:
        statement = statement.where(tuple_(LogRecord.timestamp, LogRecord.id) > _place(after))
    # No index has this order, so that none is read from its start for it: the few new records are found by
    # their transaction, and sorted.
    in_order = LogRecord.timestamp + literal_column("interval '0'", Interval)
    statement = statement.order_by(in_order, LogRecord.id).options(*content_options(include_content))
    return statement.limit(limit)


def current_snapshot() -> Select[str, bool]:
    """Select which transactions are over at this moment, and whether the server is a standby."""
    return select(
        cast(func.pg_current_snapshot(), Text).label("snapshot"),
        func.pg_is_in_recovery(type_=Boolean).label("is_standby"),
    )


def _of_page(
    filters: LogFilters, window: Window, search: Search | None, after: LogCursor | None, seen_by: Snapshot | None
) -> list[ColumnElement[bool]]:
    found = [*conditions(filters, search), *in_window(window)]
    if after is not None:
        found.append(tuple_(LogRecord.timestamp, LogRecord.id) < _place(after))
    if seen_by is not None:
        found.append(or_(LogRecord.transaction_id.is_(None), and_(*_shown_by(seen_by))))
    return found


def in_window(window: Window) -> list[ColumnElement[bool]]:
    """Return what a record of a window fulfils."""
    found: list[ColumnElement[bool]] = []
    if window.lower is not None:
        found.append(LogRecord.timestamp >= _written_out(window.lower))
    if window.upper is not None:
        found.append(LogRecord.timestamp < _written_out(window.upper))
    return found


def conditions(
    filters: LogFilters, search: Search | None, record: type[LogRecord] | _Columns = LogRecord
) -> list[ColumnElement[bool]]:
    """Return what a record must fulfil besides its time."""
    found: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (record.project, filters.project),
            (record.service_name, filters.service_name),
            (record.trace_id, filters.trace_id),
            (record.span_id, filters.span_id),
            (record.event_name, filters.event_name),
            (record.scope_name, filters.scope_name),
        )
        if value is not None
    ]
    severities = filters.severities
    if severities is not None and severities.lowest == severities.highest:
        found.append(record.severity_number == severities.lowest)
    elif severities is not None:
        found.append(record.severity_number.between(*severities))
    if filters.attributes is not None:
        found.append(record.attributes.contains(filters.attributes))
    if search is not None:
        found.append(search.condition)
    return found


def content_options(include_content: bool) -> list[ORMOption]:
    """Return what leaves the columns unread that lists do not show."""
    return [] if include_content else [defer(column) for column in _CONTENT]


def _stored_in(step: Step) -> list[ColumnElement[bool]]:
    before, now = step
    found = [LogRecord.transaction_id >= _number(before.lowest), *_shown_by(now)]
    if before.open:
        found.append(or_(LogRecord.transaction_id >= _number(before.end), _is_open(before)))
    return found


def _shown_by(snapshot: Snapshot) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [LogRecord.transaction_id < _number(snapshot.end)]
    if snapshot.open:
        found.append(~_is_open(snapshot))
    return found


def _is_open(snapshot: Snapshot) -> ColumnElement[bool]:
    return LogRecord.transaction_id == any_(literal(list(snapshot.open), ARRAY(BigInteger)))


def _number(transaction: int) -> ColumnElement[int]:
    # Written out as well, so that each plan knows how few transactions are meant.
    return literal_column(str(transaction), BigInteger)


def _has_key(keys: Sequence[Key]) -> list[ColumnElement[bool]]:
    times = sorted({timestamp for timestamp, _, _ in keys})
    written = bindparam("times", times, LogRecord.timestamp.type, expanding=True, literal_execute=True)
    return [LogRecord.timestamp.in_(written), LogRecord.id == any_(literal([key[2] for key in keys], ARRAY(Uuid)))]


def _of_project(project: str | None) -> list[ColumnElement[bool]]:
    return [] if project is None else [LogRecord.project == project]


def _written_out(time: dt.datetime) -> ColumnElement[dt.datetime]:
    return bindparam(None, time, LogRecord.timestamp.type, literal_execute=True)


def _place(after: LogCursor) -> ColumnElement[Any]:
    return tuple_(literal(after.timestamp, LogRecord.timestamp.type), literal(after.id, LogRecord.id.type))


def headline_options(style: SnippetStyle) -> str:
    """Return a style as the options of `ts_headline`."""
    texts = {"StartSel": style.start_mark, "StopSel": style.end_mark, "FragmentDelimiter": style.delimiter}
    quoted = [f'{name}="{text.replace(chr(34), chr(34) * 2)}"' for name, text in texts.items()]
    # MinWords must be less than MaxWords.
    words = f"MaxWords={style.max_words}, MinWords={min(style.max_words - 1, 5)}, MaxFragments={style.max_fragments}"
    return ", ".join([*quoted, words])


def _count() -> ColumnElement[int]:
    # SQLAlchemy takes it for a 32-bit integer.
    return type_coerce(func.count(), BigInteger)
