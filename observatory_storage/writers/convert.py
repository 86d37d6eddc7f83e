"""Rows as they were given, turned into tuples in wire form: checked, repaired, or rejected one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from sqlalchemy.orm import DeclarativeBase

from observatory_storage.errors import RejectedRowError
from observatory_storage.text import digits, encode_json, repair_text
from observatory_storage.writers.instances import mapping_of
from observatory_storage.writers.kinds import Kind, Unfit
from observatory_storage.writers.tables import Column, Layout

GivenRow = Mapping[str, Any]
WireRow = tuple[Any, ...]

_NONE: Final = frozenset({type(None)})
_DICT: Final = frozenset({dict})
_GATHERED_ROWS: Final = 128
_ATTRIBUTES: Final = "attributes"
# Under this prefix a row's attributes keep what its column could not hold.
_ORIGINAL: Final = "observatory."


def _is_resource(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("attributes") or {}, Mapping)


Shape = tuple[str, Callable[[Any], bool], str]
"""A column, what tells whether a value fits, and the words for what does."""
PROJECT_SHAPE: Final[Shape] = ("project", lambda value: isinstance(value, str), "text")
RESOURCE_SHAPE: Final[Shape] = ("resource", _is_resource, "a mapping, and so its attributes")


class Rejections:
    """The rows of one batch that cannot be stored, each with its reason.

    `counts` has what else became of rows before anything was sent, by the names of the writer's statistics.
    """

    def __init__(self) -> None:
        self.errors: list[RejectedRowError] = []
        self.counts: Counter[str] = Counter()
        self._once: set[int] = set()

    def add(self, row: GivenRow, reason: str, sqlstate: str | None = None) -> None:
        """Reject one row."""
        self.errors.append(RejectedRowError(reason, row=row, sqlstate=sqlstate))

    def add_once(self, row: GivenRow, reason: str, named: GivenRow | None = None) -> None:
        """Reject one row, unless this very object was rejected before: parts of a batch share it.

        `named` is handed over in its place, where the row itself does not say what it belongs to.
        """
        if id(row) not in self._once:
            self._once.add(id(row))
            self.add(row if named is None else named, reason)

    def sift(self, rows: Sequence[GivenRow], convert: Callable[[dict[int, str]], list[WireRow]]) -> list[WireRow]:
        """Convert rows; reject those for which `convert` gives a reason and return the others."""
        failed: dict[int, str] = {}
        converted = convert(failed)
        for at, reason in failed.items():
            self.add_once(rows[at], reason)
        return [row for at, row in enumerate(converted) if at not in failed] if failed else converted


def as_mapping(row: object) -> GivenRow:
    """Return the given columns of a mapping or an ORM instance. Raises RejectedRowError for what is no row."""
    # The abstract class takes five times as long to ask.
    if isinstance(row, (dict, Mapping)):
        return row
    if isinstance(row, DeclarativeBase):
        return mapping_of(row)
    raise RejectedRowError(f"a row is of type {type(row).__name__}; it must be a mapping or a model instance")


def as_mappings(rows: list[Any]) -> list[GivenRow]:
    """Return what `as_mapping` does of each row, the same list where all are dicts."""
    return rows if set(map(type, rows)) <= _DICT else list(map(as_mapping, rows))


def convert_column(
    column: Column,
    values: list[Any],
    failed: dict[int, str],
    kept: dict[int, dict[str, Any]],
) -> list[Any]:
    """Convert the values of one column.

    Reasons go to `failed` and originals to `kept`, both by the row's place.
    """
    if column.default is not None and has_none(values):
        values = [column.default if value is None else value for value in values]
    if not column.required and (not values or values[0] is None) and are_none(values):
        return values
    converted = _bulk(column.kind, values)
    if converted is not None and not (column.required and None in converted):
        return converted
    out: list[Any] = []
    for place, value in enumerate(values):
        stored: Any = None
        try:
            if value is not None:
                stored = column.kind.convert(value)
            elif column.required:
                failed.setdefault(place, f"{column.name} is missing")
        except RejectedRowError as error:
            failed.setdefault(place, f"{column.name} {error.reason.strip()}")
        except Unfit as unfit:
            stored = unfit.stored
            kept.setdefault(place, {})[column.name] = value
            if stored is None and column.required:
                failed.setdefault(place, f"{column.name} is {_shown(value)}")
        except Exception as error:  # noqa: BLE001 - the value's own code failed: that costs its row
            failed.setdefault(place, f"{column.name} cannot be read: {type(error).__name__}")
        out.append(stored)
    return out


def convert_rows(
    layout: Layout,
    rows: Sequence[GivenRow],
    failed: dict[int, str],
    *,
    ready: Mapping[str, list[Any]] | None = None,
    kept: dict[int, dict[str, Any]] | None = None,
) -> list[WireRow]:
    """Convert rows to tuples in the order of the layout's columns, as `convert_columns` converts them."""
    given = gather(rows, [name for name in layout.names if ready is None or name not in ready])
    columns = convert_columns(layout, given, failed, ready=ready, kept=kept)
    return list(zip(*map(columns.__getitem__, layout.names), strict=True))


