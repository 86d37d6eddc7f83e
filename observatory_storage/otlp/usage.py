"""Token counts inside a usage object: a provider's own, or what Langfuse makes of it, as JSON or as Python's repr.

The counts come out by this package's rule: input includes cached tokens, output includes reasoning tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from observatory_storage.otlp.content import parse_text
from observatory_storage.otlp.facts import Reader, count, usd

_NOTHING: Final[Mapping[str, Any]] = {}
_CACHE_READ: Final = (
    "cache_read_input_tokens",
    "cached_tokens",
    "cache_read",
    "input_cached_tokens",
    "input_cache_read",
)
_CACHE_WRITE: Final = (
    "cache_creation_input_tokens",
    "cache_write_tokens",
    "cache_creation",
    "input_cache_creation",
    "input_cache_write_tokens",
)
_REASONING: Final = ("reasoning_tokens", "reasoning", "output_reasoning_tokens", "output_reasoning")
_DETAILS: Final = {
    "input": ("prompt_tokens_details", "input_tokens_details"),
    "output": ("completion_tokens_details", "output_tokens_details"),
}


def input_tokens(value: Any) -> int | None:
    """Read the input tokens of a usage object, cached ones included."""
    usage = _usage(value)
    whole = _first(usage, "prompt_tokens")
    if whole is not None:
        return whole
    whole = _first(usage, "input_tokens")
    if whole is not None:
        # Anthropic's own object counts what was read from and written to the cache apart.
        apart = (_first(usage, "cache_read_input_tokens"), _first(usage, "cache_creation_input_tokens"))
        return whole + sum(tokens or 0 for tokens in apart)
    return _langfuse_sum(usage, "input", extra=("cache_read_input_tokens", "cache_creation_input_tokens"))


def output_tokens(value: Any) -> int | None:
    """Read the output tokens of a usage object, reasoning tokens included."""
    usage = _usage(value)
    whole = _first(usage, "completion_tokens", "output_tokens")
    return whole if whole is not None else _langfuse_sum(usage, "output")


def total_tokens(value: Any) -> int | None:
    """Read the total of a usage object, where it states one."""
    return _first(_usage(value), "total_tokens", "total")


def cached_input_tokens(value: Any) -> int | None:
    """Read the part of the input tokens that came from a cache."""
    return _detail(_usage(value), "input", _CACHE_READ)


def cache_write_input_tokens(value: Any) -> int | None:
    """Read the part of the input tokens that was written to a cache."""
    return _detail(_usage(value), "input", _CACHE_WRITE)


def reasoning_tokens(value: Any) -> int | None:
    """Read the part of the output tokens that was spent on reasoning."""
    return _detail(_usage(value), "output", _REASONING)


def total_cost(value: Any) -> Decimal | None:
    """Read the total of Langfuse's cost object: the one it states, else the sum of its parts."""
    costs = _usage(value)
    total = usd(costs.get("total"))
    if total is not None:
        return total
    parts = [amount for amount in map(usd, costs.values()) if amount is not None]
    return sum(parts, Decimal(0)) if parts else None


def in_repr(*names: str) -> Reader:
    """Make a reader that finds the first of some numbers in the repr of a Python usage object."""
    patterns = [re.compile(rf"\b{name}['\"]?[:=] ?([0-9]{{1,13}})\b") for name in names]

    def read(value: Any) -> int | None:
        if type(value) is str:
            for pattern in patterns:
                if found := pattern.search(value):
                    return count(int(found[1]))
        return None

    return read


def _usage(value: Any) -> Mapping[str, Any]:
    usage = _parse(value) if type(value) is str else value
    return usage if type(usage) is dict else _NOTHING


# Half a dozen columns are read from the same small object.
@lru_cache(maxsize=16)
def _parse(value: str) -> Any:
    return parse_text(value)


def _first(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((tokens for name in names if (tokens := count(usage.get(name))) is not None), None)


def _detail(usage: Mapping[str, Any], side: str, names: tuple[str, ...]) -> int | None:
    for details in _DETAILS[side]:
        inner = usage.get(details)
        if type(inner) is dict and (tokens := _first(inner, *names)) is not None:
            return tokens
    return _first(usage, *names)


def _langfuse_sum(usage: Mapping[str, Any], side: str, extra: tuple[str, ...] = ()) -> int | None:
    """Add up what Langfuse splits: `input` and each `input_…` exclude each other, but for the priority tier."""
    parts = [
        tokens
        for name, value in usage.items()
        if (name == side or name.startswith(f"{side}_") or name in extra)
        and not name.startswith(f"{side}_priority")
        and (tokens := count(value)) is not None
    ]
    return sum(parts) if parts else None
