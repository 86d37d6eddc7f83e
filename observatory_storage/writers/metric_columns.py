"""The columns of data points that must agree with one another, converted and checked before the others."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.point_checks import check_buckets, check_exemplars, check_quantiles
from observatory_storage.writers.convert import are_none, convert_column
from observatory_storage.writers.tables import DATA_POINTS

_COUNTS: Final = ("count", "zero_count")
_COUNT_ARRAYS: Final = ("bucket_counts", "positive_counts", "negative_counts")
_IDS: Final = ("trace_id", "span_id")

MADE_COLUMNS: Final = frozenset({"value"})
"""Columns that are filled from others, though no row may have them."""


def point_columns(
    names: Collection[str], given: Mapping[str, list[Any]], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return those of the named columns that are checked against others; reasons and originals as `convert_column`.

    `value` follows from `value_int` where it is missing.
    """
    found: dict[str, list[Any]] = {}

    def take(name: str, repair: Callable[[Any], Any] | None = None) -> list[Any] | None:
        if name not in names:
            return None
        values = given[name]
        if repair is not None and not are_none(values):
            values = [
                None if value is None else _tried(repair, value, place, failed) for place, value in enumerate(values)
            ]
        found[name] = convert_column(DATA_POINTS.columns[DATA_POINTS.index[name]], values, failed, kept)
        return found[name]

    exact, values = take("value_int"), take("value")
    if exact is not None and values is not None:
        found["value"] = _agreed(values, exact, failed)
    for name in _COUNTS:
        _refuse(name, take(name), lambda count: count < 0, failed)
    for name in _COUNT_ARRAYS:
        _refuse(name, take(name), lambda counts: bool(counts) and min(counts) < 0, failed)
    bounds = take("bucket_bounds")
    if bounds is not None or "bucket_counts" in found:
        nothing = [None] * len(next(iter(found.values())))
        for place, pair in enumerate(zip(found.get("bucket_counts", nothing), bounds or nothing, strict=True)):
            if pair != (None, None) and place not in failed:
                _tried(lambda pair: check_buckets(pair[0] or (), pair[1] or ()), pair, place, failed)
    take("quantiles", _checked_quantiles)
    take("exemplars", _readable_exemplars)
    return found


def _agreed(values: list[Any], exact: list[Any], failed: dict[int, str]) -> list[Any]:
    if exact.count(None) == len(exact):
        return values
    agreed = list(values)
    for place, (value, whole) in enumerate(zip(values, exact, strict=True)):
        if whole is None or place in failed:
            continue
        if value is None:
            agreed[place] = float(whole)
        elif value != float(whole):
            failed[place] = f"value is {value} and value_int is {whole}; they must be the same number"
    return agreed


def _refuse(name: str, column: list[Any] | None, is_wrong: Callable[[Any], bool], failed: dict[int, str]) -> None:
    for place, value in enumerate(column or ()):
        if value is not None and is_wrong(value):
            failed.setdefault(place, f"{name} is below 0")


def _tried(work: Callable[[Any], Any], value: Any, place: int, failed: dict[int, str]) -> Any:
    try:
        return work(value)
    except RejectedRowError as error:
        failed.setdefault(place, error.reason)
    return None


def _checked_quantiles(value: Any) -> Any:
    check_quantiles(value)
    return value


def _readable_exemplars(value: Any) -> Any:
    """Give ids as hex digits, as decoders do; one that OpenTelemetry defines as invalid is left out."""
    check_exemplars(value)
    if not any(isinstance(item.get(name), (bytes, uuid.UUID)) for item in value for name in _IDS):
        return value
    return [dict(_hex_ids(item.items())) for item in value]


def _hex_ids(items: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
    for name, value in items:
        if name in _IDS and isinstance(value, (bytes, uuid.UUID)):
            digits = value.hex if isinstance(value, uuid.UUID) else value.hex()
            if digits.strip("0"):
                yield name, digits
        else:
            yield name, value
