"""What a payload is, before it is decoded: its compression, its format, and which signal it carries."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from observatory_storage.errors import DecodeError

MAX_DECOMPRESSED_BYTES: Final = 256 * 1024 * 1024
"""How far a gzip payload may unfold: over ten times what a Collector takes in one request (20 MiB)."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
BOM: Final = b"\xef\xbb\xbf"
# A protobuf request may begin with the bytes of "\n{" as well, but not with a member's name after them.
_JSON_HEAD = re.compile(rb'\s*\{\s*(?:"[^"\x00-\x1f]|\})')
_SIGNAL_KEY = re.compile(rb'"(resource(?:Spans|_spans|Metrics|_metrics|Logs|_logs))"')
_SNIFFED_BYTES: Final = 64 * 1024


class Format(StrEnum):
    """How a payload is encoded."""

    PROTOBUF = "protobuf"
    JSON = "JSON"
    JSON_LINES = "JSON lines"
    EMPTY = "empty"


class Signal(StrEnum):
    """What a payload holds."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


JSON_KEYS: Final = {
    Signal.TRACES: ("resourceSpans", "resource_spans"),
    Signal.METRICS: ("resourceMetrics", "resource_metrics"),
    Signal.LOGS: ("resourceLogs", "resource_logs"),
}
"""The member of an OTLP/JSON request that holds its signal, in both spellings that JSON readers accept."""

_SIGNAL_OF_KEY: Final = {key: signal for signal, keys in JSON_KEYS.items() for key in keys}

_SIGNAL_OF_WORD: Final = {
    "trace": Signal.TRACES,
    "traces": Signal.TRACES,
    "span": Signal.TRACES,
    "spans": Signal.TRACES,
    "metric": Signal.METRICS,
    "metrics": Signal.METRICS,
    "log": Signal.LOGS,
    "logs": Signal.LOGS,
}

CONTENT_TYPES: Final = {
    "application/x-protobuf": Format.PROTOBUF,
    "application/protobuf": Format.PROTOBUF,
    "application/json": Format.JSON,
    "application/x-ndjson": Format.JSON_LINES,
    "application/jsonl": Format.JSON_LINES,
}


@dataclass(frozen=True, slots=True)
class Payload:
    """What `sniff` found. `signal` is None where only decoding would tell: in protobuf, and without a top key."""

    format: Format
    signal: Signal | None
    compressed: bool


def sniff(data: bytes) -> Payload:
    """Tell what a payload is from its beginning, without decoding it.

    Never raises: what is neither JSON nor empty is taken for protobuf. Only the first 64 KiB of a gzip
    payload are unfolded.
    """
    if not data.startswith(_GZIP):
        return Payload(_format(data), _signal(data), compressed=False)
    try:
        head = zlib.decompressobj(wbits=31).decompress(data, _SNIFFED_BYTES)
    except zlib.error:
        head = data
    return Payload(_format(head), _signal(head), compressed=True)


def signal_of(name: str, head: bytes = b"") -> Signal | None:
    """Tell the signal of a file from its name, else from the top key of its JSON; None where neither says.

    In the last part of a path a word counts that is a signal's: `app.logs.pb`, `traces-2026.json.gz`, `spans.jsonl`;
    of several the last. `head` is the beginning of the content, which may be gzipped.
    """
    words = re.split(r"[^a-z]+", re.split(r"[/\\]", name)[-1].lower())
    named = next((_SIGNAL_OF_WORD[word] for word in reversed(words) if word in _SIGNAL_OF_WORD), None)
    return sniff(head).signal if named is None else named


def format_of(content_type: str | None, data: bytes) -> Format:
    """Return the format that a content type names; None leaves it to `sniff`.

    Parameters such as a charset are ignored: JSON is UTF-8. Raises DecodeError for other content types.
    """
    if content_type is None:
        return _format(data)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in CONTENT_TYPES:
        raise DecodeError(
            f"content type {content_type[:100]!r} is not one of OTLP: "
            f"expected application/x-protobuf or application/json; {looks_like(data)}"
        )
    return CONTENT_TYPES[media_type]


def unfold(data: bytes, max_bytes: int = MAX_DECOMPRESSED_BYTES) -> bytes:
    """Decompress a gzip payload, with all its members; any other payload comes back as it is.

    Raises DecodeError where it is damaged, cut short, or would unfold to more than `max_bytes`.
    """
    if not data.startswith(_GZIP):
        return data
    unfolded: list[bytes] = []
    left = max_bytes
    while data:
        stream = zlib.decompressobj(wbits=31)
        try:
            # One byte more than allowed tells a payload that just fits from one that does not.
            part = stream.decompress(data, left + 1)
        except zlib.error as error:
            raise DecodeError(f"the gzip payload is damaged: {error}") from error
        left -= len(part)
        if left < 0:
            raise DecodeError(f"the gzip payload unfolds to more than {max_bytes} bytes")
        if not stream.eof:
            raise DecodeError("the gzip payload is cut short")
        unfolded.append(part)
        data = stream.unused_data.lstrip(b"\x00")
    return b"".join(unfolded)


def looks_like(data: bytes) -> str:
    """Say in words what a payload looks like, for error messages; never quotes it."""
    if data.startswith(_GZIP):
        return "the body looks like gzip inside gzip"
    if data.startswith(_ZSTD):
        return "the body looks like zstd, which is not read; send gzip or nothing"
    found = _format(data)
    if found is Format.EMPTY:
        return "the body is empty"
    if found is not Format.PROTOBUF:
        signal = _signal(data)
        return f"the body looks like {found}" + (f" of {signal}" if signal else "")
    if data.lstrip()[:1] == b"<":
        return "the body looks like HTML or XML"
    if all(byte >= 0x20 or byte in b"\t\r\n" for byte in data[:64]):
        return "the body looks like text"
    return "the body looks like binary data, as protobuf is"


def _format(data: bytes) -> Format:
    data = data.removeprefix(BOM)
    if not _JSON_HEAD.match(data):
        return Format.EMPTY if not data or data.isspace() else Format.PROTOBUF
    # No line break stands between two objects inside one JSON value: there would be a comma.
    first, _, rest = data.lstrip().partition(b"\n")
    lines = first.rstrip().endswith(b"}") and rest.lstrip()[:1] == b"{"
    return Format.JSON_LINES if lines else Format.JSON


def _signal(data: bytes) -> Signal | None:
    if not _JSON_HEAD.match(data.removeprefix(BOM)):
        return None
    key = _SIGNAL_KEY.search(data, 0, _SNIFFED_BYTES)
    return _SIGNAL_OF_KEY[key[1].decode()] if key else None
