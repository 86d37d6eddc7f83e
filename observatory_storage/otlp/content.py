"""What went into a model or a tool and what came out, as structured JSON taken from a span's attributes.

Content is moved, not copied: the attributes it is read from leave the span's attributes. Its shape is the
client's own. Only its encoding is undone: JSON text becomes JSON, flattened keys become lists and objects.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

_PLAIN: Final = frozenset({"text", "reasoning"})
_JSON_STARTS: Final = frozenset('{["')
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair of surrogates
    r"|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)"  # a lone one; any other escape
)
# "llm.input_messages.3.message.tool_calls.0.tool_call.id" is ten deep.
_MAX_DEPTH: Final = 32
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Whole:
    """Content in one attribute. With `mime_key`, text is parsed only where that attribute says it is JSON."""

    client: str
    key: str
    mime_key: str | None = None

    def take(self, attributes: dict[str, Any]) -> Any:
        """Remove the content from the attributes and return it; None where there is none."""
        value = attributes[self.key]
        if value is None or value == "":
            return None
        del attributes[self.key]
        if self.mime_key is not None and attributes.get(self.mime_key) != "application/json":
            return value
        if type(value) is list:
            return [parse_text(item) if type(item) is str else item for item in value]
        return parse_text(value) if type(value) is str else value


@dataclass(frozen=True, slots=True)
class Joined:
    """Content whose parts are attributes of their own: an object of the parts that are present."""

    client: str
    prefix: str
    names: tuple[str, ...]

    def take(self, attributes: dict[str, Any]) -> Any:
        """Remove the parts from the attributes and return them as an object; None where there are none."""
        parts = {}
        for name in self.names:
            value = attributes.get(self.prefix + name)
            if value is not None and value != "":
                del attributes[self.prefix + name]
                parts[name] = parse_text(value) if type(value) is str and name not in _PLAIN else value
        return parts or None


@dataclass(frozen=True, slots=True)
class Flattened:
    """A list flattened to keys `prefix.<index>.<path>`; a level that only repeats a name (`message.`) is dropped."""

    client: str
    prefix: str

    @property
    def key(self) -> str:
        """The name under which the presence of such keys is noted."""
        return f"{self.prefix}.N"

    def take(self, attributes: dict[str, Any]) -> Any:
        """Remove the keys from the attributes and return the list; None where none can be read.

        A key that contradicts an earlier one (a value where that has an object) or is deeper than 32 levels
        stays in the attributes.
        """
        tree = _Branch()
        start = self.prefix + "."
        for key in [key for key in attributes if key.startswith(start)]:
            path = key[len(start) :].split(".")
            if _INDEX.fullmatch(path[0]) and len(path) <= _MAX_DEPTH and _plant(tree, path, attributes[key]):
                del attributes[key]
        return _gather(tree) if tree else None


Content = Whole | Joined | Flattened


def parse_text(text: str) -> Any:
    """Parse JSON text that holds an object, a list or a string; other text, and text that does not parse, is itself.

    Numbers and words stay text: a prompt `42` or `null` is no JSON.
    """
    if text.lstrip()[:1] not in _JSON_STARTS:
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def parse_json(text: str | bytes) -> Any:
    r"""Parse JSON; an escaped lone surrogate, which many encoders write, becomes U+FFFD.

    Raises ValueError for what is no JSON and for more than 200 levels.
    """
    try:
        return from_json(text)
    except ValueError:
        repaired = _without_lone_surrogates(text)
        if repaired is None:
            raise
        return from_json(repaired)


def _without_lone_surrogates(text: str | bytes) -> str | None:
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return None
    # Every backslash of JSON begins an escape, so a scan from left to right meets escapes only.
    repaired = _ESCAPES.sub(lambda match: match[0] if match[1] is None else "\\ufffd", text)
    return None if repaired == text else repaired


class _Branch(dict[str, Any]):
    """A level of flattened keys, in distinction from an object that is the value of a key."""


def _plant(branch: _Branch, path: list[str], value: Any) -> bool:
    for name in path[:-1]:
        if name not in branch:
            branch[name] = _Branch()
        elif type(branch[name]) is not _Branch:
            return False
        branch = branch[name]
    if path[-1] in branch:
        return False
    branch[path[-1]] = value
    return True


def _gather(branch: _Branch) -> Any:
    if all(map(_INDEX.fullmatch, branch)):
        return [_unwrapped(branch[name], _ELEMENTS) for name in sorted(branch, key=int)]
    return {name: _unwrapped(item, (name,)) for name, item in branch.items()}


# OpenInference names each element of a list, and each image, once more: llm.input_messages.0.message.role.
_ELEMENTS: Final = ("message", "message_content", "tool_call", "document", "prompt", "completion")


def _unwrapped(item: Any, names: Collection[str]) -> Any:
    if type(item) is not _Branch:
        return item
    if len(item) == 1:
        ((name, inner),) = item.items()
        if name in names and type(inner) is _Branch:
            return _gather(inner)
    return _gather(item)
