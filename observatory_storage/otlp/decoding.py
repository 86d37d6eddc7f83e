"""From a payload of one signal to its rows, whatever its compression and format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from observatory_storage.errors import DecodeError, RejectedRowError
from observatory_storage.otlp import json_reader, protobuf
from observatory_storage.otlp.json_members import MisshapenError, Record
from observatory_storage.otlp.payload import Format, Signal, format_of, unfold


class Decoded(Protocol):
    """What a payload held: rows, and what cannot be stored."""

    rejected: list[RejectedRowError]

    def add(self, outcome: Any) -> None:
        """Take a row, or why there is none."""

    def extend(self, other: Self) -> None:
        """Take what another payload held."""


D = TypeVar("D", bound=Decoded)


@dataclass(frozen=True, slots=True)
class Decoder(Generic[D]):
    """How one signal is read. Both readers yield rows, and a RejectedRowError for each that cannot be stored."""

    signal: Signal
    make: Callable[[], D]
    read_json: Callable[[Record], Iterable[Any]]
    read_protobuf: Callable[[Any], Iterable[Any]]

    def decode(self, data: bytes, content_type: str | None, max_decompressed_bytes: int) -> D:
        """Decode a request in any format. Raises DecodeError for what is no request of this signal at all."""
        data = unfold(bytes(data), max_decompressed_bytes)
        found = format_of(content_type, data)
        decoded = self.make()
        if found is Format.EMPTY or not data or (found is not Format.PROTOBUF and data.isspace()):
            return decoded
        if found is Format.JSON_LINES:
            for line in self.lines(data.splitlines()):
                decoded.extend(line)
            return decoded
        if found is Format.JSON:
            return self._from_json(data)
        for outcome in self.read_protobuf(protobuf.parse_request(data, self.signal)):
            decoded.add(outcome)
        if decoded.rejected:
            protobuf.refuse_other_signals(data, self.signal)
        return decoded

    def lines(self, lines: Iterable[bytes | str]) -> Iterator[D]:
        """Decode lines of JSON, of which each is a request; blank ones are passed over."""
        for number, line in enumerate(lines, start=1):
            encoded = line.encode(errors="surrogatepass") if isinstance(line, str) else line
            if not encoded.strip():
                continue
            try:
                decoded = self._from_json(encoded)
            except DecodeError as error:
                decoded = self.make()
                decoded.rejected.append(RejectedRowError(f"line {number}: {error}", row={}))
            for rejected in decoded.rejected:
                rejected.row = {**(rejected.row or {}), "line": number}
            yield decoded

    def decode_object(self, request: Record) -> D:
        """Decode a JSON object that is parsed. Raises DecodeError for what is no request of this signal at all."""
        json_reader.require_signal(request, self.signal)
        decoded = self.make()
        try:
            for outcome in self.read_json(request):
                decoded.add(outcome)
        except MisshapenError as error:
            raise DecodeError(f"this is no OTLP/JSON of {self.signal}: {error}") from error
        return decoded

    def _from_json(self, data: bytes) -> D:
        return self.decode_object(json_reader.parse_object(data, self.signal))
