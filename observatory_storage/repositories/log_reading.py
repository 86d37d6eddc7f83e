"""Reads log records window by window, newest first, and stops when there are enough."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Select
from sqlalchemy.orm import Session

from observatory_storage.models import LogRecord
from observatory_storage.repositories import log_statements as statements
from observatory_storage.repositories.log_cursor import LogCursor
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_position import Snapshot
from observatory_storage.repositories.log_search import Search, find_search
from observatory_storage.repositories.log_statements import Key
from observatory_storage.repositories.log_windows import (
    FIRST_WINDOW,
    GROWTH,
    GROWTH_OF_SEARCHES,
    LARGEST_WINDOW,
    Window,
    read_partitions,
    windows,
)
from observatory_storage.repositories.reading import Reader

# Up to so many matches of a window are found by the index and sorted; beyond, the window is read newest first. Neither
# is good for both, and the planner, which knows no rare word, takes one in 200 records to hold any: with 50,000
# records a partition, 10 of them with the word, a page took 260 ms by time and takes 20 ms by the index.
FEW_MATCHES: Final = 2000
# In the first window, which holds the head: to find so many of a common word there takes 10 ms.
_FEW_IN_HEAD: Final = 500
# Up to so many matches of a text are looked through for those that pass the filters, too; in large windows more.
FEW_OF_TEXT: Final = 500
_FEW_OF_TEXT_A_PARTITION: Final = 20

_MICROSECOND: Final = dt.timedelta(microseconds=1)
_LAST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


class Reach(NamedTuple):
    """What a call reads: a search as the server understands it, and the windows, newest first."""

    filters: LogFilters
    search: Search | None
    windows: Sequence[Window]


class Ranked(NamedTuple):
    """A match with its rank; sorts as ranked searches do, the best last."""

    rank: float
    timestamp: dt.datetime
    id: uuid.UUID
    key: Key


class LogReader(Reader):
    """Reads windows of log records, on a pool each in a transaction of its own.

    So no more partitions are locked at a time than one window has. On a caller's session the locks of all windows
    add up until its transaction ends.
    """

    def _reach(self, filters: LogFilters, after: LogCursor | None = None, *, first: int = FIRST_WINDOW) -> Reach:
        whole = Window(filters.timestamp_from, filters.timestamp_before)
        if after is not None and after.timestamp < _LAST:
            whole = whole.within(Window(None, after.timestamp + _MICROSECOND))
        with self._reading() as session:
            search = find_search(session, filters.search)
            growth = GROWTH if search is None else GROWTH_OF_SEARCHES
            partitions = read_partitions(session, text_indexes=_may_look_through(filters, search))
            found = tuple(windows(partitions, whole, first=first, largest=LARGEST_WINDOW, growth=growth))
        return Reach(filters, search, found)

    def _newest(
        self,
        reach: Reach,
        limit: int,
        *,
        after: LogCursor | None = None,
        seen_by: Snapshot | None = None,
        include_content: bool = False,
    ) -> list[LogRecord]:
        filters, search, _ = reach
        found: list[LogRecord] = []
        skipped = filters.offset
        few = min(FEW_MATCHES, _FEW_IN_HEAD)
        of_text = _may_look_through(filters, search)
        for window in reach.windows:
            with self._reading() as session:
                if skipped:
                    passed = session.execute(statements.count_logs(filters, window, skipped, search)).scalar_one()
                    if passed < skipped:
                        skipped -= passed
                        continue
                page = _Page(window, limit - len(found), skipped, after, seen_by)
                keys = None
                if of_text and window.text_indexes:
                    at_most = max(FEW_OF_TEXT, window.text_indexes * _FEW_OF_TEXT_A_PARTITION)
                    keys = page.keys(session, reach, statements.few_of_text, at_most)
                    # A word that is common in one window is so in the others, too.
                    of_text = keys is not None
                if search is not None and keys is None:
                    keys = page.keys(session, reach, statements.few_matches, skipped + few)
                found += _read(session, reach, page, keys, include_content=include_content)
            skipped, few = 0, FEW_MATCHES
            if len(found) == limit:
                break
        return found

    def _ranked(self, reach: Reach, at_most: int) -> Iterator[Ranked]:
        if reach.search is None:
            return
        left = at_most
        for window in reach.windows:
            with self._reading() as session:
                rows = session.execute(statements.rank_logs(reach.filters, window, reach.search, left)).all()
            for rank, timestamp, route_id, log_id in rows:
                yield Ranked(rank, timestamp, log_id, (timestamp, route_id, log_id))
            left -= len(rows)
            if not left:
                break


class _Page(NamedTuple):
    """A part of a page: so many records of a window after a place."""

    window: Window
    limit: int
    offset: int
    after: LogCursor | None
    seen_by: Snapshot | None

    def keys(
        self, session: Session, reach: Reach, select: Callable[..., Select[*tuple[Any, ...]]], few: int
    ) -> list[Key] | None:
        """Return the keys of its records, in any order, or None where the window has more than a few matches.

        `select` makes the statement that looks for them, `few_matches` or `few_of_text`.
        """
        statement = select(
            reach.filters,
            self.window,
            reach.search,
            self.limit,
            at_most=few + 1,
            offset=self.offset,
            after=self.after,
            seen_by=self.seen_by,
        )
        found = session.execute(statement).all()
        if found and found[0].match_count > few:
            return None
        return [(timestamp, route_id, log_id) for _, timestamp, route_id, log_id in found if log_id is not None]


def _may_look_through(filters: LogFilters, search: Search | None) -> bool:
    # A trace has few records, and an index that leads to them. A phrase is read for in each body that has its words,
    # of which a filter leaves fewer.
    if search is None or not search.is_looked_up or filters.trace_id is not None:
        return False
    return bool(statements.conditions(filters, None))


def _read(
    session: Session, reach: Reach, page: _Page, keys: Sequence[Key] | None, *, include_content: bool
) -> Sequence[LogRecord]:
    """Read the records with these keys; where they were too many to be looked for, by time."""
    if keys is not None:
        if not keys:
            return []
        records = session.execute(statements.logs_by_key(keys, include_content=include_content)).scalars()
        return sorted(records, key=lambda record: (record.timestamp, record.id), reverse=True)
    statement = statements.list_logs(
        reach.filters,
        page.window,
        page.limit,
        offset=page.offset,
        search=reach.search,
        after=page.after,
        seen_by=page.seen_by,
        include_content=include_content,
    )
    return session.execute(statement).scalars().all()
