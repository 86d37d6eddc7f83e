"""OTLP in: protobuf and JSON become rows that the writers take."""

from observatory_storage.otlp.genai_events import EVENT_ORDER, GENAI_EVENT_NAMES, content_of_events
from observatory_storage.otlp.logs import DecodedLogs, decode_logs
from observatory_storage.otlp.metrics import DecodedMetrics, decode_metrics
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Format, Payload, Signal, signal_of, sniff
from observatory_storage.otlp.signals import decode, iter_json_lines
from observatory_storage.otlp.traces import DecodedTraces, decode_traces

__all__ = [
    "EVENT_ORDER",
    "GENAI_EVENT_NAMES",
    "MAX_DECOMPRESSED_BYTES",
    "DecodedLogs",
    "DecodedMetrics",
    "DecodedTraces",
    "Format",
    "Payload",
    "Signal",
    "content_of_events",
    "decode",
    "decode_logs",
    "decode_metrics",
    "decode_traces",
    "iter_json_lines",
    "signal_of",
    "sniff",
]
