"""What one transaction writes: rows folded, ordered and converted."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from observatory_storage.identity import content_id
from observatory_storage.models.rows import EventRow, SpanRow
from observatory_storage.text import encode_json, repair_json
from observatory_storage.writers.convert import (
    GivenRow,
    Rejections,
    WireRow,
    convert_column,
    convert_rows,
    known_rows,
)
from observatory_storage.writers.tables import EVENTS, RESOURCES, SPANS

# Rows converted before they are sent: the server works on one chunk while the next is converted.
CHUNK_ROWS: Final = 250
# Indexes of events that were written by themselves, without a place in their span, start here.
LOOSE_EVENTS: Final = 2**30
UNIX_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_SPAN_KEYS: Final = frozenset(SpanRow.__annotations__) | {"created_at"}
_EVENT_KEYS: Final = frozenset(EventRow.__annotations__)
_TOTAL_TOKENS: Final = SPANS.columns[SPANS.index["total_tokens"]]
_DURATION: Final = SPANS.columns[SPANS.index["duration_us"]]


class SpanBatch:
    """The spans of a batch with their events and resources, in the order in which every writer writes.

    Duplicates within the batch are folded: of two spans with one key the first stays, unless it has no end
    and the other has. Rows that cannot be stored go to `rejections`.
    """

    def __init__(self, rejections: Rejections) -> None:
        self.rejections = rejections
        self.resources: dict[bytes, WireRow] = {}
        self.folded = 0
        self.layout = SPANS.full
        # Parallel lists, in writing order. Keys are converted at once, the rest when it is sent.
        self._given: list[GivenRow] = []
        self._keys: dict[str, list[Any]] = {name: [] for name in (*SPANS.key, "end_time", "project", "resource_id")}
        self._kept: dict[int, dict[str, Any]] = {}
        self._wire: list[WireRow | None] = []
        self._events: list[WireRow] | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[GivenRow], project: str, rejections: Rejections) -> SpanBatch:
        """Fold and order rows; those that name no project get `project`."""
        batch = cls(rejections)
        batch._take(rows, project)
        return batch

    def __len__(self) -> int:
        return len(self._given)

    @property
    def trace_ids(self) -> set[bytes]:
        """The traces that the batch touches."""
        return set(self._keys["trace_id"])

    @property
    def start_times(self) -> list[int]:
        """Start times in microseconds since 2000, ascending."""
        return self._keys["start_time"]

    @property
    def has_events(self) -> bool:
        """Tell whether any span of the batch has events."""
        return any(row.get("events") for row in self._given)

    def chunks(self) -> Iterator[list[WireRow]]:
        """Convert and yield the rows a chunk at a time; what was converted is kept for another attempt."""
        for first in range(0, len(self._given), CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, len(self._given))
            if len(self._wire) < last:
                self._wire.extend(self._convert(len(self._wire), last))
            yield [row for row in self._wire[first:last] if row is not None]

    def rows(self) -> list[WireRow]:
        """Return all rows, converted; rejected ones are left out."""
        return [row for chunk in self.chunks() for row in chunk]

    def events(self) -> list[WireRow]:
        """Return the events of all spans of the batch, converted, in writing order."""
        if self._events is None:
            self.rows()
            self._events = self._convert_events()
        return self._events

    def select(self, wanted: Callable[[int], bool]) -> SpanBatch:
        """Return a batch of the rows at the wanted places; nothing is converted or rejected twice."""
        self.rows()
        places = [place for place, row in enumerate(self._wire) if row is not None and wanted(place)]
        part = SpanBatch(self.rejections)
        part.resources = self.resources
        part.layout = self.layout
        part._given = [self._given[place] for place in places]
        part._keys = {name: [column[place] for place in places] for name, column in self._keys.items()}
        part._wire = [self._wire[place] for place in places]
        return part

    def without_events(self) -> SpanBatch:
        """Return the same spans without their events."""
        part = self.select(lambda place: True)
        part._events = []
        part._given = [{**row, "events": ()} for row in part._given]
        return part

    def without_traces(self, reasons: Mapping[bytes, str]) -> SpanBatch:
        """Reject the spans of some traces, with the reason of each; return the batch of the others."""
        trace_ids = self._keys["trace_id"]
        self.rows()
        for place, row in enumerate(self._wire):
            if row is not None and trace_ids[place] in reasons:
                self.rejections.add(self._given[place], reasons[trace_ids[place]])
        return self.select(lambda place: trace_ids[place] not in reasons)

    def reject_all(self, reason: str, sqlstate: str | None) -> None:
        """Reject every row of the batch."""
        for place in range(len(self._given)):
            self.rejections.add(self._given[place], reason, sqlstate)

    def _take(self, rows: Sequence[GivenRow], project: str) -> None:
        known, present = known_rows(rows, _SPAN_KEYS, self.rejections)
        self.layout = SPANS.layout(present)
        failed: dict[int, str] = {}
        kept: dict[int, dict[str, Any]] = {}
        raw = {name: [row.get(name) for row in known] for name in (*SPANS.key, "end_time")}
        raw["project"] = [row.get("project") or project for row in known]
        if None in raw["start_time"]:
            raw["start_time"] = [
                _start_of(row) if start is None else start for row, start in zip(known, raw["start_time"], strict=True)
            ]
        keys = {name: convert_column(SPANS.columns[SPANS.index[name]], raw[name], failed, kept) for name in raw}
        places = self._fold(keys, failed)
        for place, reason in failed.items():
            self.rejections.add(known[place], reason)
        self._given = [known[place] for place in places]
        self._keys = {name: [column[place] for place in places] for name, column in keys.items()}
        if kept:
            self._kept = {at: kept[place] for at, place in enumerate(places) if place in kept}
        self._keys["resource_id"] = self._resolve_resources()

    def _fold(self, keys: Mapping[str, list[Any]], failed: Mapping[int, str]) -> list[int]:
        """Return the places of the rows to write, in writing order, one for each key."""
        best: dict[tuple[Any, ...], int] = {}
        ends = keys["end_time"]
        for place, key in enumerate(zip(*(keys[name] for name in SPANS.order), strict=True)):
            if place in failed:
                continue
            first = best.setdefault(key, place)
            if first != place:
                self.folded += 1
                if ends[first] is None and ends[place] is not None:
                    best[key] = place
        return [best[key] for key in sorted(best)]

    def _resolve_resources(self) -> list[Any]:
        known: dict[tuple[int, str], Any] = {}
        ids = []
        for row, project in zip(self._given, self._keys["project"], strict=True):
            resource = row.get("resource")
            if resource is None:
                ids.append(row.get("resource_id"))
                continue
            # Decoders share one object among all spans of a resource.
            key = (id(resource), project)
            if key not in known:
                known[key] = self._resolve_resource(resource, project)
            ids.append(known[key])
        return convert_column(SPANS.columns[SPANS.index["resource_id"]], ids, {}, {})

    def _resolve_resource(self, resource: Mapping[str, Any], project: str) -> bytes | None:
        attributes = repair_json(resource.get("attributes") or {})
        schema_url = resource.get("schema_url") or None
        key = content_id("resource", project, schema_url, attributes)
        if key not in self.resources:
            row = {
                **resource,
                "id": key,
                "project": project,
                "schema_url": schema_url,
                "attributes": attributes,
            }
            converted = convert_rows(RESOURCES.full, [row], self.rejections)[0]
            if converted is None:
                return None
            self.resources[key] = converted
        return key

    def _convert(self, first: int, last: int) -> list[WireRow | None]:
        given = self._given[first:last]
        ready = {name: column[first:last] for name, column in self._keys.items()}
        kept = {place - first: self._kept[place] for place in range(first, last) if place in self._kept}
        ready.update(computed_columns(given, ready["start_time"], ready["end_time"], kept))
        return convert_rows(self.layout, given, self.rejections, ready=ready, kept=kept)

    def _convert_events(self) -> list[WireRow]:
        ready: dict[str, list[Any]] = {name: [] for name in (*EVENTS.key, "project")}
        rows: list[GivenRow] = []
        for row, wire in zip(self._given, self._wire, strict=True):
            events = row.get("events")
            if not events or wire is None:
                continue
            start_time = _start_of(row)
            for index, event in enumerate(events):
                if not known_rows([event], _EVENT_KEYS, self.rejections)[0]:
                    continue
                rows.append(event if event.get("timestamp") is not None else {**event, "timestamp": start_time})
                for name, value in zip(ready, (*wire[:3], index, wire[3]), strict=True):
                    ready[name].append(value)
        return [row for row in convert_rows(EVENTS.full, rows, self.rejections, ready=ready) if row is not None]


def computed_columns(
    rows: Sequence[GivenRow], starts: Sequence[Any], ends: Sequence[Any], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the columns of spans that follow from others: the duration, and the total of tokens.

    A span without end keeps the duration it was given; the total is computed where none was given.
    """
    durations = [
        row.get("duration_us") if end is None or start is None else max(0, end - start)
        for row, start, end in zip(rows, starts, ends, strict=True)
    ]
    totals = [_total_tokens(row) for row in rows]
    return {
        "duration_us": convert_column(_DURATION, durations, {}, kept),
        "total_tokens": convert_column(_TOTAL_TOKENS, totals, {}, kept),
    }


