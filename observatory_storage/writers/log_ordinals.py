"""Equal log records of one request are told apart by their number among each other.

Equal is what is stored alike, however it was given: a trace id as text or as bytes, a time in another zone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.writers.convert import GivenRow, Rejections, WireRow, as_mapping, convert_column, gather
from observatory_storage.writers.log_batch import BODY, LogBatch, contents_of, encode_contents, times_of

_AT_ONCE: Final = 256
_LOOKED_AT: Final = ("timestamp", "observed_timestamp", "body", "body_json", "ordinal", "id")


def differ(rows: Sequence[object]) -> bool:
    """Tell whether no two rows can be equal, as in most requests; False where that is not seen at once."""
    bodies = [row.get("body") for row in rows if type(row) is dict]
    try:
        distinct = set(bodies)
    except Exception:  # noqa: BLE001 - one is no text, and its own code failed: whoever stores it says so
        return False
    if len(distinct) < len(rows) or None in distinct:
        return False
    # Text that is stored as it is, found in C, and by so much of it at once as stays in the processor's cache.
    pieces = (bodies[first : first + _AT_ONCE] for first in range(0, len(bodies), _AT_ONCE))
    return all(BODY.kind.bulk(piece) is not None for piece in pieces)


def number_equal(rows: Sequence[Any], project: str) -> list[Any]:
    """Return the rows of a request, with `ordinal` where a row before is stored with the same content.

    `project` is that of rows which name none. Rows from the first one on that is no row at all come back as they are.
    """
    numbered: list[Any] = []
    # Whoever stores them says why one is no row, and at which place.
    with suppress(RejectedRowError):
        numbered.extend(map(as_mapping, rows))
    suspects = _suspects(numbered)
    if suspects:
        contents = _Contents.of([numbered[place] for place in suspects], project)
        before: Counter[bytes] = Counter()
        for place in suspects:
            row = numbered[place]
            content = contents.get(id(row))
            if content is None:
                continue  # will be rejected
            if before[content]:
                numbered[place] = {**row, "ordinal": before[content]}
            before[content] += 1
    return [*numbered, *rows[len(numbered) :]]


def _suspects(rows: Sequence[GivenRow]) -> list[int]:
    """Return the places of rows that share their time and text with another one, and have no number or id of their own.

    Conversion costs 5 µs a row, and hardly any record meets an equal one.
    """
    raw = gather(rows, _LOOKED_AT)
    times = times_of(raw, {})
    # What is structured has its words as text where it has no text: that its text differs says nothing.
    plain = [body if value is None else None for body, value in zip(raw["body"], raw["body_json"], strict=True)]
    bodies = convert_column(BODY, plain, {}, {})
    keys = list(zip(times, bodies, strict=True))
    met = Counter(keys)
    return [
        place
        for place, key in enumerate(keys)
        if met[key] > 1 and raw["ordinal"][place] is None and raw["id"][place] is None
    ]


class _Contents(LogBatch):
    """Records that are converted to see what they are, and not stored."""

    def __init__(self, rejections: Rejections) -> None:
        super().__init__(rejections)
        self.found: dict[int, bytes] = {}

    @classmethod
    def of(cls, rows: Sequence[GivenRow], project: str) -> Mapping[int, bytes]:
        """Return a digest of each row's content by the row's `id()`; those that cannot be stored have none."""
        batch = cls.from_rows(rows, project, Rejections())
        for _ in batch.chunks():
            pass
        return batch.found

    def _chunk_end(self, last: int) -> int:
        return last

    def _assemble(
        self, columns: dict[str, list[Any]], given: Mapping[str, list[Any]], places: Sequence[int]
    ) -> list[WireRow]:
        for place, content in zip(places, encode_contents(contents_of(columns, len(places))), strict=True):
            self.found[id(self._given[place])] = hashlib.blake2b(content, digest_size=16).digest()
        return []
