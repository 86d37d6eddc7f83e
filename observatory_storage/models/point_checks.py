"""What a data point of a distribution must hold so that it can be right: decoders and writers ask alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import lt
from typing import Any, Final

from observatory_storage.errors import RejectedRowError

_NUMBER: Final = (int, float, Decimal)


def check_buckets(counts: Sequence[int], bounds: Sequence[float]) -> None:
    """Raise RejectedRowError where counts and bounds do not belong together, or the bounds do not ascend."""
    if len(counts) != len(bounds) + 1 and (counts or bounds):
        raise RejectedRowError(
            f"the data point has {len(counts)} bucket counts and {len(bounds)} bounds; there must be one count more"
        )
    # No comparison with a NaN holds; the only bound has none to be compared with.
    if not all(map(lt, bounds, bounds[1:])) or (len(bounds) == 1 and bounds[0] != bounds[0]):
        raise RejectedRowError("the data point's bounds do not ascend")


def check_quantiles(value: Any) -> None:
    """Raise RejectedRowError for what is no list of pairs of a quantile and its value, which may be null."""
    if not isinstance(value, (list, tuple)) or not all(map(_is_pair, value)):
        raise RejectedRowError("quantiles is of another shape; it must be a list of [quantile, value]")


def check_exemplars(value: Any) -> None:
    """Raise RejectedRowError for what is no list of mappings."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise RejectedRowError("exemplars is of another shape; it must be a list of mappings")


def _is_pair(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    quantile, number = value
    return _is_number(quantile) and (number is None or _is_number(number))


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool)
