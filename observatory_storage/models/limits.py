"""What columns that are summed may hold: so much that no real value is refused, so little that sums are exact."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

MAX_TOKENS: Final = 10**12
"""Tokens read, or written, by one span; four million such spans in a trace still sum to a bigint."""

_MAX_DIGITS_BEFORE_POINT: Final = 15
_MAX_DIGITS_AFTER_POINT: Final = 30


def is_amount(value: Decimal, *, total: bool = False) -> bool:
    """Tell whether a decimal is an amount of money: finite, below 10^15, with at most 30 digits after the point.

    A total of two amounts may have a digit more.
    """
    if not value.is_finite():
        return False
    digits = _MAX_DIGITS_BEFORE_POINT + (1 if total else 0)
    return int(value.as_tuple().exponent) >= -_MAX_DIGITS_AFTER_POINT and (not value or value.adjusted() < digits)


def are_amounts(values: Iterable[Decimal], *, total: bool = False) -> bool:
    """Tell whether all of these decimals are amounts of money, as `is_amount` says of each."""
    present = list(values)
    texts = list(map(str, present))
    # Looking at digits and exponent costs 0.5 µs a value, this a fifth: plain notation of so few characters has no
    # more digits than an amount may have. An exponent, an infinity or what is no number shows as a letter.
    joined = "".join(texts)
    plain = "E" not in joined and "N" not in joined and "I" not in joined
    if plain and max(map(len, texts), default=0) <= _MAX_DIGITS_BEFORE_POINT:
        return True
    return all(is_amount(value, total=total) for value in present)
