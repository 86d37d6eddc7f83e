"""All three signals behind one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, overload

from observatory_storage.otlp import json_reader
from observatory_storage.otlp.decoding import Decoder
from observatory_storage.otlp.logs import LOGS, DecodedLogs
from observatory_storage.otlp.metrics import METRICS, DecodedMetrics
from observatory_storage.otlp.payload import JSON_KEYS, MAX_DECOMPRESSED_BYTES, Signal
from observatory_storage.otlp.traces import TRACES, DecodedTraces

AnyDecoded = DecodedTraces | DecodedMetrics | DecodedLogs

_DECODERS: Final[dict[Signal, Decoder[Any]]] = {decoder.signal: decoder for decoder in (TRACES, METRICS, LOGS)}


def decode(
    data: bytes,
    signal: Signal,
    content_type: str | None = "application/x-protobuf",
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> AnyDecoded:
    """Decode an OTLP request of a signal that is known only when the program runs.

    Where it is known before, `decode_traces`, `decode_metrics` and `decode_logs` say what comes out. A JSON object
    may hold other signals beside this one: they are not looked at.
    """
    if signal is Signal.TRACES:
        return TRACES.decode(data, content_type, max_decompressed_bytes)
    if signal is Signal.METRICS:
        return METRICS.decode(data, content_type, max_decompressed_bytes)
    return LOGS.decode(data, content_type, max_decompressed_bytes)


class JsonObject:
    """A JSON object, parsed once, which may hold several signals.

    `expected` is the one that errors speak of. Raises DecodeError for what is no JSON, or no object.
    """

    def __init__(self, data: bytes, expected: Signal) -> None:
        self._request = json_reader.parse_object(data, expected)
        self.signals = json_reader.signals_in(self._request)

    def is_empty(self, signal: Signal) -> bool:
        """Tell whether the member of a signal is absent, null or an empty list."""
        return not any(self._request.get(key) for key in JSON_KEYS[signal])

    def decode(self, signal: Signal) -> AnyDecoded:
        """Decode one of its signals. Raises DecodeError where it is no request of that."""
        decoded: AnyDecoded = _DECODERS[signal].decode_object(self._request)
        return decoded


@overload
def iter_json_lines(
    lines: Iterable[bytes | str], signal: Literal[Signal.TRACES] = Signal.TRACES
) -> Iterator[DecodedTraces]: ...


@overload
def iter_json_lines(lines: Iterable[bytes | str], signal: Literal[Signal.METRICS]) -> Iterator[DecodedMetrics]: ...


@overload
def iter_json_lines(lines: Iterable[bytes | str], signal: Literal[Signal.LOGS]) -> Iterator[DecodedLogs]: ...


def iter_json_lines(lines: Iterable[bytes | str], signal: Signal = Signal.TRACES) -> Iterator[AnyDecoded]:
    """Yield what each line of OTLP/JSON holds: one request a line, as an open file gives them.

    Blank lines are passed over. A line that cannot be read, or that is a request of another signal, costs that
    line: it comes out as a rejected row that says why, as does what cannot be stored; the `row` of each has the
    `line`, counted from 1.
    """
    if signal is Signal.TRACES:
        return TRACES.lines(lines)
    return METRICS.lines(lines) if signal is Signal.METRICS else LOGS.lines(lines)
