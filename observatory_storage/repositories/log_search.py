"""A text search as the server understands it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from observatory_storage.errors import InvalidFilterError, describe
from observatory_storage.models.log import SEARCHED_CHARACTERS, LogRecord, search_vector
from observatory_storage.repositories.filter_model import refusal

_CONFIGURATION: Final[ColumnElement[Any]] = literal_column("'simple'")
_ZERO: Final = literal_column("0", Integer)
_SEARCHED_CHARACTERS: Final = literal_column(str(SEARCHED_CHARACTERS), Integer)
# What `querytree` says of a query that every text could match.
_EVERYTHING: Final = "T"
# Words that must all be there, some of them as phrases: no OR, and exclusions are left out by `querytree`.
_WORDS: Final = re.compile(r"'(?:[^']|'')*'(?: (?:&|<->|<\d+>) '(?:[^']|'')*')*")
_WORD: Final = re.compile(r"'((?:[^']|'')*)'")
_NEXT_WORD: Final = re.compile(r"'((?:[^']|'')*)'(?: (&|<->|<\d+>) )?")
_PHRASED: Final = re.compile(r"('(?:[^']|'')*') (?:<->|<\d+>) ")
# A byte makes three words at most: a whole, its part and a part of that.
_SURELY_COUNTED: Final = literal_column("5000", Integer)
# Letters that are no ASCII and whose lower case is, somewhere: the Kelvin sign and the Turkish dotted capital I.
_BECOME_ASCII: Final = {"k": "\u212a", "i": "\u0130"}


@dataclass(frozen=True)
class Search:
    """A search: its text, and what every match is known to hold.

    A `word` that is all ASCII, and plain words that stand one behind the other, a `phrase`. Where there is a phrase,
    `words` is a query of all words wherever they stand. `is_looked_up`: a text index alone says what matches. It knows
    no places: of a phrase, also within OR, it only says which bodies are to be read.
    """

    text: str
    word: str | None = None
    phrase: tuple[str, ...] = ()
    words: str | None = None
    is_looked_up: bool = False

    @property
    def query(self) -> ColumnElement[str]:
        """The query of PostgreSQL."""
        return func.websearch_to_tsquery(_CONFIGURATION, literal(self.text, Text), type_=TSQUERY)

    @cached_property
    def condition(self) -> ColumnElement[bool]:
        """What a record's body must fulfil."""
        matches = search_vector(LogRecord.body).bool_op("@@")(self.query)
        if self.words is None:
            return and_(self.hint, matches)
        # An index knows no places: asked for a phrase it has each body with all the words read as words again. So it
        # is asked for the words alone, for which it needs no body. IS TRUE keeps the phrase from the index.
        have_words = search_vector(LogRecord.body).bool_op("@@")(cast(literal(self.words, Text), TSQUERY))
        return and_(self.hint, have_words, matches.is_(true()))

    @property
    def hint(self) -> ColumnElement[bool]:
        """What every match fulfils, and few others, and what is looked at in a tenth of the time."""
        return true() if self.word is None else _contains(self.word, self.phrase)


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
    is_looked_up = _PHRASED.search(looked_up) is None
    if not _WORDS.fullmatch(looked_up):
        return Search(text, is_looked_up=is_looked_up)
    word, phrase = _common_word(looked_up), _common_phrase(looked_up)
    words = _PHRASED.sub(r"\1 & ", looked_up) if phrase else None
    return Search(text, word, phrase, words, is_looked_up)


def _refusal(text: str, reason: str) -> InvalidFilterError:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    problem = f"search: the text {shown!r} {reason}"
    return refusal(problem)


def _common_word(looked_up: str) -> str | None:
    words = [word.replace("''", "'") for word in _WORD.findall(looked_up)]
    return max((word for word in words if word.isascii() and "\\" not in word), key=len, default=None)


def _common_phrase(looked_up: str) -> tuple[str, ...]:
    """Return the most words that stand directly one behind the other, all of ASCII letters and digits."""
    best: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    follows = False
    for word, operator in _NEXT_WORD.findall(looked_up):
        is_plain = word.isascii() and word.isalnum()
        run = ((*run, word) if follows else (word,)) if is_plain else ()
        best = max(best, run, key=len)
        follows = is_plain and operator == "<->"
    return best if len(best) > 1 else ()


def _contains(word: str, phrase: tuple[str, ...]) -> ColumnElement[bool]:
    # Where no index helps, as in the newest partition, this is what a body is read for: a tsvector of each takes
    # ten times as long. Lower case of ASCII alone, because others' depends on the locale.
    lower = func.lower(LogRecord.body.collate("C"))
    # As much as is searched: a word can be cut there.
    searched = func.lower(func.left(LogRecord.body, _SEARCHED_CHARACTERS).collate("C"))
    # An expression is looked for in those bodies only that hold the word somehow, in this order: it takes longer.
    expression = _one_behind_the_other(phrase) if phrase else _whole(word)
    is_whole: ColumnElement[bool] = searched.bool_op("~")(literal(expression, Text))
    if phrase:
        # Places are counted to 16,383 only, and words behind that seem to be next to each other.
        is_whole = or_(func.octet_length(LogRecord.body) > _SURELY_COUNTED, is_whole)
    found: list[ColumnElement[bool]] = [
        case((func.strpos(lower, literal(word, Text)) > _ZERO, is_whole), else_=false())
    ]
    found += [
        func.strpos(LogRecord.body, literal(other, Text)) > _ZERO
        for letter, other in _BECOME_ASCII.items()
        if letter in word or any(letter in part for part in phrase)
    ]
    return or_(*found)


def _one_behind_the_other(phrase: tuple[str, ...]) -> str:
    """Return the regular expression of a phrase.

    Tags, entities and what stands before `://` have no place of their own, so that a body with one of them may hold
    the phrase around it.
    """
    before, behind = _same_kind(phrase[0][0]), _same_kind(phrase[-1][-1])
    joined = phrase[0]
    for last, word in pairwise(phrase):
        joined += f"[^a-z0-9]{'+' if _same_kind(last[-1]) == _same_kind(word[0]) else '*'}{word}"
    return f"(?:^|[^{before}]){joined}(?:[^{behind}]|$)|[<&]|://"


def _whole(word: str) -> str:
    """Return the regular expression of a word that goes on neither before nor behind.

    The parser divides `-1a` into two words, and no two letters or two digits. What is no ASCII is a letter in some
    locales only, so it may be an end.
    """
    escaped = "".join(sign if sign.isalnum() else f"\\{sign}" for sign in word)
    before, behind = _same_kind(word[0]), _same_kind(word[-1])
    return (f"(?:^|[^{before}])" if before else "") + escaped + (f"(?:[^{behind}]|$)" if behind else "")


def _same_kind(sign: str) -> str:
    if sign.isdigit():
        return "0-9"
    return "a-z" if sign.isalpha() else ""