def convert_columns(
    layout: Layout,
    given: Mapping[str, list[Any]],
    failed: dict[int, str],
    *,
    ready: Mapping[str, list[Any]] | None = None,
    kept: dict[int, dict[str, Any]] | None = None,
) -> dict[str, list[Any]]:
    """Convert columns of values as they were given; return the layout's columns, by name.

    `failed` gets the reasons of rows that cannot be stored, by place; their values are not to be used.
    `ready` holds columns that are converted already. What a column could not hold, in `kept` and found
    here, is added to the row's attributes as text under `observatory.<column>`.
    """
    kept = {} if kept is None else kept
    ready = {} if ready is None else ready
    columns = {**ready, **_convert_together(layout, given, ready)}
    for column in layout.columns:
        if column.name not in columns and column.name != _ATTRIBUTES:
            columns[column.name] = convert_column(column, given[column.name], failed, kept)
    if _ATTRIBUTES in layout.names and _ATTRIBUTES not in ready:
        # Last, when all that is kept is known.
        values = given[_ATTRIBUTES]
        if kept:
            values = [
                _with_originals(value, kept[place]) if place in kept else value for place, value in enumerate(values)
            ]
        attributes = layout.columns[layout.names.index(_ATTRIBUTES)]
        columns[_ATTRIBUTES] = convert_column(attributes, values, failed, {})
    elif _ATTRIBUTES not in layout.names:
        # There is no other place for the original, and to lose it would be silent.
        for at, originals in kept.items():
            for name, value in originals.items():
                if columns[name][at] is None:
                    failed.setdefault(at, f"{name} is {_shown(value)}, which the column cannot hold")
    return columns


def _bulk(kind: Kind, values: list[Any]) -> list[Any] | None:
    try:
        return kind.bulk(values)
    except Exception:  # noqa: BLE001 - values may be objects whose own code fails; the walk finds which
        return None


def gather(
    rows: Sequence[GivenRow], names: Sequence[str], present: AbstractSet[str] | None = None
) -> dict[str, list[Any]]:
    """Return the values of some columns, by column; those that are not `present` are in no row.

    Goes from row to row and not from column to column, because a row's values lie together in memory; and by so few
    rows that what they give stays in the processor's cache until it is in columns.
    """
    there = names if present is None else [name for name in names if name in present]
    found: dict[str, list[Any]] = {name: [] for name in there}
    for first in range(0, len(rows), _GATHERED_ROWS):
        values: list[Any] = []
        for row in rows[first : first + _GATHERED_ROWS]:
            values.extend(map(row.get, there))
        for place, column in enumerate(found.values()):
            column += values[place :: len(there)]
    if len(there) < len(names):
        absent: list[Any] = [None] * len(rows)
        found.update((name, absent.copy()) for name in names if name not in found)
    return found


