"""Finds traces by a text in their names without reading those whose names do not hold it.

Names of traces are few and different ones come seldom, as OpenTelemetry asks of span names. An index on project, name
and time leads from each name to the next, so that the text is sought in the names, of which there are some dozens, and
leads from a name that holds it to its newest traces. Neither grows with the number of traces. Where there are too many
names for that, traces are read newest first as by any other filter: `docs/decisions/name-search.md`.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Session, aliased

from observatory_storage.models import Trace
from observatory_storage.models.trace import INDEXED_CHARACTERS
from observatory_storage.repositories.conditions import contains_text, pattern_of
from observatory_storage.repositories.filters import TraceFilters

MOST_NAMES: Final = 1_000
"""How many names a search goes through before it gives them up."""

MOST_TRACES: Final = 20_000
"""How many traces are read at most to take a page from those of each name."""

_ONE: Final = literal_column("1", Integer)
_INDEXED_CHARACTERS: Final = literal_column(str(INDEXED_CHARACTERS), Integer)
_AT_MOST: Final = bindparam("at_most", type_=Integer)
# Asked once for each connection of the driver.
_DISTRIBUTED: Final[WeakKeyDictionary[object, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Names:
    """Names that hold a text, each with its project."""

    found: Sequence[tuple[str, str]]

    @property
    def are_cut(self) -> bool:
        """Tell whether some are only the beginnings of names, whose ends may hold the text or not."""
        return any(len(name) >= INDEXED_CHARACTERS for _, name in self.found)


def find_names(session: Session, filters: TraceFilters) -> Names | None:
    """Return the names that hold the text which the filters ask for; None where traces should be read by time."""
    # What a user or a session did is found by an index of its own, and every name holds the empty text.
    if not filters.name or filters.user_id is not None or filters.session_id is not None:
        return None
    if _is_distributed(session):
        return None
    given = {"text": pattern_of(filters.name), "project": filters.project, "at_most": MOST_NAMES + 1}
    rows = session.execute(matching_names(of_project=filters.project is not None), given).all()
    if any(row.place > MOST_NAMES for row in rows):
        return None
    names = Names([(row.project, row.name) for row in rows])
    return names if len(names.found) * (filters.limit + filters.offset + 1) <= MOST_TRACES else None


@functools.cache
def matching_names(*, of_project: bool) -> Select[str, str, int]:
    """Select the names that hold a text, with their projects and places among all; and the last one, if cut short.

    Takes `text` as a pattern, `project`, and `at_most` how many names. Of a name that is longer than the index holds
    its beginning is selected, whether or not it holds the text. Made once: that takes longer than the search.
    """
    first = _in_order(
        select(Trace.project.label("project"), _indexed(Trace).label("name")), Trace, of_project
    ).subquery()
    names = select(first.c.project, first.c.name, _ONE.label("place")).cte("names", recursive=True)
    other = aliased(Trace)
    # With the project given, a comparison of rows would begin at the project's first name each time.
    after = (
        _indexed(other) > names.c.name
        if of_project
        else tuple_(other.project, _indexed(other)) > tuple_(names.c.project, names.c.name)
    )
    later = select(other.project.label("project"), _indexed(other).label("name")).where(after)
    following = _in_order(later, other, of_project).lateral("following")
    names = names.union_all(
        select(following.c.project, following.c.name, names.c.place + _ONE)
        .select_from(names.join(following, true()))
        .where(names.c.place < _AT_MOST)
    )
    holds = names.c.name.ilike(bindparam("text", type_=Text), escape="\\")
    is_cut = func.length(names.c.name) == _INDEXED_CHARACTERS
    return select(names.c.project, names.c.name, names.c.place).where(or_(holds, is_cut, names.c.place == _AT_MOST))


def newest_of_each(names: Names, text: str, newest: Select[uuid.UUID, Any]) -> Select[uuid.UUID]:
    """Select the ids of what `newest` selects of each name: an `id` and a `start_time`."""
    given = (
        func.unnest(
            literal([project for project, _ in names.found], ARRAY(Text)),
            literal([name for _, name in names.found], ARRAY(Text)),
        )
        .table_valued(column("project", Text), column("name", Text))
        .render_derived(name="given")
    )
    newest = newest.where(Trace.project == given.c.project, _indexed(Trace) == given.c.name, Trace.name.is_not(None))
    if names.are_cut:
        # Only then: the planner takes any text for rare, and sorts all traces of the name.
        newest = newest.where(contains_text(Trace.name, text))
    found = newest.correlate(given).lateral("newest")
    ids: Select[uuid.UUID] = select(found.c.id).select_from(given.join(found, true()))
    return ids.order_by(found.c.start_time.desc().nulls_last(), found.c.id.desc())


def is_distributed() -> Select[bool]:
    """Select whether the database is one of Citus, which takes none of these statements."""
    return select(func.to_regclass(literal("pg_dist_partition", Text)).is_not(None).label("is_distributed"))


def _is_distributed(session: Session) -> bool:
    driver = session.connection().connection.driver_connection
    assert driver is not None
    if driver not in _DISTRIBUTED:
        _DISTRIBUTED[driver] = session.execute(is_distributed()).scalar_one()
    return _DISTRIBUTED[driver]


def _in_order(statement: Select[str, str], trace: type[Trace], of_project: bool) -> Select[str, str]:
    statement = statement.where(trace.name.is_not(None))
    if of_project:
        statement = statement.where(trace.project == bindparam("project", type_=Text))
    return statement.order_by(trace.project, _indexed(trace)).limit(_ONE)


def _indexed(trace: type[Trace]) -> ColumnElement[str]:
    return func.left(trace.name, _INDEXED_CHARACTERS, type_=Text)
