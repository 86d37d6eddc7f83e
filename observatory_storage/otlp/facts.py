"""Read one attribute's value as one fact: a count, an amount, a name.

Each reader takes a value of any kind and returns None where it says nothing, so that the next attribute
in order of preference is asked. None of them raises.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from observatory_storage.otlp.content import parse_text
from observatory_storage.otlp.vocabulary import (
    FINISH_REASONS,
    MODEL_CALLS,
    OPERATIONS,
    PROVIDER_SUFFIXES,
    PROVIDERS,
    WRAPPERS,
)

Reader = Callable[[Any], Any]

# More than any call uses; a sum over millions of such spans still fits the bigint of a trace's summary.
MAX_COUNT: Final = 10**12
_MAX_MICROSECONDS: Final = 10**15
_MAX_USD: Final = 10**12
_DIGITS = re.compile(r"[0-9]{1,13}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?")


def text(value: Any) -> str | None:
    """Read a name: text as it is, a number as its digits, nothing where it is empty."""
    if type(value) is str:
        return value or None
    if type(value) is int:
        return str(value)
    return repr(value) if type(value) is float and math.isfinite(value) else None


def count(value: Any) -> int | None:
    """Read a number of tokens: whole, not negative, at most 10^12; digits as text count as well."""
    whole = value if type(value) is int else _whole(value)
    return whole if whole is not None and 0 <= whole <= MAX_COUNT else None


def usd(value: Any) -> Decimal | None:
    """Read an amount of US dollars: finite and not negative; a double by its shortest digits."""
    if type(value) is float or (type(value) is str and _NUMBER.fullmatch(value)):
        amount = Decimal(repr(value) if type(value) is float else value)
    elif type(value) is int and value <= _MAX_USD:
        amount = Decimal(value)
    else:
        return None
    return amount if amount.is_finite() and 0 <= amount <= _MAX_USD else None


def seconds(value: Any) -> int | None:
    """Read a duration in seconds as microseconds."""
    return _microseconds(value, 1_000_000, _MAX_MICROSECONDS // 1_000_000)


def milliseconds(value: Any) -> int | None:
    """Read a duration in milliseconds as microseconds."""
    return _microseconds(value, 1_000, _MAX_MICROSECONDS // 1_000)


def instant(value: Any) -> dt.datetime | None:
    """Read an ISO 8601 time, which may stand in quotes; without an offset it is UTC."""
    if type(value) is not str:
        return None
    try:
        time = dt.datetime.fromisoformat(value.strip().strip('"'))
        return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None


def tags(value: Any) -> list[str] | None:
    """Read a list of names, which may be JSON text; a single name is a list of one."""
    if type(value) is str:
        value = parse_text(value)
    names = [text(item) for item in value] if type(value) is list else [text(value)]
    return [name for name in names if name is not None] or None


def finish_reason(value: Any) -> str | None:
    """Read the first of the reasons why a model stopped, as OpenTelemetry spells it.

    OpenTelemetry's words are stop, length, content_filter, tool_call and error; a reason that is none of
    these is returned as the client spells it.
    """
    if type(value) is str:
        value = parse_text(value)
    for reason in value if type(value) is list else (value,):
        if type(reason) is str and reason:
            return _finish_reason(reason)
    return None


def provider(value: Any) -> str | None:
    """Read a provider of models as OpenTelemetry spells it; one it does not list in lower case."""
    return _provider(value) if type(value) is str else None


def operation(value: Any) -> str | None:
    """Read an operation as OpenTelemetry spells it; one it does not list as it is."""
    return _operation(value) if type(value) is str and value else None


def word(words: Mapping[str, str]) -> Reader:
    """Make a reader that translates by a table of lower-case words, and says nothing of other words."""

    def read(value: Any) -> str | None:
        return words.get(value.lower()) if type(value) is str else None

    return read


def member(name: str, read: Reader) -> Reader:
    """Make a reader of one member of an object, which may be JSON text."""

    def read_member(value: Any) -> Any:
        value = parse_text(value) if type(value) is str else value
        return read(value.get(name)) if type(value) is dict else None

    return read_member


def _whole(value: Any) -> int | None:
    if (type(value) is str and _DIGITS.fullmatch(value)) or (type(value) is float and value.is_integer()):
        return int(value)
    return None


def _microseconds(value: Any, unit: int, most: int) -> int | None:
    if type(value) is str and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) is not float and type(value) is not int:
        return None
    return round(value * unit) if 0 <= value <= most else None


@lru_cache(maxsize=256)
def _finish_reason(value: str) -> str:
    lower = value.lower().removeprefix("finishreason.").removeprefix("finish_reason_")
    return FINISH_REASONS.get(lower, value)


@lru_cache(maxsize=256)
def _operation(value: str) -> str:
    lower = value.strip().lower()
    return lower if lower in MODEL_CALLS or lower in WRAPPERS else OPERATIONS.get(lower, value)


@lru_cache(maxsize=256)
def _provider(value: str) -> str | None:
    name = value.strip().lower()
    if name in ("", "unknown", "none"):
        return None
    # "openai.chat" and "vertex.anthropic.messages" are looked up by ever shorter prefixes.
    prefix = name
    while prefix:
        if prefix in PROVIDERS:
            return PROVIDERS[prefix]
        prefix = prefix.rpartition(".")[0]
    head, _, suffix = name.rpartition(".")
    return head if head and suffix in PROVIDER_SUFFIXES else name
