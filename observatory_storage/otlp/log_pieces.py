"""Decode a request of logs that comes in pieces, as a large file does."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any, Final

from observatory_storage.otlp import protobuf_logs
from observatory_storage.otlp.log_records import Ordinals, Row
from observatory_storage.otlp.logs import LOGS, DecodedLogs
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES
from observatory_storage.text import encode_canonical_json

# In two generations of some 13 MB each. Equal records carry one time, so that they stand close together.
REMEMBERED: Final = 1 << 17


class LogPieces:
    """Decodes one request in protobuf piece by piece, each of whole resources; equal records of all pieces are counted.

    The records of earlier pieces are not held, but the digests of the last 131,072 different ones: an equal record
    farther behind is taken for the first of its kind.
    """

    def __init__(self) -> None:
        read = partial(protobuf_logs.read_log_records, ordinals=DigestOrdinals())
        self._decoder = replace(LOGS, read_protobuf=read)

    def decode(self, piece: bytes) -> DecodedLogs:
        """Decode the next piece as `decode_logs` does a request."""
        return self._decoder.decode(piece, "application/x-protobuf", MAX_DECOMPRESSED_BYTES)


class DigestOrdinals(Ordinals):
    """Numbers equal records by digests of their content, so that the records themselves can go."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        super().__init__()
        self._remembered = remembered
        self._recent: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}
        self._resource: Any = None
        self._resource_json = b""

    def number(self, row: Row) -> None:
        """Set the row's `ordinal` where a record equal to it came before."""
        digest = self._digest(row)
        before = self._recent.get(digest)
        if before is None:
            if len(self._recent) >= self._remembered:
                self._older, self._recent = self._recent, {}
            before = self._older.get(digest, 0)
        self._recent[digest] = before + 1
        if before:
            row["ordinal"] = before

    def _digest(self, row: Row) -> bytes:
        resource = row["resource"]
        if resource is not self._resource:
            # One object for all records of a resource, which come one after the other.
            self._resource, self._resource_json = resource, encode_canonical_json(resource)
        own = {
            name: value.hex() if type(value) is bytes else value for name, value in row.items() if name != "resource"
        }
        return hashlib.blake2b(self._resource_json + encode_canonical_json(own), digest_size=16).digest()
