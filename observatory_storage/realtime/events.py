"""Compact events of committed rows, and the entries of a stream that hold up to 200 of them."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import orjson

from observatory_storage.realtime.landed import COLUMNS, Landed

_log = logging.getLogger(__name__)

ENTRY_ROWS: Final = 200
# Where names or attributes make it larger than this, texts are cut further and attributes are left out.
_LARGE_ENTRY_BYTES: Final = 256 * 1024
_SHORT_CHARACTERS: Final = 100
_FORM: Final = b"1"
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_ID_DIGITS: Final = {"trace_id": 32, "id": 32, "span_id": 16}


class SpanEvent(NamedTuple):
    """A span that was stored, or whose finished version was.

    Ids are in hex digits; texts have their first 300 characters.
    """

    trace_id: str
    span_id: str
    start_time: dt.datetime
    project: str
    name: str
    service_name: str | None
    duration_us: int | None
    status: str
    operation: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None


class LogEvent(NamedTuple):
    """A log record that was stored; texts, `body` too, have their first 300 characters."""

    id: str
    timestamp: dt.datetime
    project: str
    severity_number: int | None
    severity_text: str | None
    service_name: str | None
    event_name: str | None
    body: str | None
    trace_id: str | None
    span_id: str | None


class PointEvent(NamedTuple):
    """A data point that was stored; `name` to `service_name` are None where the writer had but the metric's id.

    `attributes` are None where they are too large for an event: more than 1,024 bytes as JSON.
    """

    timestamp: dt.datetime
    project: str
    name: str | None
    unit: str | None
    metric_type: str | None
    service_name: str | None
    attributes: dict[str, Any] | None
    value: int | float | None
    value_count: int | None
    value_sum: float | None


Event = SpanEvent | LogEvent | PointEvent


class Entry(NamedTuple):
    """Events of one transaction, as an entry holds them.

    `publisher` is who wrote it, `first` the number of its first event among those that this one published to this
    stream, `dropped` how many of this signal it had dropped before.
    """

    publisher: bytes
    first: int
    dropped: int
    events: Sequence[Event]


def encode(landed: Landed) -> Iterator[tuple[str, int, bytes]]:
    """Yield projects with the number of events and the content of each entry, a column at a time, of compact rows."""
    project_at = landed.names.index("project")
    projects = {row[project_at] for row in landed.rows}
    for project in sorted(projects):
        rows = landed.rows if len(projects) == 1 else [row for row in landed.rows if row[project_at] == project]
        for first in range(0, len(rows), ENTRY_ROWS):
            part = rows[first : first + ENTRY_ROWS]
            found = dict(zip(landed.names, zip(*part, strict=True), strict=True))
            columns = _ENCODERS[landed.signal](found, len(part), landed)
            content = _dumps(columns)
            if len(content) > _LARGE_ENTRY_BYTES:
                content = _dumps([_shortened(column) for column in columns])
            yield project, len(part), content


def _shortened(column: Any) -> Any:
    """Return a column without what makes an entry large: long texts, and attributes."""
    # Ids come in one piece, of a size that is known.
    if isinstance(column, str):
        return column
    return [value[:_SHORT_CHARACTERS] if isinstance(value, str) else _plain(value) for value in column]


def _plain(value: Any) -> Any:
    return None if isinstance(value, orjson.Fragment) else value


def _dumps(columns: list[Any]) -> bytes:
    return orjson.dumps(columns, default=str)


def fields(publisher: bytes, first: int, dropped: int, content: bytes) -> dict[bytes, Any]:
    """Return the fields of an entry."""
    return {b"v": _FORM, b"p": publisher, b"n": first, b"d": dropped, b"c": content}


def decode(signal: str, project: str, found: Mapping[bytes, bytes]) -> Entry | None:
    """Read an entry; None for one of a form that this release does not know, or that is none of ours."""
    if found.get(b"v") != _FORM:
        return None
    try:
        columns = orjson.loads(found[b"c"])
        return Entry(found[b"p"], int(found[b"n"]), int(found[b"d"]), [*_DECODERS[signal](columns, project)])
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        _log.warning("an entry of %s of project %r cannot be read: %r", signal, project, error)
        return None


_Found = Mapping[str, tuple[Any, ...]]


def _spans(found: _Found, number: int, landed: Landed) -> list[Any]:
    return [_column(found, name, number) for name in COLUMNS["traces"] if name != "project"]


def _logs(found: _Found, number: int, landed: Landed) -> list[Any]:
    return [_column(found, name, number) for name in COLUMNS["logs"] if name != "project"]


def _points(found: _Found, number: int, landed: Landed) -> list[Any]:
    metrics = [landed.metrics.get(key, (None, None, None, None)) for key in found["metric_id"]]
    keys = zip(found["metric_id"], found["series_id"], strict=True)
    attributes = [landed.series.get(key) for key in keys]
    absent = (None,) * number
    values = [
        whole if whole is not None else value
        for value, whole in zip(found.get("value", absent), found.get("value_int", absent), strict=True)
    ]
    counts, sums = (found.get(name, absent) for name in ("count", "sum"))
    return [found["timestamp"], *zip(*metrics, strict=True), attributes, values, counts, sums]


def _column(found: _Found, name: str, number: int) -> Any:
    values = found.get(name)
    if values is None:
        return [None] * number
    if name in _ID_DIGITS:
        # One piece of text, where all have one: nearly always.
        return [value and value.hex() for value in values] if None in values else b"".join(values).hex()
    return values


def _read_spans(columns: list[Any], project: str) -> Iterator[SpanEvent]:
    trace_ids, span_ids, starts, *rest, costs = columns
    ids: Any = zip(_ids(trace_ids, "trace_id"), _ids(span_ids, "span_id"), map(_time, starts), strict=True)
    for key, other, cost in zip(ids, zip(*rest, strict=True), costs, strict=True):
        yield SpanEvent._make((*key, project, *other, None if cost is None else Decimal(cost)))


def _read_logs(columns: list[Any], project: str) -> Iterator[LogEvent]:
    ids, times, *rest, trace_ids, span_ids = columns
    of_trace: Any = zip(_ids(trace_ids, "trace_id"), _ids(span_ids, "span_id"), strict=True)
    keys: Any = zip(_ids(ids, "id"), map(_time, times), strict=True)
    for key, other, last in zip(keys, zip(*rest, strict=True), of_trace, strict=True):
        yield LogEvent._make((*key, project, *other, *last))


def _read_points(columns: list[Any], project: str) -> Iterator[PointEvent]:
    times, *rest = columns
    for time, other in zip(map(_time, times), zip(*rest, strict=True), strict=True):
        yield PointEvent._make((time, project, *other))


def _ids(column: Any, name: str) -> list[Any]:
    if isinstance(column, list):
        return column
    digits = _ID_DIGITS[name]
    return [column[first : first + digits] for first in range(0, len(column), digits)]


def _time(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)


_ENCODERS: Final[Mapping[str, Callable[[_Found, int, Landed], list[Any]]]] = {
    "traces": _spans,
    "logs": _logs,
    "metrics": _points,
}
_DECODERS: Final[Mapping[str, Callable[[list[Any], str], Iterator[Event]]]] = {
    "traces": _read_spans,
    "logs": _read_logs,
    "metrics": _read_points,
}
