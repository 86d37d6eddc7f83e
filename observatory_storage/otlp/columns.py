"""Fill a span row's typed columns from its attributes, by the table of conventions."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from observatory_storage.otlp.content import Content, Flattened, Joined
from observatory_storage.otlp.conventions import COLUMNS, CONTENT, Source
from observatory_storage.otlp.facts import Reader
from observatory_storage.otlp.vocabulary import MODEL_CALLS, NO_OPERATION, WRAPPERS

_MICROSECOND: Final = dt.timedelta(microseconds=1)


class _Fact(NamedTuple):
    """Where a column's value is looked for, in spans that carry one set of known attributes."""

    column: str
    key: str
    read: Reader
    otherwise: tuple[tuple[str, Reader], ...]


class _Plan(NamedTuple):
    """What to read from spans that carry one set of known attributes."""

    facts: tuple[_Fact, ...]
    content: tuple[tuple[str, tuple[Content, ...]], ...]


def fill_columns(row: dict[str, Any], attributes: dict[str, Any], first_token: dt.datetime | None) -> None:
    """Set the columns that the attributes say something about, and `counts_usage`.

    Content leaves the attributes. `row` has its start_time; `first_token` is the time of the event that
    marks the first token, which serves where no attribute does.
    """
    plan = _plan_of(attributes)
    for column, key, read, otherwise in plan.facts:
        value = read(attributes[key])
        if value is None:
            value = _first(attributes, otherwise)
            if value is None:
                continue
        row[column] = value
    _take_content(row, plan, attributes)
    if first_token is not None or type(row.get("ttft_us")) is dt.datetime:
        _settle_first_token(row, first_token)
    if "cost_usd" not in row and ("input_cost_usd" in row or "output_cost_usd" in row):
        row["cost_usd"] = row.get("input_cost_usd", Decimal(0)) + row.get("output_cost_usd", Decimal(0))
    if "input_tokens" in row or "output_tokens" in row:
        _settle_tokens(row, attributes)
    row["counts_usage"] = _counts_usage(row)


def content_of(attributes: dict[str, Any]) -> tuple[Any, Any]:
    """Return the content that a span with such attributes has as `input` and `output`; None where there is none."""
    row: dict[str, Any] = {}
    _take_content(row, _plan_of(attributes), dict(attributes))
    return row.get("input"), row.get("output")


def _first(attributes: dict[str, Any], choices: tuple[tuple[str, Reader], ...]) -> Any:
    return next((value for key, read in choices if (value := read(attributes[key])) is not None), None)


def _take_content(row: dict[str, Any], plan: _Plan, attributes: dict[str, Any]) -> None:
    for column, contents in plan.content:
        for content in contents:
            value = content.take(attributes)
            if value is not None:
                row[column] = value
                break


def _settle_first_token(row: dict[str, Any], first_token: dt.datetime | None) -> None:
    found = row.get("ttft_us", first_token)
    if type(found) is dt.datetime:
        waited = (found - row["start_time"]) // _MICROSECOND
        row["ttft_us"] = waited if waited >= 0 else None


def _settle_tokens(row: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Make input include cached tokens and output include reasoning tokens, and add up the total.

    Most clients count so. A part that was counted apart is added to its whole where the client is known to
    do so, or where the numbers prove it: the part is larger, or the stated total only comes out with it.
    """
    whole_in, whole_out, total = row.get("input_tokens"), row.get("output_tokens"), row.get("total_tokens")
    cached = (row.get("cached_input_tokens") or 0) + (row.get("cache_write_input_tokens") or 0)
    reasoning = row.get("reasoning_tokens") or 0
    if cached or reasoning:
        unexplained = -1 if total is None else total - (whole_in or 0) - (whole_out or 0)
        both = unexplained == cached + reasoning
        if reasoning and whole_out is not None and (both or reasoning > whole_out or unexplained == reasoning):
            whole_out = row["output_tokens"] = whole_out + reasoning
            unexplained -= reasoning
        if (
            cached
            and whole_in is not None
            and (both or cached > whole_in or unexplained == cached or _vercel_counts_cache_apart(row, attributes))
        ):
            whole_in = row["input_tokens"] = whole_in + cached
    least = (whole_in or 0) + (whole_out or 0)
    if total is None or total < least:
        row["total_tokens"] = least


def _vercel_counts_cache_apart(row: dict[str, Any], attributes: dict[str, Any]) -> bool:
    # Before version 6, which brought the details, the SDK passed on Anthropic's own count of uncached input.
    return (
        row.get("provider") == "anthropic"
        and "ai.usage.cachedInputTokens" in attributes
        and "ai.usage.inputTokenDetails.noCacheTokens" not in attributes
    )


def _counts_usage(row: dict[str, Any]) -> bool:
    """Tell whether a span is a model call; one whose operation is unknown is, if it names a model and tokens."""
    operation = row.get("operation")
    if operation == NO_OPERATION:
        row["operation"] = None
        return False
    if operation in MODEL_CALLS:
        return True
    return operation not in WRAPPERS and "total_tokens" in row and "model" in row


_FLATTENED: Final = {
    content.prefix: content.key
    for contents in CONTENT.values()
    for content in contents
    if isinstance(content, Flattened)
}
_FLATTENED_KEY: Final = re.compile(rf"({'|'.join(map(re.escape, _FLATTENED))})\.[0-9]")


def _keys_of(content: Content) -> tuple[str, ...]:
    return tuple(content.prefix + name for name in content.names) if isinstance(content, Joined) else (content.key,)


_KNOWN: Final = frozenset(
    key for sources in COLUMNS.values() for source in sources for key in (source.key, source.beside) if key is not None
) | frozenset(key for contents in CONTENT.values() for content in contents for key in _keys_of(content))


# Clients repeat themselves: which attributes to ask is decided once for each list of names, not for each span. All
# three caches are bounded, because anyone may send attributes of any name; and a long list seldom comes again.
_MOST_REMEMBERED: Final = 64
_LONGEST_REMEMBERED: Final = 8_192


def _plan_of(attributes: dict[str, Any]) -> _Plan:
    if len(attributes) <= _MOST_REMEMBERED and sum(map(len, attributes)) <= _LONGEST_REMEMBERED:
        return _plan_of_keys(tuple(attributes))
    return _plan(frozenset(map(_kind, attributes)))


@lru_cache(maxsize=1_024)
def _plan_of_keys(keys: tuple[str, ...]) -> _Plan:
    return _plan(frozenset(map(_kind, keys)))


@lru_cache(maxsize=16_384)
def _kind(key: str) -> str:
    """Name what an attribute is to the table: itself, the list it is a flattened part of, or nothing."""
    if key in _KNOWN:
        return key
    flattened = _FLATTENED_KEY.match(key)
    return _FLATTENED[flattened[1]] if flattened else ""


@lru_cache(maxsize=4_096)
def _plan(kinds: frozenset[str]) -> _Plan:
    def present(source: Source) -> bool:
        return source.key in kinds and (source.beside is None or source.beside in kinds)

    columns = (
        (column, tuple((source.key, source.read) for source in sources if present(source)))
        for column, sources in COLUMNS.items()
    )
    content = (
        (column, tuple(content for content in contents if not kinds.isdisjoint(_keys_of(content))))
        for column, contents in CONTENT.items()
    )
    return _Plan(
        facts=tuple(_Fact(column, *choices[0], choices[1:]) for column, choices in columns if choices),
        content=tuple((column, choices) for column, choices in content if choices),
    )
