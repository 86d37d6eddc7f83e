"""Column kinds of ids: bytes on the wire, text of any kind as it is given."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import is_hex_span_id, is_hex_trace_id, resolve_span_id, trace_id_bytes
from observatory_storage.writers import wire
from observatory_storage.writers.kinds import Kind, Unfit

_NONE: Final = type(None)
_NO_PARENT: Final = ("", b"", bytes(8), "0" * 16)
_NO_TRACE: Final = ("", b"", bytes(16), "0" * 32, uuid.UUID(int=0))


class _IdKind(Kind):
    length: ClassVar[int]

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if set(map(type, values)) != {bytes} or set(map(len, values)) != {self.length}:
            return None
        return values if bytes(self.length) not in values else None

    def element(self, value: bytes) -> bytes:
        return wire.bytes_element(value)


class TraceIdKind(_IdKind):
    """A trace id as 16 bytes; other text than hex digits is set aside as the original."""

    copy_type = "bytea"
    array_type = "uuid"
    element_oid = 2950
    length = 16

    def convert(self, value: Any) -> bytes:
        key = trace_id_bytes(value, "")
        if isinstance(value, str) and not is_hex_trace_id(value):
            raise Unfit(key)
        return key


class SpanIdKind(_IdKind):
    """A span id as 8 bytes; other text than hex digits is set aside as the original."""

    copy_type = "bytea"
    array_type = "bytea"
    element_oid = 17
    length = 8

    def convert(self, value: Any) -> bytes | None:
        key = resolve_span_id(value, "")
        if isinstance(value, str) and not is_hex_span_id(value):
            raise Unfit(key)
        return key


class ParentSpanIdKind(SpanIdKind):
    """The span id of a parent; empty and all zeros mean that there is none, as in OpenTelemetry."""

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {bytes, _NONE}:
            return None
        present = [value for value in values if value is not None]
        return values if set(map(len, present)) <= {self.length} and bytes(self.length) not in present else None

    def convert(self, value: Any) -> bytes | None:
        return None if value in _NO_PARENT else super().convert(value)


class LinkedTraceIdKind(_IdKind):
    """The trace that a row refers to; empty and all zeros mean that there is none, what is no id is set aside."""

    copy_type = "bytea"
    array_type = "uuid"
    element_oid = 2950
    length = 16

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {bytes, _NONE}:
            return None
        present = [value for value in values if value is not None]
        return values if set(map(len, present)) <= {self.length} and bytes(self.length) not in present else None

    def convert(self, value: Any) -> bytes | None:
        if value in _NO_TRACE:
            return None
        try:
            key = trace_id_bytes(value, "")
        except RejectedRowError:
            raise Unfit(None) from None
        if isinstance(value, str) and not is_hex_trace_id(value):
            raise Unfit(key)
        return key


class LinkedSpanIdKind(ParentSpanIdKind):
    """The id of a span that a row refers to; what is no id is set aside."""

    def convert(self, value: Any) -> bytes | None:
        try:
            return super().convert(value)
        except RejectedRowError:
            raise Unfit(None) from None


class ContentIdKind(TraceIdKind):
    """A 128-bit content address."""

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {bytes, _NONE}:
            return None
        return values if {len(value) for value in values if value is not None} <= {self.length} else None

    def convert(self, value: Any) -> bytes:
        if isinstance(value, str) and not is_hex_trace_id(value):
            raise RejectedRowError(f"is {value[:40]!r}; it may be a UUID or 16 bytes")
        return trace_id_bytes(value, "")