def loose_events(rows: Sequence[GivenRow], project: str, rejections: Rejections) -> list[WireRow]:
    """Convert events that were written by themselves; of equal ones, one is left. In writing order.

    An event without `event_index` gets one from its content, so that a second delivery is the same row.
    """
    prepared: list[GivenRow] = []
    for row in known_rows(rows, _EVENT_KEYS, rejections)[0]:
        if row.get("span_start_time") is None:
            rejections.add(row, "span_start_time is missing: the start of its span is part of an event's key")
            continue
        index = row.get("event_index")
        prepared.append(
            {
                **row,
                "event_index": _content_index(row) if index is None else index,
                "project": row.get("project") or project,
                "timestamp": row.get("timestamp") or row["span_start_time"],
            }
        )
    unique: dict[tuple[Any, ...], WireRow] = {}
    for converted in convert_rows(EVENTS.full, prepared, rejections):
        if converted is not None:
            unique.setdefault(converted[: len(EVENTS.key)], converted)
    order = [EVENTS.index[name] for name in EVENTS.order]
    return sorted(unique.values(), key=lambda row: tuple(row[place] for place in order))


def _content_index(row: GivenRow) -> int:
    content = encode_json([str(row.get("timestamp")), row.get("name"), row.get("attributes")])
    return LOOSE_EVENTS + int.from_bytes(hashlib.sha256(content).digest()[:4]) % LOOSE_EVENTS


def _start_of(row: GivenRow) -> Any:
    """Return the start, or what stands in for a missing one: never the clock, or a replay would be new."""
    for time in (row.get("start_time"), row.get("end_time")):
        if time is not None:
            return time
    for event in row.get("events") or ():
        if event.get("timestamp") is not None:
            return event["timestamp"]
    return UNIX_EPOCH


def _total_tokens(row: GivenRow) -> Any:
    total = row.get("total_tokens")
    if total is None:
        parts = [row.get("input_tokens"), row.get("output_tokens")]
        present = [part for part in parts if isinstance(part, int)]
        return sum(present) if present else None
    return total
