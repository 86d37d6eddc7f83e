"""Messages of a batch: each is sent once and kept, and spans get references in their place.

In the batch's own transaction, before its spans and in the order of ids, as resources are: whoever sends a message
that another one is storing waits for that one's commit and then refers to what it stored. What a writer remembers is
looked up once more in each transaction, which also keeps its partition from being dropped, so that no span that is
committed refers to what is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

from observatory_storage.errors import StorageError
from observatory_storage.writers import sql, wire
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.rows import Connection, copy_rows, insert_rows, query
from observatory_storage.writers.span_batch import SpanBatch
from observatory_storage.writers.tables import MESSAGE_PACKS, MESSAGE_USES, MESSAGES

# What is remembered of messages and of uses; half of it is forgotten when it is full. About 200 bytes each.
_KNOWN: Final = 60_000
# Larger packs compress hardly better, and a reader unpacks the whole of one for any of its messages.
_PACK_BYTES: Final = 32 * 1024
_PACK_MESSAGES: Final = 1_000
# Half a pack or more is one of its own, so that no pack is much larger than its largest message.
_LARGE: Final = 16 * 1024
_ROUNDS: Final = 3
_JSONB: Final = b"\x01"

K = TypeVar("K")
V = TypeVar("V")
Key = tuple[int, bytes]
"""A message's period, in microseconds since 2000, and its id."""
Use = tuple[int, int, bytes]
"""A pack's period, its id, and a trace."""


class Place(NamedTuple):
    """Where a message is stored."""

    pack_id: int
    position: int


