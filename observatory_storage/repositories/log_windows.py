"""The windows of time in which log records are read, newest first, each a few partitions.

A statement over all partitions would plan and lock them all: 200 ms, and the 15,000 locks of 90 days of hours are
more than a server's lock table has to hold. In windows that grow the newest page touches one or two partitions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from sqlalchemy.orm import Session

# The partitions of a table: bounds (null where there is none, and both for DEFAULT), whether the table has a page, and
# where that is asked for, whether it has its text index: to look for the index takes a third as long as all others.
# On Citus the rows lie elsewhere and no partition has a page.
LIST_PARTITIONS: Final = """
WITH partition AS MATERIALIZED (
    SELECT c.oid, pg_get_expr(c.relpartbound, 0) AS bounds
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = %(table)s::regclass
)
SELECT bounds = 'DEFAULT' AS is_default,
       CASE WHEN left(bounds, 18) = 'FOR VALUES FROM (''' THEN split_part(bounds, '''', 2)::timestamptz END AS lower,
       CASE WHEN right(bounds, 2) = ''')' THEN split_part(bounds, '''', -2)::timestamptz END AS upper,
       coalesce(pg_relation_size(oid), 0) > 0 AS has_rows,
       %(text_indexes)s AND oid IN (
           SELECT x.indrelid FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
           WHERE x.indisvalid AND right(c.relname, 9) = '_text_idx'
       ) AS has_text_index
FROM partition
"""

# The newest page of most lists lies in the newest partition. More than 128 partitions a statement would take over
# 10 ms to plan, and 1,000 locks.
FIRST_WINDOW: Final = 2
LARGEST_WINDOW: Final = 128
# A window costs about 1 ms beside its partitions, a partition more in one 0.1 ms.
GROWTH: Final = 4
# A search is two statements and 4 ms; those of a rare word go on to the end, those of a common one end in the first.
GROWTH_OF_SEARCHES: Final = 16


class Partition(NamedTuple):
    """A row of `LIST_PARTITIONS`."""

    is_default: bool
    lower: dt.datetime | None
    upper: dt.datetime | None
    has_rows: bool
    has_text_index: bool


class Window(NamedTuple):
    """Times from `lower` (inclusive) to `upper` (exclusive); None stands for no such bound.

    `text_indexes` is the number of its partitions where all of them are known to have a text index, else 0.
    """

    lower: dt.datetime | None = None
    upper: dt.datetime | None = None
    text_indexes: int = 0

    def meets(self, lower: dt.datetime | None, upper: dt.datetime | None) -> bool:
        """Tell whether it shares a moment with another window."""
        return (self.upper is None or lower is None or lower < self.upper) and (
            self.lower is None or upper is None or self.lower < upper
        )

    def within(self, other: Window) -> Window:
        """Return the part that lies in another window."""
        lowers = [time for time in (self.lower, other.lower) if time is not None]
        uppers = [time for time in (self.upper, other.upper) if time is not None]
        return self._replace(lower=max(lowers, default=None), upper=min(uppers, default=None))


class _Stretch(NamedTuple):
    lower: dt.datetime | None
    upper: dt.datetime | None
    has_rows: bool
    has_text_index: bool


def windows(
    partitions: Sequence[Partition],
    whole: Window,
    *,
    first: int = FIRST_WINDOW,
    largest: int = LARGEST_WINDOW,
    growth: int = GROWTH,
) -> Iterator[Window]:
    """Yield windows that hold, newest first, every record there is within the whole.

    Each is of `growth` times as many partitions as the one before, `first` to `largest` of them. Times whose partition
    is empty are left out, and so are those without a partition where DEFAULT is empty.
    """
    stretches = [stretch for stretch in _stretches(partitions) if whole.meets(stretch.lower, stretch.upper)]
    size, place = first, 0
    while place < len(stretches):
        if not stretches[place].has_rows:
            place += 1
            continue
        taken = stretches[place : place + size]
        # The last one that holds anything ends the window.
        while not taken[-1].has_rows:
            taken.pop()
        indexed = [stretch.has_text_index for stretch in taken if stretch.has_rows]
        yield Window(taken[-1].lower, taken[0].upper, len(indexed) if all(indexed) else 0).within(whole)
        place += len(taken)
        size = min(size * growth, largest)


def _stretches(partitions: Iterable[Partition]) -> list[_Stretch]:
    """Return all of time, newest first: the partitions, and between them what goes to DEFAULT."""
    known = list(partitions)
    # Where no table has a page their sizes say nothing.
    sized = any(partition.has_rows for partition in known)
    defaults = [partition for partition in known if partition.is_default]
    in_default = any(partition.has_rows or not sized for partition in defaults)
    default_is_indexed = all(partition.has_text_index for partition in defaults)
    ranges = sorted(
        (partition for partition in known if not partition.is_default),
        key=lambda partition: (partition.lower is not None, partition.lower or dt.datetime.min),
    )
    found: list[_Stretch] = []
    end: dt.datetime | None = None
    for number, partition in enumerate(ranges):
        if partition.lower is not None and (number == 0 or partition.lower != end):
            found.append(_Stretch(end, partition.lower, in_default, default_is_indexed))
        has_rows = partition.has_rows or not sized
        found.append(_Stretch(partition.lower, partition.upper, has_rows, partition.has_text_index))
        end = partition.upper
    if not ranges or end is not None:
        found.append(_Stretch(end, None, in_default, default_is_indexed))
    found.reverse()
    return found


def read_partitions(session: Session, table: str = "logs", *, text_indexes: bool = False) -> list[Partition]:
    """Read which partitions of a table there are, which of them may hold records, and on request have text indexes."""
    given = {"table": table, "text_indexes": text_indexes}
    return [Partition(*row) for row in session.connection().exec_driver_sql(LIST_PARTITIONS, given)]
