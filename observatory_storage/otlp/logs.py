"""Decode OTLP logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import LogRow
from observatory_storage.otlp import json_logs, protobuf_logs
from observatory_storage.otlp.decoding import Decoder
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Signal


@dataclass(slots=True)
class DecodedLogs:
    """The log rows of a payload, with their resources, and the records that cannot be stored."""

    logs: list[LogRow] = field(default_factory=list)
    rejected: list[RejectedRowError] = field(default_factory=list)

    def add(self, outcome: LogRow | RejectedRowError) -> None:
        """Take a record, or why it cannot be stored."""
        if isinstance(outcome, RejectedRowError):
            self.rejected.append(outcome)
        else:
            self.logs.append(outcome)

    def extend(self, other: DecodedLogs) -> None:
        """Take what another payload held."""
        self.logs += other.logs
        self.rejected += other.rejected


LOGS: Final = Decoder(Signal.LOGS, DecodedLogs, json_logs.read_log_records, protobuf_logs.read_log_records)


def decode_logs(
    data: bytes,
    content_type: str | None = "application/x-protobuf",
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> DecodedLogs:
    """Decode an OTLP request of logs, in protobuf or JSON, gzipped or not.

    `content_type` may carry parameters; None has the format told from the bytes. An empty body is a request
    without records. Of records that are equal in all they hold, those after the first have an `ordinal`: their
    place among them, counted from 0 within the request (with JSON lines, within the line). A record that cannot
    be stored is among `rejected`, with its reason; the others come out in the order of the request. Raises
    DecodeError for what is no request of logs at all, and ConfigurationError for protobuf without the `otlp` extra.
    """
    return LOGS.decode(data, content_type, max_decompressed_bytes)
