"""Read log records from OTLP protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import LogRow
from observatory_storage.otlp.log_records import Ordinals, log_row
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.protobuf import any_value, attributes_of, scopes_of
from observatory_storage.otlp.scopes import Scope


def read_log_records(request: Any, ordinals: Ordinals | None = None) -> Iterator[LogRow | RejectedRowError]:
    """Yield the row of each record of an ExportLogsServiceRequest, or why it cannot be stored, in order.

    `ordinals` has counted the pieces before, where the request comes in several.
    """
    ordinals = ordinals or Ordinals()
    for scope, group in scopes_of(request, Signal.LOGS):
        for record in group.log_records:
            try:
                yield _read_log_record(scope, ordinals, record)
            except RejectedRowError as error:
                error.row = {"trace_id": record.trace_id.hex(), "span_id": record.span_id.hex()}
                yield error


def _read_log_record(scope: Scope, ordinals: Ordinals, record: Any) -> LogRow:
    value = record.body
    body: str | None = value.string_value
    body_json = None
    if not body and value.WhichOneof("value") != "string_value":
        body, body_json = None, any_value(value)
    return log_row(scope, ordinals, record, attributes_of(record.attributes), body, body_json)
