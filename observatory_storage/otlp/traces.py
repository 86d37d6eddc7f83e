"""Decode OTLP traces: one request, or the JSON lines that the Collector's file exporter writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from observatory_storage.errors import DecodeError, RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp import json_reader, protobuf
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Format, Signal, format_of, unfold


@dataclass(slots=True)
class DecodedTraces:
    """The span rows of a payload, with their events and resources, and the spans that cannot be stored."""

    spans: list[SpanRow] = field(default_factory=list)
    rejected: list[RejectedRowError] = field(default_factory=list)

    @property
    def event_count(self) -> int:
        """The number of events of all spans."""
        return sum(len(span["events"]) for span in self.spans)


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
    data = unfold(bytes(data), max_decompressed_bytes)
    found = format_of(content_type, data)
    if found is Format.EMPTY or not data or (found is not Format.PROTOBUF and data.isspace()):
        return DecodedTraces()
    if found is Format.JSON_LINES:
        decoded = DecodedTraces()
        for line in iter_json_lines(data.splitlines()):
            decoded.spans += line.spans
            decoded.rejected += line.rejected
        return decoded
    if found is Format.JSON:
        return _collect(json_reader.read_spans(json_reader.parse_request(data, Signal.TRACES)))
    decoded = _collect(protobuf.read_spans(protobuf.parse_request(data, Signal.TRACES)))
    if decoded.rejected:
        carried = protobuf.carried_signal(data)
        if carried not in (None, Signal.TRACES):
            raise DecodeError(f"expected OTLP traces in protobuf: this is an OTLP request of {carried}")
    return decoded


def iter_json_lines(lines: Iterable[bytes | str]) -> Iterator[DecodedTraces]:
    """Yield what each line of OTLP/JSON holds: one request a line, as an open file gives them.

    Blank lines are passed over. A line that cannot be read costs that line: it comes out as a rejected row
    that says why, as do spans that cannot be stored; the `row` of each has the `line`, counted from 1.
    """
    for number, line in enumerate(lines, start=1):
        encoded = line.encode(errors="surrogatepass") if isinstance(line, str) else line
        if not encoded.strip():
            continue
        try:
            decoded = _collect(json_reader.read_spans(json_reader.parse_request(encoded, Signal.TRACES)))
        except DecodeError as error:
            decoded = DecodedTraces(rejected=[RejectedRowError(f"line {number}: {error}", row={})])
        for rejected in decoded.rejected:
            rejected.row = {**(rejected.row or {}), "line": number}
        yield decoded


def _collect(outcomes: Iterable[SpanRow | RejectedRowError]) -> DecodedTraces:
    decoded = DecodedTraces()
    for outcome in outcomes:
        if isinstance(outcome, RejectedRowError):
            decoded.rejected.append(outcome)
        else:
            decoded.spans.append(outcome)
    return decoded
