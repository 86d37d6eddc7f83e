"""Text and JSON that PostgreSQL takes: what it refuses is repaired, and nothing else is touched.

PostgreSQL stores neither NUL nor lone surrogates, in text or in jsonb. Both become U+FFFD. Non-finite
numbers, which JSON lacks, become null.
"""

from __future__ import annotations

import base64
import enum
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
NUL_ESCAPE: Final = b"\\u0000"
# As orjson has them: signed and unsigned.
_INT64 = range(-(2**63), 2**64)


def repair_text(text: str) -> str:
    """Replace each NUL and each lone surrogate by U+FFFD; other text comes back as it is."""
    return _UNSTORABLE.sub("\ufffd", text)


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON that jsonb accepts, in UTF-8.

    Values and keys are repaired as `repair_text` does, by walking them: replacing the six characters
    of an escape in the encoded form would corrupt text that legitimately holds a backslash and u0000.
    Integers past 64 bits become text, bytes base64 text, and what JSON has no form for becomes its
    `str()`. Raises RecursionError for a value that is nested deeper than Python's recursion limit.
    """
    try:
        encoded = orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError):
        return _encode_repaired(value)
    # Hit by NULs, and by harmless text that spells the escape out; the walk tells them apart.
    return _encode_repaired(value) if NUL_ESCAPE in encoded else encoded


def encode_canonical_json(value: Any) -> bytes:
    """Encode a value as `encode_json` does, with sorted keys: equal values have equal bytes.

    Raises RecursionError for a value that is nested deeper than Python's recursion limit.
    """
    try:
        encoded = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, RecursionError):
        return _encode_repaired(value, sort_keys=True)
    return _encode_repaired(value, sort_keys=True) if NUL_ESCAPE in encoded else encoded


def _encode_repaired(value: Any, *, sort_keys: bool = False) -> bytes:
    # orjson ends at 254 levels, the standard library's encoder at Python's recursion limit.
    repaired = repair_json(value)
    return json.dumps(
        repaired, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=sort_keys
    ).encode()


def repair_json(value: Any) -> Any:
    """Return a copy of a JSON-like value that `encode_json` can encode; integers past 64 bits become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return repair_json(value.value)
    if isinstance(value, str):
        return repair_text(value)
    if isinstance(value, int):
        return int(value) if value in _INT64 else digits(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        repaired: dict[str, Any] = {}
        for key, item in value.items():
            name = repair_text(key if isinstance(key, str) else str(key))
            while name in repaired:  # two keys that were different before
                name += "\ufffd"
            repaired[name] = repair_json(item)
        return repaired
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Iterable):
        return [repair_json(item) for item in value]
    try:
        # Times, UUIDs and dataclasses, in the form that they have when nothing needs repair.
        return repair_json(orjson.loads(orjson.dumps(value)))
    except orjson.JSONEncodeError:
        return repair_text(str(value))


def digits(value: int) -> str:
    """Return an integer as text, in hexadecimal where `str()` refuses it (past 4,300 digits)."""
    return str(value) if value.bit_length() < 14_000 else hex(value)