class Recent(Generic[K, V]):
    """A bounded memory of the latest: when it is full, what was not asked for in the last half of it goes."""

    def __init__(self, size: int) -> None:
        self._size = size // 2
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """Return what is known of a key."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        if len(self._young) >= self._size:
            self._young, self._old = {}, self._young
        self._young[key] = value

    def forget(self, key: K) -> None:
        """Remember nothing of a key."""
        self._young.pop(key, None)
        self._old.pop(key, None)


@dataclass(slots=True)
class Learned:
    """What is known once a transaction has committed."""

    places: Mapping[Key, Place] = field(default_factory=dict)
    uses: Mapping[Use, int] = field(default_factory=dict)


class MessageStore:
    """Stores the messages of batches, one after the other, and remembers which are there."""

    def __init__(self) -> None:
        self._places: Recent[Key, Place] = Recent(_KNOWN)
        self._uses: Recent[Use, int] = Recent(_KNOWN)

    def learn(self, learned: Learned) -> None:
        """Remember what has been committed."""
        for key, place in learned.places.items():
            self._places.put(key, place)
        for use, start in learned.uses.items():
            self._uses.put(use, start)

    def write(self, connection: Connection, spans: SpanBatch, *, by_copy: bool) -> Learned:
        """Store what is new of the messages of some spans, and let the spans refer to them; the caller commits."""
        if not spans.shared.spans:
            return Learned()
        transaction = _Transaction(connection, spans, by_copy)
        places = transaction.find_places(self._places)
        references: dict[int, bytes] = {}
        uses: dict[Use, int] = {}
        for at, period in spans.periods.items():
            runs = _runs_of(spans.shared.spans[at].parts, period, places)
            if runs is None:
                # Where somebody deletes messages again and again, the span keeps its content.
                continue
            references[at] = wire.encode_int8_array([period, *runs])
            trace_id, start, _ = spans.key_at(at)
            for pack_id in set(runs[::2]):
                use = (period, pack_id, trace_id)
                uses[use] = min(start, uses.get(use, start))
        spans.refer(references)
        new_uses = {use: start for use, start in uses.items() if not self._is_used(use, start)}
        transaction.write_uses(new_uses)
        return Learned(places, new_uses)

    def _is_used(self, use: Use, start: int) -> bool:
        known = self._uses.get(use)
        return known is not None and known <= start


class _Pack:
    """Messages that will lie together."""

    def __init__(self, period: int, project: str) -> None:
        # Of the system and not of a generator whose state a fork would double.
        self.id = int.from_bytes(os.urandom(8)) >> 1
        self.period = period
        self.project = project
        self.keys: list[Key] = []
        self.size = 0

    def add(self, key: Key, size: int) -> Place:
        self.keys.append(key)
        self.size += size
        return Place(self.id, len(self.keys) - 1)

    def takes(self, size: int) -> bool:
        return self.size + size <= _PACK_BYTES and len(self.keys) < _PACK_MESSAGES


class _Transaction:
    def __init__(self, connection: Connection, spans: SpanBatch, by_copy: bool) -> None:
        self._connection = connection
        self._spans = spans
        self._by_copy = by_copy
        self._bodies = spans.shared.bodies

    def find_places(self, known: Recent[Key, Place]) -> dict[Key, Place]:
        """Return where each message of the batch is, and store those that are nowhere."""
        # The first span of each message, in writing order, says with which others it will lie.
        wanted: dict[Key, int] = {}
        for at, period in self._spans.periods.items():
            for _, _, ids in self._spans.shared.spans[at].parts:
                for message_id in ids:
                    wanted.setdefault((period, message_id), at)
        remembered = {key: place for key in wanted if (place := known.get(key)) is not None}
        places = self._still_there(remembered)
        for key in remembered.keys() - places.keys():
            known.forget(key)
        for _ in range(_ROUNDS):
            missing = sorted(key for key in wanted if key not in places)
            if not missing:
                break
            places |= self._store(missing, wanted)
            lost = [key for key in missing if key not in places]
            places |= self._stored_by_others(lost)
        return places

    def write_uses(self, uses: Mapping[Use, int]) -> None:
        rows = sorted(
            ((pack_id, start, trace_id, period) for (period, pack_id, trace_id), start in uses.items()),
            key=lambda row: (row[3], *row[:3]),
        )
        if rows:
            insert_rows(self._connection, MESSAGE_USES, MESSAGE_USES.full, [rows])

    def _still_there(self, places: Mapping[Key, Place]) -> dict[Key, Place]:
        packs = sorted({(period, place.pack_id) for (period, _), place in places.items()})
        if not packs:
            return {}
        period, pack_id = MESSAGE_PACKS.columns[1].kind, MESSAGE_PACKS.columns[0].kind
        parameters = [
            wire.encode_array(period.element_oid, period.element, [pack[0] for pack in packs]),
            wire.encode_array(pack_id.element_oid, pack_id.element, [pack[1] for pack in packs]),
        ]
        found = {(_number(row[0]), row[1]) for row in query(self._connection, sql.STORED_PACKS, parameters)}
        return {key: place for key, place in places.items() if (key[0], place.pack_id) in found}

    def _store(self, missing: Sequence[Key], wanted: Mapping[Key, int]) -> dict[Key, Place]:
        """Store messages in the order of their keys; return the places of those that nobody else stored before."""
        offered: dict[Key, Place] = {}
        packs: list[_Pack] = []
        open_packs: dict[tuple[int, bytes], _Pack] = {}
        # As the spans hold them, so that a conversation's messages lie one behind the other.
        absent = set(missing)
        for key, at in wanted.items():
            if key not in absent:
                continue
            body = self._bodies[key[1]]
            trace_id, _, project = self._spans.key_at(at)
            together = (key[0], trace_id)
            pack = open_packs.get(together)
            if body.is_leading or body.size >= _LARGE:
                packs.append(pack := _Pack(key[0], project))
            elif pack is None or not pack.takes(body.size):
                packs.append(pack := _Pack(key[0], project))
                open_packs[together] = pack
            offered[key] = pack.add(key, body.size)
        rows = [(message_id, period, *offered[period, message_id]) for period, message_id in missing]
        new = insert_rows(self._connection, MESSAGES, MESSAGES.full, [rows])
        stored = {
            (period, message_id): offered[period, message_id]
            for period, message_id in missing
            if message_id + period.to_bytes(8, signed=True) in new
        }
        used = [pack for pack in packs if any(key in stored for key in pack.keys)]
        self._write_packs(used, stored)
        return stored

    def _write_packs(self, packs: Sequence[_Pack], stored: Mapping[Key, Place]) -> None:
        if not packs:
            return
        if self._by_copy:
            written = copy_rows(self._connection, MESSAGE_PACKS.name, MESSAGE_PACKS.full, self._encoded(packs, stored))
        else:
            chunks = self._encoded(packs, stored)
            written = len(insert_rows(self._connection, MESSAGE_PACKS, MESSAGE_PACKS.full, chunks))
        if written < len(packs):
            raise StorageError("the random id of a pack of messages is in use; the batch may be tried again")

    def _encoded(self, packs: Iterable[_Pack], stored: Mapping[Key, Place]) -> Iterator[list[WireRow]]:
        """Yield packs one by one, so that large ones do not stand in memory together."""
        for pack in packs:
            messages = [self._bodies[key[1]].encode() if key in stored else b"null" for key in pack.keys]
            yield [(pack.id, pack.period, pack.project, b"%b[%b]" % (_JSONB, b",".join(messages)))]

    def _stored_by_others(self, keys: Sequence[Key]) -> dict[Key, Place]:
        if not keys:
            return {}
        found: dict[Key, Place] = {}
        stale: list[Key] = []
        for period, message_id, pack_id, position, is_there in query(
            self._connection, sql.STORED_MESSAGES, _keys(keys)
        ):
            key = (_number(period), bytes(message_id))
            if is_there:
                found[key] = Place(pack_id, position)
            else:
                stale.append(key)
        if stale:
            query(self._connection, sql.DELETE_MESSAGES, _keys(sorted(stale)))
        return found


def _runs_of(
    parts: Iterable[tuple[int, bool, Sequence[bytes]]], period: int, places: Mapping[Key, Place]
) -> list[int] | None:
    """Return pairs of a pack and bits, as `TraceSpan.content_refs` has them; None where a message is nowhere."""
    runs: list[int] = []
    for part, is_cut, ids in parts:
        kind = part << 1 | is_cut
        # The pack, the first place and the place behind the last one of the run that may go on.
        pack_id, first, following = -1, 0, 0
        for message_id in ids:
            place = places.get((period, message_id))
            if place is None:
                return None
            if place.pack_id == pack_id and place.position == following:
                following += 1
                continue
            if following > first:
                runs += (pack_id, kind << 32 | first << 16 | following - first)
            pack_id, first = place
            following = first + 1
        runs += (pack_id, kind << 32 | first << 16 | following - first)
    return runs


def _keys(keys: Sequence[Key]) -> list[Any]:
    period, message_id = MESSAGES.columns[1].kind, MESSAGES.columns[0].kind
    return [
        wire.encode_array(period.element_oid, period.element, [key[0] for key in keys]),
        wire.encode_array(message_id.element_oid, message_id.element, [key[1] for key in keys]),
    ]


def _number(sent: bytes) -> int:
    return int.from_bytes(sent, signed=True)
