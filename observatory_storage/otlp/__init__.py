"""OTLP in: protobuf and JSON become rows that the writers take."""

from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Format, Payload, Signal, sniff
from observatory_storage.otlp.traces import DecodedTraces, decode_traces, iter_json_lines

__all__ = [
    "MAX_DECOMPRESSED_BYTES",
    "DecodedTraces",
    "Format",
    "Payload",
    "Signal",
    "decode_traces",
    "iter_json_lines",
    "sniff",
]
