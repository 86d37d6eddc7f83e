"""A batch of rows of one table with their resources: folded, ordered, and converted while they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Self

from observatory_storage.writers.convert import GivenRow, Rejections, WireRow, convert_columns, gather, take
from observatory_storage.writers.resources import ResourceSet
from observatory_storage.writers.tables import Layout, WriteTable

# Rows converted before they are sent: the server works on one chunk while the next is converted. With 64 a span takes
# 0.4 µs more, because a chunk costs 20 to 50 µs beside its rows; with 256 of 1.6 kB 0.1 µs less.
CHUNK_ROWS: Final = 128
# More of rows whose wide columns have no more bytes than that: a log record takes 0.3 µs less of 6.
_SMALL_ROW_BYTES: Final = 512
_MAX_CHUNK_ROWS: Final = 256
# A batch starts with few, because their size is not known before they are converted.
FIRST_CHUNK_ROWS: Final = 8
CHUNK_BYTES: Final = 4 * 1024 * 1024
# Rows of the next batch that are converted while the server finishes one: so many as it stores in that time.
_AHEAD_ROWS: Final = 1_500


class _Chunk(NamedTuple):
    """Converted rows: the place behind the last, the bytes of the wide columns, the size of the chunk to follow."""

    rows: list[WireRow]
    last: int
    bytes: int
    next_size: int


_NOTHING: Final = _Chunk([], 0, 0, FIRST_CHUNK_ROWS)


class KeyedBatch:
    """Rows of one table in the order in which every writer writes, each key once.

    Rows that cannot be stored go to `rejections`, each once. Only keys are converted at once; the rest is
    converted a chunk at a time, whenever it is sent, and not kept: a batch in wire form would take as much
    memory as the rows themselves, and memory that is touched anew costs more than the conversion.
    """

    table: ClassVar[WriteTable]
    beside: ClassVar[tuple[str, ...]] = ()
    """What rows are converted from beside their columns."""

    def __init__(self, rejections: Rejections) -> None:
        self.rejections = rejections
        self.resources: dict[bytes, WireRow] = {}
        self.layout = self.table.full
        # Parallel lists, in writing order. All keys but these are columns.
        self._given: list[GivenRow] = []
        self._keys: dict[str, list[Any]] = {"project": [], "resource_id": []}
        self._present: frozenset[str] = frozenset()
        """The keys that some rows have."""
        self._kept: dict[int, dict[str, Any]] = {}
        self._rejected: set[int] = set()
        self._ahead: list[_Chunk] = []

    def __len__(self) -> int:
        return len(self._given) - len(self._rejected)

    def chunks_at(self, places: Sequence[int]) -> Iterator[list[WireRow]]:
        """Convert and yield the rows at some places a chunk at a time, without rejected ones."""
        chunk = _NOTHING
        while chunk.last < len(places):
            chunk = self._chunk_of(places[chunk.last : chunk.last + chunk.next_size], chunk)
            yield chunk.rows

    def chunks(self) -> Iterator[list[WireRow]]:
        """Convert and yield the rows a chunk at a time, without rejected ones."""
        ahead, self._ahead = self._ahead, []
        chunk = _NOTHING
        for chunk in ahead:
            yield chunk.rows
        while chunk.last < len(self._given):
            chunk = self._next_chunk(chunk)
            yield chunk.rows

    def convert_ahead(self) -> bool:
        """Convert one more chunk and keep it until `chunks` is called; false, and nothing done, where it is enough."""
        chunk = self._ahead[-1] if self._ahead else _NOTHING
        if chunk.last >= len(self._given) or is_enough_ahead(chunk.last, sum(done.bytes for done in self._ahead)):
            return False
        self._ahead.append(self._next_chunk(chunk))
        return True

    def _next_chunk(self, before: _Chunk) -> _Chunk:
        last = self._chunk_end(min(before.last + before.next_size, len(self._given)))
        return self._chunk_of(range(before.last, last), before)

    def _chunk_of(self, places: Sequence[int], before: _Chunk) -> _Chunk:
        rows, written = self._convert(places)
        return _Chunk(rows, before.last + len(places), written, next_size(before.next_size, len(rows), written))

    def rows(self, places: Sequence[int]) -> list[WireRow]:
        """Convert and return the rows at some places."""
        return self._convert(places)[0]

    def select(self, wanted: Callable[[int], bool]) -> Self:
        """Return a batch of the rows at the wanted places."""
        places = [place for place in range(len(self._given)) if place not in self._rejected and wanted(place)]
        part = type(self)(self.rejections)
        used = {self._keys["resource_id"][place] for place in places}
        part.resources = {key: row for key, row in self.resources.items() if key in used}
        part.layout = self.layout
        taken = take(places)
        part._given = taken(self._given)
        part._present = self._present
        part._keys = {name: taken(column) for name, column in self._keys.items()}
        part._kept = {at: self._kept[place] for at, place in enumerate(places) if place in self._kept}
        return part

    def halves(self) -> tuple[Self, Self]:
        """Return two batches, each with half of the rows."""
        middle = len(self._given) // 2
        return self.select(lambda place: place < middle), self.select(lambda place: place >= middle)

    def without_resources(self) -> Self:
        """Return the same rows without their resources."""
        part = self.select(lambda place: True)
        part._keys["resource_id"] = [None] * len(part._given)
        part.resources = {}
        return part

    def given_resources(self) -> list[GivenRow]:
        """Return the resources as they were given, each once."""
        found = {id(row["resource"]): row["resource"] for row in self._given if row.get("resource") is not None}
        return list(found.values())

    def reject_all(self, reason: str, sqlstate: str | None) -> None:
        """Reject every row of the batch."""
        for place in range(len(self._given)):
            if place not in self._rejected:
                self._reject(place, reason, sqlstate)

    def _reject(self, place: int, reason: str, sqlstate: str | None = None) -> None:
        self._rejected.add(place)
        self.rejections.add(self._given[place], reason, sqlstate)

    def _chunk_end(self, last: int) -> int:
        """Return where a chunk that would end here ends."""
        return last

    def _given_at(self, places: Sequence[int]) -> dict[str, list[Any]]:
        """Return the values to convert of the rows at some places, by column."""
        names = [name for name in (*self.layout.names, *self.beside) if name not in self._keys]
        return gather(take(places)(self._given), names, self._present)

    def _computed(
        self,
        given: Mapping[str, list[Any]],
        ready: Mapping[str, list[Any]],
        failed: dict[int, str],
        kept: dict[int, dict[str, Any]],
    ) -> Mapping[str, list[Any]]:
        """Return columns that follow from others, converted; reasons and originals as in `convert_column`."""
        return {}

    def _resolve_resources(self, ids: list[Any], given: list[Any]) -> None:
        """Take the resources of the rows, in their order."""
        resources = ResourceSet(self.rejections)
        failed: dict[int, str] = {}
        self._keys["resource_id"] = resources.resolve(ids, given, self._keys["project"], failed)
        self.resources = resources.rows
        for place, reason in failed.items():
            self._reject(place, reason)

    def _convert(self, places: Sequence[int]) -> tuple[list[WireRow], int]:
        """Return the rows at some places in wire form, and how many bytes their wide columns have."""
        if self._rejected:
            places = [place for place in places if place not in self._rejected]
        given = self._given_at(places)
        taken = take(places)
        ready = {name: taken(column) for name, column in self._keys.items()}
        kept = {at: dict(self._kept[place]) for at, place in enumerate(places) if place in self._kept}
        failed: dict[int, str] = {}
        ready.update(self._computed(given, ready, failed, kept))
        columns = convert_columns(self.layout, given, failed, ready=ready, kept=kept)
        if failed:
            for at, reason in failed.items():
                self._reject(places[at], reason)
            return self._convert(places)
        return self._assemble(columns, given, places), bytes_of(columns, self.layout)

    def _assemble(
        self, columns: dict[str, list[Any]], given: Mapping[str, list[Any]], places: Sequence[int]
    ) -> list[WireRow]:
        """Make rows of converted columns; `given` has what they were made from, and `places` where they stand."""
        return list(zip(*map(columns.__getitem__, self.layout.names), strict=True))


def is_enough_ahead(rows: int, written: int) -> bool:
    """Tell whether so many converted rows, and bytes of their wide columns, will do before the server asks for them."""
    return rows >= _AHEAD_ROWS or written > CHUNK_BYTES


def bytes_of(columns: Mapping[str, list[Any]], layout: Layout) -> int:
    """Return how many bytes the wide columns of converted rows have."""
    return sum(sum(map(len, filter(None, columns[name]))) for name in layout.wide)


def next_size(size: int, rows: int, written: int) -> int:
    """Return the size of the next chunk, after one that was to have `size` rows and had `rows` with so many bytes.

    Fewer where rows are large, so that memory stays bounded.
    """
    most = _MAX_CHUNK_ROWS if written <= rows * _SMALL_ROW_BYTES else CHUNK_ROWS
    fit = rows * CHUNK_BYTES // written if written else most
    return max(1, min(size * 4, most, fit))
