"""Identities as pure functions: an id is computed from what came in and never looked up.

An OpenTelemetry trace id is 16 bytes, and so is a UUID: the trace id is the primary key of its trace.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import uuid
from collections.abc import Iterable
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.text import repair_text

# Fixed for ever: textual trace ids stored under it would otherwise change their UUIDs.
TRACE_NAMESPACE: Final = uuid.UUID("6f1d0c5e-9a0b-5c59-8f0e-0b5e7a70ace5")

_SPAN_ID_HEX = re.compile(r"[0-9a-fA-F]{16}", re.ASCII)
_TRACE_ID_HEX = re.compile(
    r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", re.ASCII
)
_LAST_MS: Final = 2**48 - 1
_UINT64: Final = struct.Struct("!Q").pack
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)


def resolve_trace_id(value: uuid.UUID | bytes | str) -> uuid.UUID:
    """Return the UUID of a trace.

    A UUID or 16 bytes are themselves; 32 hex digits, dashed or not and in any case, are that UUID; any
    other text maps by uuid5 under `TRACE_NAMESPACE`. Raises RejectedRowError for bytes of another length,
    for all zeros (OpenTelemetry's invalid id) and for empty text.
    """
    return uuid.UUID(bytes=trace_id_bytes(value))


def trace_id_bytes(value: uuid.UUID | bytes | str, what: str = "trace_id") -> bytes:
    """Return what `resolve_trace_id` does as the 16 bytes that are stored; errors call it `what`."""
    if isinstance(value, bytes):
        key = value
    elif isinstance(value, uuid.UUID):
        key = value.bytes
    elif isinstance(value, str):
        if not value:
            raise RejectedRowError(f"{what} is empty")
        if is_hex_trace_id(value):
            key = bytes.fromhex(value.replace("-", ""))
        else:
            key = uuid.uuid5(TRACE_NAMESPACE, repair_text(value)).bytes
    else:
        raise RejectedRowError(f"{what} is {_kind(value)}; it may be a UUID, 16 bytes or text")
    if len(key) != 16:
        raise RejectedRowError(f"{what} has {len(key)} bytes; it must have 16")
    if key == _NO_TRACE:
        raise RejectedRowError(f"{what} is all zeros, which OpenTelemetry defines as invalid")
    return key


def resolve_span_id(value: bytes | str, what: str = "span_id") -> bytes:
    """Return the 8 bytes of a span id.

    8 bytes are themselves, 16 hex digits are those bytes, any other text maps to the first 8 bytes of its
    SHA-256. Raises RejectedRowError, naming `what`, for bytes of another length, all zeros and empty text.
    """
    if isinstance(value, str):
        if not value:
            raise RejectedRowError(f"{what} is empty")
        if is_hex_span_id(value):
            key = bytes.fromhex(value)
        else:
            key = hashlib.sha256(repair_text(value).encode()).digest()[:8]
    elif isinstance(value, bytes):
        key = value
    else:
        raise RejectedRowError(f"{what} is {_kind(value)}; it may be 8 bytes or text")
    if len(key) != 8:
        raise RejectedRowError(f"{what} has {len(key)} bytes; it must have 8")
    if key == _NO_SPAN:
        raise RejectedRowError(f"{what} is all zeros, which OpenTelemetry defines as invalid")
    return key


def is_hex_trace_id(value: str) -> bool:
    """Tell whether the text is a trace id as such: 32 hex digits, or the dashed form of a UUID."""
    return _TRACE_ID_HEX.fullmatch(value) is not None


def is_hex_span_id(value: str) -> bool:
    """Tell whether the text is a span id as such: 16 hex digits."""
    return _SPAN_ID_HEX.fullmatch(value) is not None


def content_id(*parts: Any) -> bytes:
    """Return the 128-bit content address of JSON-like values: BLAKE2b over their canonical JSON.

    Canonical is: keys sorted, no white space, non-ASCII escaped. Two values with equal canonical JSON have
    one address on every machine and in every release.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def series_id(metric_id: bytes, resource_id: bytes | None, attributes: bytes) -> bytes:
    """Return the id of a metric's series: BLAKE2b over metric, resource and the canonical JSON of its attributes."""
    parts = metric_id + (resource_id or bytes(16)) + attributes
    return hashlib.blake2b(parts, digest_size=16, person=b"series").digest()


def timed_ids(unix_ms: Iterable[int], contents: Iterable[bytes]) -> list[bytes]:
    """Return a time-ordered UUID of version 8 (RFC 9562) for each content: milliseconds since 1970, then a hash.

    The hash is 64 bits of SHA-256. Times outside the 48 bits that there are for them count as the first or the last.
    """
    digests = [hashlib.sha256(content).digest() for content in contents]
    times = [time if 0 <= time <= _LAST_MS else 0 if time < 0 else _LAST_MS for time in unix_ms]
    # 48 bits of time; the version and four zero bits; 8 bits; the variant and six zero bits; 56 bits.
    return [
        _UINT64(time << 16 | 0x8000 | digest[0]) + b"\x80" + digest[1:8]
        for time, digest in zip(times, digests, strict=True)
    ]
