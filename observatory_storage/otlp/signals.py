"""All three signals behind one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, overload

from observatory_storage.otlp.logs import LOGS, DecodedLogs
from observatory_storage.otlp.metrics import METRICS, DecodedMetrics
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Signal
from observatory_storage.otlp.traces import TRACES, DecodedTraces

AnyDecoded = DecodedTraces | DecodedMetrics | DecodedLogs


def decode(
    data: bytes,
    signal: Signal,
    content_type: str | None = "application/x-protobuf",
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> AnyDecoded:
    """Decode an OTLP request of a signal that is known only when the program runs.

    Where it is known before, `decode_traces`, `decode_metrics` and `decode_logs` say what comes out.
    """
    if signal is Signal.TRACES:
        return TRACES.decode(data, content_type, max_decompressed_bytes)
    if signal is Signal.METRICS:
        return METRICS.decode(data, content_type, max_decompressed_bytes)
    return LOGS.decode(data, content_type, max_decompressed_bytes)


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
