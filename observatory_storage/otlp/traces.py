"""Decode OTLP traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp import json_spans, protobuf_spans
from observatory_storage.otlp.decoding import Decoder
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Signal


@dataclass(slots=True)
class DecodedTraces:
    """The span rows of a payload, with their events and resources, and the spans that cannot be stored."""

    spans: list[SpanRow] = field(default_factory=list)
    rejected: list[RejectedRowError] = field(default_factory=list)

    @property
    def event_count(self) -> int:
        """The number of events of all spans."""
        return sum(len(span["events"]) for span in self.spans)

    def add(self, outcome: SpanRow | RejectedRowError) -> None:
        """Take a span, or why it cannot be stored."""
        if isinstance(outcome, RejectedRowError):
            self.rejected.append(outcome)
        else:
            self.spans.append(outcome)

    def extend(self, other: DecodedTraces) -> None:
        """Take what another payload held."""
        self.spans += other.spans
        self.rejected += other.rejected


TRACES: Final = Decoder(Signal.TRACES, DecodedTraces, json_spans.read_spans, protobuf_spans.read_spans)


def decode_traces(
    data: bytes,
    content_type: str | None = "application/x-protobuf",
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> DecodedTraces:
    """Decode an OTLP request of traces, in protobuf or JSON, gzipped or not.

    `content_type` may carry parameters; None has the format told from the bytes. An empty body is a request
    without spans. A span that cannot be stored is among `rejected`, with its reason and its ids; the others
    come out in the order of the request. Raises DecodeError for what is no request of traces at all, and
    ConfigurationError for protobuf without the `otlp` extra.
    """
    return TRACES.decode(data, content_type, max_decompressed_bytes)
