"""Read log records from OTLP/JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import LogRow
from observatory_storage.otlp.json_members import (
    MisshapenError,
    Record,
    as_integer,
    count_of,
    dropped_of,
    integer_of,
    kind_of,
    list_of,
    member,
    text_of,
)
from observatory_storage.otlp.json_reader import scopes_of
from observatory_storage.otlp.json_values import any_value, attributes_of
from observatory_storage.otlp.log_records import Ordinals, SentRecord, log_row
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.scopes import Scope

_SEVERITIES: Final = {"SEVERITY_NUMBER_UNSPECIFIED": 0} | {
    f"SEVERITY_NUMBER_{name}{step or ''}": number
    for number, (name, step) in enumerate(
        ((name, step) for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL") for step in (0, 2, 3, 4)), 1
    )
}


def read_log_records(request: Record) -> Iterator[LogRow | RejectedRowError]:
    """Yield the row of each record of a parsed request, or why it cannot be stored, in order.

    Raises MisshapenError where a resource or a scope has another shape than OTLP/JSON gives it.
    """
    ordinals = Ordinals()
    for scope, group in scopes_of(request, Signal.LOGS):
        for record in list_of(group, "logRecords", "log_records"):
            try:
                if type(record) is not dict:
                    raise MisshapenError(f"a log record is {kind_of(record)}; OTLP/JSON has an object")
                yield _read_log_record(scope, ordinals, record)
            except (MisshapenError, RejectedRowError) as error:
                yield RejectedRowError(str(error), row=_identify(record))


def _identify(record: Any) -> Record:
    if type(record) is not dict:
        return {}
    sent = {"trace_id": member(record, "traceId", "trace_id"), "span_id": member(record, "spanId", "span_id")}
    return {name: str(value)[:200] for name, value in sent.items() if value is not None}


def _read_log_record(scope: Scope, ordinals: Ordinals, record: Record) -> LogRow:
    value = record.get("body")
    body = any_value(value)
    # Bytes come out as text too, but were none.
    is_text = type(body) is str and value is not None and ("stringValue" in value or "string_value" in value)
    sent = SentRecord(
        time_unix_nano=integer_of(record, "timeUnixNano", "time_unix_nano"),
        observed_time_unix_nano=integer_of(record, "observedTimeUnixNano", "observed_time_unix_nano"),
        severity_number=_severity(record),
        severity_text=text_of(record, "severityText", "severity_text"),
        event_name=text_of(record, "eventName", "event_name"),
        trace_id=_id(record, "traceId", "trace_id"),
        span_id=_id(record, "spanId", "span_id"),
        flags=count_of(record, "flags", "flags"),
        dropped_attributes_count=dropped_of(record),
    )
    attributes = attributes_of(record)
    return log_row(scope, ordinals, sent, attributes, body if is_text else None, None if is_text else body)


def _severity(record: Record) -> int | str:
    """Return the number; what is none and no name either comes back as it was sent."""
    value = as_integer(member(record, "severityNumber", "severity_number"))
    if value is None:
        return 0
    if type(value) is str:
        return _SEVERITIES.get(value, value)
    if type(value) is not int:
        raise MisshapenError("severityNumber is not an integer")
    return value


def _id(record: Record, name: str, snake_name: str) -> bytes | str:
    """Return the bytes of an id, or its text where that is not hexadecimal."""
    digits = text_of(record, name, snake_name)
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return digits
