"""Input files: opened, unpacked and cut into OTLP requests, one at a time, so that memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from observatory_storage.errors import DecodeError
from observatory_storage.otlp import DecodedLogs, DecodedMetrics, DecodedTraces, Signal, decode, signal_of
from observatory_storage.otlp.log_pieces import LogPieces
from observatory_storage.otlp.signals import JsonObject

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AnyDecoded = DecodedTraces | DecodedMetrics | DecodedLogs

STANDARD_INPUT: Final = "-"
PROTOBUF: Final = "application/x-protobuf"

# Requests are cut out of a protobuf file until they hold this much, so that a batch of rows comes together.
_CHUNK_BYTES: Final = 1 << 20
_BUFFER_BYTES: Final = 1 << 16
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
# An export request of any signal has one field, its resources: number 1, length-delimited. Its tag is a newline.
_RESOURCES: Final = 0x0A
_JSON_START = re.compile(rb'\s*(?:\[|\{\s*(?:\}|"[^"\x00-\x1f]+"\s*:))')
_JSON_SO_FAR = re.compile(rb"\s*\{?\s*")


@dataclass(frozen=True, slots=True)
class Part:
    """One signal of a request, decoded, or the reason why it could not be; `line` where the file has lines."""

    line: int | None
    decoded: AnyDecoded | None = None
    reason: str | None = None
    signal: Signal = Signal.TRACES
    is_wanted: bool = True
    """False for what a JSON object holds beside the one signal that was asked for."""


class Source:
    """A file, or standard input for `-`. `advance` is told the number of bytes read, packed as they are.

    Where `signal` is given, it is what the file holds. Else a JSON object holds what its keys say, be it several
    signals; other content holds what the file's name says, else traces. Standard input holds traces where nothing is
    given: a JSON object without any is an error.
    """

    def __init__(self, path: str, signal: Signal | None = None) -> None:
        self.path = path
        self._signal = signal
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
        is_json = _JSON_START.match(head) is not None
        found = self._signal
        if found is None and self.path != STANDARD_INPUT:
            found = signal_of(self.path, head)
        requests = _Requests(
            found or Signal.TRACES,
            is_guess=found is None,
            is_told=self._signal is not None,
            is_fixed=self._signal is not None or self.path == STANDARD_INPUT,
        )
        stream = _stream(head, stream)
        if is_json:
            yield from _json_parts(stream, requests)
        elif head.strip() or len(head) >= _BUFFER_BYTES:
            yield from _protobuf_parts(stream, requests)


@dataclass(slots=True)
class _Requests:
    """Decodes requests, or one request in pieces, of a signal that may be a guess.

    `is_told`: of a JSON object with several signals only this one is wanted. `is_fixed`: each JSON object has to hold
    it; else `signal` is for what does not say what it is, and follows the objects that do.
    """

    signal: Signal
    is_guess: bool
    is_told: bool
    is_fixed: bool
    _log_pieces: LogPieces = field(default_factory=LogPieces)

    def decode_json(self, data: bytes, line: int | None = None) -> list[Part]:
        """Decode each signal that a JSON object holds, or say why it cannot be; at least one part comes out."""
        try:
            sent = JsonObject(data, self.signal)
        except DecodeError as error:
            return [Part(line, reason=str(error))]
        if not sent.signals or (self.is_fixed and self.signal not in sent.signals):
            # Where it holds others, decoding says which.
            signals: tuple[Signal, ...] = (self.signal,)
        else:
            kept = self.signal if self.is_fixed else None
            signals = tuple(signal for signal in sent.signals if signal is kept or not sent.is_empty(signal))
            signals = signals or sent.signals
        if self.signal not in signals:
            self.signal = signals[0]
        return [
            self._part(partial(sent.decode, signal), signal, line, is_wanted=signal is self.signal or not self.is_told)
            for signal in signals
        ]

    def decode(self, data: bytes) -> Part:
        """Decode a request in protobuf, or say why it cannot be."""
        return self._part(lambda: decode(data, self.signal, PROTOBUF), self.signal)

    def decode_piece(self, data: bytes) -> Part:
        """Decode a part of one request in protobuf, or say why it cannot be."""
        if self.signal is Signal.LOGS:
            return self._part(lambda: self._log_pieces.decode(data), self.signal)
        return self.decode(data)

    def _part(
        self, read: Callable[[], AnyDecoded], signal: Signal, line: int | None = None, is_wanted: bool = True
    ) -> Part:
        try:
            return Part(line, read(), None, signal, is_wanted)
        except DecodeError as error:
            hint = "; --signal says what a file holds" if self.is_guess and "OTLP request of" in str(error) else ""
            return Part(line, None, f"{error}{hint}", signal, is_wanted)


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


def _json_parts(stream: io.BufferedReader, requests: _Requests) -> Iterator[Part]:
    """Decode one document, or the Collector's lines; a document may be spread over lines as well."""
    lines = ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())
    first = next(lines)
    parts = requests.decode_json(first[1], first[0])
    if any(part.decoded is not None for part in parts):
        yield from parts
    else:
        second = next(lines, None)
        if second is None or not (_is_complete(first[1]) or _is_complete(second[1])):
            yield from requests.decode_json(b"".join((first[1], second[1] if second else b"", stream.read())))
            return
        yield from parts
        yield from requests.decode_json(second[1], second[0])
    for number, line in lines:
        yield from requests.decode_json(line, number)


def _is_complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _protobuf_parts(stream: io.BufferedReader, requests: _Requests) -> Iterator[Part]:
    """Decode the request in pieces of whole resources; a small one comes out whole."""
    pending = bytearray()
    is_cut = False
    while tag := stream.read(1):
        if tag[0] != _RESOURCES:
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
            is_cut = True
            yield requests.decode_piece(bytes(pending))
            pending.clear()
    if pending:
        rest = bytes(pending)
        yield requests.decode_piece(rest) if is_cut else requests.decode(rest)
