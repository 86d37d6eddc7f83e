"""Build log rows from the parts that the protobuf and the JSON reader find: one builder for both."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple, cast

from observatory_storage.models.rows import LogRow
from observatory_storage.otlp.facts import text
from observatory_storage.otlp.scopes import Scope
from observatory_storage.otlp.times import EPOCH, time_of
from observatory_storage.text import encode_canonical_json, repair_text

KEPT: Final = "observatory."
"""How the names of attributes begin that keep what a column cannot hold."""

# Before the field there was an attribute; LiteLLM spells it its own way.
EVENT_NAME_KEYS: Final = frozenset({"event.name", "event_name"})
"""Attributes that name the event where the field does not."""

_SEVERITIES: Final = range(1, 25)
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)

Row = dict[str, Any]


class SentRecord(NamedTuple):
    """What is taken from a record as it was sent, under OTLP's names: a message of protobuf serves in its place.

    A severity or an id that cannot be read is text.
    """

    time_unix_nano: int
    observed_time_unix_nano: int
    severity_number: int | str
    severity_text: str
    event_name: str
    trace_id: bytes | str
    span_id: bytes | str
    flags: int
    dropped_attributes_count: int


class Ordinals:
    """Numbers equal records of one request, so that two equal lines of a batch stay two.

    Records that differ in their time, their span or their body, as nearly all do, are told apart by these; the
    content of the others is hashed, as it will be stored.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[Any, ...], Row | None] = {}
        self._counts: dict[bytes, int] = {}

    def number(self, row: Row) -> None:
        """Set the row's `ordinal` where a record equal to it came before in this request."""
        body = row.get("body")
        if body is not None and not (body.isascii() and "\x00" not in body):
            body = repair_text(body)
        key = (row["timestamp"], row.get("observed_timestamp"), row.get("span_id"), body)
        first = self._first.setdefault(key, row)
        if first is row:
            return
        if first is not None:
            self._first[key] = None
            self._counts[_content(first)] = 1
        content = _content(row)
        before = self._counts.get(content, 0)
        self._counts[content] = before + 1
        if before:
            row["ordinal"] = before


def _content(row: Row) -> bytes:
    as_json = {name: value.hex() if type(value) is bytes else value for name, value in row.items()}
    return hashlib.blake2b(encode_canonical_json(as_json), digest_size=16).digest()


def log_row(
    scope: Scope,
    ordinals: Ordinals,
    sent: SentRecord,
    attributes: dict[str, Any],
    body: str | None,
    body_json: Any,
) -> LogRow:
    """Build the row of one log record.

    Zero and empty text mean that the client sent nothing, and become null. Times are floored to microseconds; a
    missing time is the observed time, else the epoch: the clock is never asked. A log is not lost because of its
    link or its severity: an id of a wrong length, one that could not be read (as text), and a severity that
    OpenTelemetry does not define are kept among the attributes, under names that begin with `observatory.`. Raises
    RejectedRowError for times that cannot be stored.
    """
    observed_time, time = sent.observed_time_unix_nano, sent.time_unix_nano
    observed = time_of(observed_time, "observed time") if observed_time else None
    row: Row = {
        **scope.columns,
        "timestamp": time_of(time, "time") if time else observed or EPOCH,
        "attributes": attributes,
    }
    if observed is not None:
        row["observed_timestamp"] = observed
    if severity_number := sent.severity_number:
        if severity_number in _SEVERITIES:
            row["severity_number"] = severity_number
        else:
            attributes[KEPT + "severity_number"] = severity_number
    if severity_text := sent.severity_text:
        row["severity_text"] = severity_text
    if body is not None:
        row["body"] = body
    elif body_json is not None:
        row["body_json"] = body_json
    if event_name := sent.event_name:
        row["event_name"] = event_name
    elif not EVENT_NAME_KEYS.isdisjoint(attributes):
        _take_event_name(row, attributes)
    if (trace_id := sent.trace_id) and trace_id != _NO_TRACE:
        if len(trace_id) == 16 and type(trace_id) is bytes:
            row["trace_id"] = trace_id
        else:
            _keep_id(attributes, "trace_id", trace_id)
    if (span_id := sent.span_id) and span_id != _NO_SPAN:
        if len(span_id) == 8 and type(span_id) is bytes:
            row["span_id"] = span_id
        else:
            _keep_id(attributes, "span_id", span_id)
    if flags := sent.flags:
        row["trace_flags"] = flags
    if dropped := sent.dropped_attributes_count:
        row["dropped_attributes_count"] = dropped
    ordinals.number(row)
    return cast("LogRow", row)


def _take_event_name(row: Row, attributes: dict[str, Any]) -> None:
    name = next((found for key in sorted(EVENT_NAME_KEYS) if (found := text(attributes.get(key)))), None)
    if name is not None:
        row["event_name"] = name


def _keep_id(attributes: dict[str, Any], column: str, value: bytes | str) -> None:
    attributes[KEPT + column] = value.hex() if isinstance(value, bytes) else value
