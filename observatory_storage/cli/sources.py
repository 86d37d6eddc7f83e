"""Input files: opened, unpacked and cut into OTLP requests, one at a time, so that memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from observatory_storage.errors import DecodeError
from observatory_storage.otlp import DecodedTraces, decode_traces

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STANDARD_INPUT: Final = "-"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

# Requests are cut out of a protobuf file until they hold this much, so that a batch of spans comes together.
_CHUNK_BYTES: Final = 1 << 20
_BUFFER_BYTES: Final = 1 << 16
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
# ExportTraceServiceRequest has one field, resource_spans: number 1, length-delimited. Its tag is a newline.
_RESOURCE_SPANS: Final = 0x0A
_JSON_START = re.compile(rb'\s*(?:\[|\{\s*(?:\}|"[^"\x00-\x1f]+"\s*:))')
_JSON_SO_FAR = re.compile(rb"\s*\{?\s*")


@dataclass(frozen=True, slots=True)
class Part:
    """One request of a file, decoded, or the reason why it could not be; `line` where the file has lines."""

    line: int | None
    decoded: DecodedTraces | None = None
    reason: str | None = None


class Source:
    """A file, or standard input for `-`. `advance` is told the number of bytes read, packed as they are."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "standard input" if path == STANDARD_INPUT else path
        self.advance: Callable[[int], None] = lambda _: None

    @property
    def size(self) -> int | None:
        """The number of bytes to read; None where nobody knows."""
        if self.path == STANDARD_INPUT:
            return None
        try:
            status = Path(self.path).stat()
        except OSError:
            return 0
        return status.st_size if status.st_size else None

    def parts(self) -> Iterator[Part]:
        """Yield the file's requests. What cannot be read ends the file; what cannot be decoded, its line alone."""
        try:
            if self.path == STANDARD_INPUT:
                yield from self._read(cast("io.BufferedReader", sys.stdin.buffer))
                return
            with open(self.path, "rb") as file:
                yield from self._read(file)
        except IsADirectoryError:
            yield Part(None, reason="is a directory; name the files in it")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Part(None, reason=f"cannot be unpacked: {str(error).rstrip('.')}")
        except OSError as error:
            yield Part(None, reason=f"cannot be read: {error.strerror or error}")

    def _read(self, file: _Readable) -> Iterator[Part]:
        stream = _stream(b"", file, self.advance)
        magic = stream.read(len(_GZIP))
        stream = _stream(magic, stream)
        if magic == _GZIP:
            stream = _stream(b"", gzip.GzipFile(fileobj=stream))
        head = _head(stream)
        stream = _stream(head, stream)
        if _JSON_START.match(head):
            yield from _json_parts(stream)
        elif head.strip() or len(head) >= _BUFFER_BYTES:
            yield from _protobuf_parts(stream)


class _Readable(Protocol):
    def read1(self, size: int = ..., /) -> bytes: ...


class _Joined(io.RawIOBase):
    """Bytes that were read too early, and then the rest of a stream as it arrives."""

    def __init__(self, first: bytes, rest: _Readable, advance: Callable[[int], None]) -> None:
        self._first = first
        self._rest = rest
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        if self._first:
            data, self._first = self._first[: len(view)], self._first[len(view) :]
        else:
            data = self._rest.read1(len(view))
            self._advance(len(data))
        view[: len(data)] = data
        return len(data)


def _stream(first: bytes, rest: _Readable, advance: Callable[[int], None] = lambda _: None) -> io.BufferedReader:
    return io.BufferedReader(_Joined(first, rest, advance), _BUFFER_BYTES)


def _head(stream: io.BufferedReader) -> bytes:
    """Read as many lines as it takes to tell JSON from protobuf, which begins with a newline of its own.

    What comes back blank and short of the buffer is the whole file.
    """
    head = stream.readline(_BUFFER_BYTES).removeprefix(_BOM)
    while len(head) < _BUFFER_BYTES and _JSON_SO_FAR.fullmatch(head):
        line = stream.readline(_BUFFER_BYTES)
        if not line:
            break
        head += line
    return head


def _json_parts(stream: io.BufferedReader) -> Iterator[Part]:
    """Decode one document, or the Collector's lines; a document may be spread over lines as well."""
    lines = ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())
    first = next(lines)
    part = _decode(first[1], JSON, first[0])
    if part.decoded is not None:
        yield part
    else:
        second = next(lines, None)
        if second is None or not (_is_complete(first[1]) or _is_complete(second[1])):
            yield _decode(b"".join((first[1], second[1] if second else b"", stream.read())), JSON)
            return
        yield part
        yield _decode(second[1], JSON, second[0])
    for number, line in lines:
        yield _decode(line, JSON, number)


def _is_complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _protobuf_parts(stream: io.BufferedReader) -> Iterator[Part]:
    """Decode the request in pieces of whole resources: cutting it between them changes nothing."""
    pending = bytearray()
    while tag := stream.read(1):
        if tag[0] != _RESOURCE_SPANS:
            yield Part(None, reason="holds no OTLP traces: neither JSON nor the protobuf of an export request")
            return
        pending += tag
        length = 0
        for place in range(10):
            byte = stream.read(1)
            pending += byte
            length |= (byte[0] & 0x7F) << 7 * place if byte else 0
            if not byte or byte[0] < 0x80:
                break
        # Step by step: a length that is nonsense must not be allocated.
        while length > 0 and (block := stream.read(min(length, _CHUNK_BYTES))):
            pending += block
            length -= len(block)
        if len(pending) >= _CHUNK_BYTES:
            yield _decode(bytes(pending), PROTOBUF)
            pending.clear()
    if pending:
        yield _decode(bytes(pending), PROTOBUF)


def _decode(data: bytes, content_type: str, line: int | None = None) -> Part:
    try:
        return Part(line, decoded=decode_traces(data, content_type))
    except DecodeError as error:
        return Part(line, reason=str(error))
