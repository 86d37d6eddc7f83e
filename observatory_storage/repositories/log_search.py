"""A text search as the server understands it."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, Text, and_, func, literal, literal_column, or_, select
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from observatory_storage.errors import InvalidFilterError, describe
from observatory_storage.models.log import LogRecord, search_vector

_CONFIGURATION: Final[ColumnElement[Any]] = literal_column("'simple'")
_ZERO: Final = literal_column("0", Integer)
# What `querytree` says of a query that every text could match.
_EVERYTHING: Final = "T"
# Words that must all be there, some of them as phrases: no OR, and exclusions are left out by `querytree`.
_WORDS: Final = re.compile(r"'(?:[^']|'')*'(?: (?:&|<->|<\d+>) '(?:[^']|'')*')*")
_WORD: Final = re.compile(r"'((?:[^']|'')*)'")
# Letters that are no ASCII and whose lower case is, somewhere: the Kelvin sign and the Turkish dotted capital I.
_BECOME_ASCII: Final = {"k": "\u212a", "i": "\u0130"}


class Search(NamedTuple):
    """A search: its text, and a word that every match holds, where one is known that is all ASCII."""

    text: str
    word: str | None = None

    @property
    def query(self) -> ColumnElement[str]:
        """The query of PostgreSQL."""
        return func.websearch_to_tsquery(_CONFIGURATION, literal(self.text, Text), type_=TSQUERY)

    @property
    def condition(self) -> ColumnElement[bool]:
        """What a record's body must fulfil."""
        matches = search_vector(LogRecord.body).bool_op("@@")(self.query)
        return matches if self.word is None else and_(_contains(self.word), matches)


def search_facts(text: str) -> Select[int, str]:
    """Select how many nodes the query of a search has, and which part of it can be looked up."""
    query = Search(text).query
    return select(
        func.numnode(query, type_=Integer).label("node_count"),
        func.querytree(query, type_=Text).label("looked_up"),
    )


def find_search(session: Session, text: str | None) -> Search | None:
    """Ask the server what a search means; None stays None.

    Raises InvalidFilterError for a search that holds no word, or that excludes words and asks for none.
    """
    if text is None:
        return None
    try:
        node_count, looked_up = session.execute(search_facts(text)).one()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "54000":
            raise
        raise _refusal(text, f"is more than the server searches for: {describe(error)}") from error
    if not node_count:
        raise _refusal(text, "holds no word to search for")
    if looked_up in ("", _EVERYTHING):
        raise _refusal(text, "only excludes words; name one to search for beside them")
    return Search(text, _common_word(looked_up))


def _refusal(text: str, reason: str) -> InvalidFilterError:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    problem = f"search: the text {shown!r} {reason}"
    return InvalidFilterError(problem, problems=(problem,))


def _common_word(looked_up: str) -> str | None:
    if not _WORDS.fullmatch(looked_up):
        return None
    words = [word.replace("''", "'") for word in _WORD.findall(looked_up)]
    return max((word for word in words if word.isascii() and "\\" not in word), key=len, default=None)


def _contains(word: str) -> ColumnElement[bool]:
    # Where no index helps, as in the newest partition, this is what a body is read for: a tsvector of each takes
    # ten times as long. Lower case of ASCII alone, because others' depends on the locale.
    lower = func.lower(LogRecord.body.collate("C"))
    found: list[ColumnElement[bool]] = [func.strpos(lower, literal(word, Text)) > _ZERO]
    found += [
        func.strpos(LogRecord.body, literal(other, Text)) > _ZERO
        for letter, other in _BECOME_ASCII.items()
        if letter in word
    ]
    return or_(*found)