def _convert_together(
    layout: Layout, given: Mapping[str, list[Any]], ready: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """Check the columns of each kind at once, which costs less than one after the other; return those in order."""
    columns: dict[str, list[Any]] = {}
    for kind, names in layout.together.items():
        group = {name: given[name] for name in names if name not in ready}
        if _bulk(kind, list(chain.from_iterable(group.values()))) is not None:
            columns |= group
    return columns


def known_rows(
    rows: Sequence[GivenRow], known: frozenset[str], rejections: Rejections
) -> tuple[Sequence[GivenRow], frozenset[str]]:
    """Reject rows with keys that are no column; return the others and all keys that are present in rows."""
    # In C, and for hardly any batch is there more to do.
    present: frozenset[str] = frozenset().union(*rows)
    if present <= known:
        return rows, present
    good = []
    for row in rows:
        reason = unknown_keys(row, known)
        if reason is None:
            good.append(row)
        else:
            rejections.add_once(row, reason)
    return good, present


def well_formed(
    rows: Sequence[GivenRow], given: Mapping[str, list[Any]], shapes: Sequence[Shape], rejections: Rejections
) -> Sequence[GivenRow]:
    """Reject rows with values, given by column, that are not of the shape they must have; return the others."""
    reasons: dict[int, str] = {}
    for name, fits, shape in shapes:
        values = given[name]
        if are_none(values):
            continue
        # Most spans share these: each object is looked at once.
        objects = dict(zip(map(id, values), values, strict=True))
        bad = {key for key, value in objects.items() if value is not None and not fits(value)}
        for place, value in enumerate(values) if bad else ():
            if id(value) in bad:
                reasons.setdefault(place, f"{name} is of another shape; it must be {shape}")
    for place, reason in reasons.items():
        rejections.add(rows[place], reason)
    return [row for place, row in enumerate(rows) if place not in reasons] if reasons else rows


def are_none(values: Sequence[Any]) -> bool:
    """Tell whether all values are None, by their types: to compare one with None may run its own code, and fail."""
    return set(map(type, values)) <= _NONE


def has_none(values: Sequence[Any]) -> bool:
    """Tell whether some value is None, by their types, as `are_none` does."""
    return not _NONE.isdisjoint(map(type, values))


def take(places: Sequence[int]) -> Callable[[list[Any]], list[Any]]:
    """Return what takes the values at some places from a list, in their order; for many lists in C."""
    if isinstance(places, range):
        return itemgetter(slice(places.start, places.stop))
    if len(places) < 2:
        return lambda values: [values[place] for place in places]
    taken = itemgetter(*places)
    return lambda values: list(taken(values))


def unknown_keys(row: GivenRow, known: frozenset[str]) -> str | None:
    """Return the reason to reject a row with keys that are no column, or None."""
    unknown = sorted(map(_as_text, row.keys() - known))
    if not unknown:
        return None
    names = ", ".join(_shown(key) for key in unknown[:5]) + (", …" if len(unknown) > 5 else "")
    return f"unknown column {names}: what is not a column belongs into attributes"


def _with_originals(attributes: Any, originals: Mapping[str, Any]) -> Any:
    if attributes is not None and not isinstance(attributes, Mapping):
        return attributes
    texts = {f"{_ORIGINAL}{name}": _as_text(value) for name, value in originals.items()}
    return {**(attributes or {}), **texts}


def _as_text(value: Any) -> str:
    if isinstance(value, int):
        return digits(value)
    try:
        return encode_json(value).decode() if isinstance(value, (Mapping, list, tuple)) else str(value)
    except Exception:  # noqa: BLE001 - the value's own code failed: its type is all there is to keep
        return f"<{type(value).__name__}>"


def _shown(value: object) -> str:
    """Give a value's beginning for a message; what it holds may be long, or private."""
    text = repair_text(_as_text(value))
    return text if len(text) <= 40 else f"{text[:40]}…"
