"""What of a span is stored once: the messages of a conversation, and what each call of an agent repeats in attributes.

Small contents stay in the span's own columns, where they cost less than a reference: `docs/decisions/messages-once.md`
has the figures. What is shared depends on the span alone, never on what is stored already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from observatory_storage.models.message import ATTRIBUTES, FLATTENED_ATTRIBUTES, INPUT, OUTPUT, REPEATED_ATTRIBUTES
from observatory_storage.text import encode_json
from observatory_storage.writers.convert import GivenRow, gather

# A conversation of fewer bytes takes less place in the span's row than as references with an index entry each.
_LEAST_BYTES: Final = 1024
# One or two messages are repeated by nobody, unless the first is a long prompt for all conversations.
_LEAST_MESSAGES: Final = 3
_LEAST_ATTRIBUTE: Final = 512
_LOOKED_AT: Final = ("operation", "input", "attributes")
_NAMES: Final = frozenset((*REPEATED_ATTRIBUTES, *FLATTENED_ATTRIBUTES))
# Messages that many conversations begin with have a pack each.
_LEADING: Final = ("system", "developer")


class Body(NamedTuple):
    """A message that is stored once; without `finish_reason` where the span's column says the same."""

    message: dict[str, Any]
    is_cut: bool
    size: int
    is_leading: bool

    def encode(self) -> bytes:
        """Encode it as JSON that jsonb takes."""
        return encode_json(_without_reason(self.message) if self.is_cut else self.message)


class SpanContent(NamedTuple):
    """What a span shares: the ids of each part's messages, and the values that its columns have in their place."""

    parts: Sequence[tuple[int, bool, Sequence[bytes]]]
    """The part, whether its messages get the span's `finish_reason`, and their ids in order."""
    columns: Mapping[str, Any]


class SharedContent:
    """The content of a batch that is stored once, by the places of the spans."""

    def __init__(self) -> None:
        self.spans: dict[int, SpanContent] = {}
        self.bodies: dict[bytes, Body] = {}

    @classmethod
    def of_rows(cls, rows: Sequence[GivenRow], projects: Sequence[str]) -> SharedContent:
        """Find what can be shared among rows, given with their projects."""
        shared = cls()
        persons: dict[str, bytes] = {}
        columns = gather(rows, _LOOKED_AT)
        # Most spans share nothing, and are to pay little for the look.
        for place, (operation, given, about) in enumerate(zip(*columns.values(), strict=True)):
            if operation is None:
                continue
            if type(given) is dict:
                given = given.get("messages")
            has_messages = (
                type(given) is list
                and (len(given) >= _LEAST_MESSAGES or _begins_with_long_prompt(given))
                # What logs filled in they may fill in anew, in the span's own columns.
                and not (rows[place].get("input_from_logs") or rows[place].get("output_from_logs"))
            )
            repeats = type(about) is dict and not _NAMES.isdisjoint(about)
            if has_messages or repeats:
                project = projects[place]
                person = persons.get(project)
                if person is None:
                    person = persons[project] = hashlib.blake2b(project.encode(), digest_size=16).digest()
                shared._add(place, rows[place], person, has_messages=has_messages, repeats=repeats)
        return shared

    def select(self, places: Sequence[int]) -> SharedContent:
        """Return the content of some of the spans, by their places among these."""
        part = SharedContent()
        part.spans = {at: self.spans[place] for at, place in enumerate(places) if place in self.spans}
        part.bodies = self.bodies
        return part

    def _add(self, place: int, row: GivenRow, person: bytes, *, has_messages: bool, repeats: bool) -> None:
        parts: list[tuple[int, bool, Sequence[bytes]]] = []
        columns: dict[str, Any] = {}
        given = _messages_of(row["input"]) if has_messages else None
        if given is not None:
            ids = self._ids(given, person, is_cut=False, least=_LEAST_BYTES)
            if ids is not None:
                parts.append((INPUT, False, ids))
                columns["input"] = _emptied(row["input"])
                # However small: the next call sends it again, and a search finds its first span by it.
                answered = _messages_of(row.get("output"))
                if answered is not None:
                    is_cut = _repeat(answered, row.get("finish_reason"))
                    ids = self._ids(answered, person, is_cut=is_cut, least=0)
                    if ids is not None:
                        parts.append((OUTPUT, is_cut, ids))
                        columns["output"] = _emptied(row["output"])
        if repeats:
            self._add_attributes(row["attributes"], person, parts, columns)
        if parts:
            self.spans[place] = SpanContent(parts, columns)

    def _add_attributes(
        self,
        attributes: dict[str, Any],
        person: bytes,
        parts: list[tuple[int, bool, Sequence[bytes]]],
        columns: dict[str, Any],
    ) -> None:
        groups: list[list[str]] = [[name] for name in REPEATED_ATTRIBUTES if name in attributes]
        groups += [
            [name for name in attributes if name.startswith(prefix)]
            for first, prefix in FLATTENED_ATTRIBUTES.items()
            if first in attributes
        ]
        ids: list[bytes] = []
        taken: set[str] = set()
        for names in groups:
            found = self._ids(
                [{name: attributes[name] for name in names}], person, is_cut=False, least=_LEAST_ATTRIBUTE, leading=True
            )
            if found is not None:
                ids += found
                taken.update(names)
        if ids:
            parts.append((ATTRIBUTES, False, ids))
            columns["attributes"] = {name: value for name, value in attributes.items() if name not in taken}

    def _ids(
        self, messages: Sequence[dict[str, Any]], person: bytes, *, is_cut: bool, least: int, leading: bool = False
    ) -> list[bytes] | None:
        """Return the ids of messages; None where they come to fewer bytes than `least`, or are no plain JSON."""
        try:
            encoded = [orjson.dumps(_without_reason(message) if is_cut else message) for message in messages]
        except (orjson.JSONEncodeError, RecursionError):
            return None
        if sum(map(len, encoded)) < least:
            return None
        ids = [hashlib.blake2b(text, digest_size=16, person=person).digest() for text in encoded]
        bodies = self.bodies
        for key, message, text in zip(ids, messages, encoded, strict=True):
            if key not in bodies:
                bodies[key] = Body(message, is_cut, len(text), leading or message.get("role") in _LEADING)
        return ids


def _messages_of(value: Any) -> list[dict[str, Any]] | None:
    if type(value) is dict:
        value = value.get("messages")
    if type(value) is not list or not value:
        return None
    for message in value:
        if type(message) is not dict or "role" not in message:
            return None
    return value


def _begins_with_long_prompt(messages: list[Any]) -> bool:
    if not messages or type(messages[0]) is not dict or messages[0].get("role") not in _LEADING:
        return False
    try:
        return len(orjson.dumps(messages[0])) >= _LEAST_BYTES
    except (orjson.JSONEncodeError, RecursionError):
        return False


def _emptied(value: Any) -> Any:
    return {**value, "messages": []} if type(value) is dict else []


def _repeat(messages: Sequence[Mapping[str, Any]], reason: Any) -> bool:
    """Tell whether all messages say the finish reason of their span, as answers do and the same in a prompt not."""
    # What PostgreSQL would take otherwise than it was given stays where it is.
    if type(reason) is not str or not (reason.isascii() and reason.isprintable()):
        return False
    return all(message.get("finish_reason") == reason for message in messages)


def _without_reason(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "finish_reason"}
