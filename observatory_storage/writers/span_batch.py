"""What one transaction writes of traces: spans with their events, and events by themselves."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, Final, Self

from observatory_storage.identity import content_id
from observatory_storage.models.rows import EventRow, SpanRow
from observatory_storage.text import repair_json
from observatory_storage.writers.convert import (
    PROJECT_SHAPE,
    RESOURCE_SHAPE,
    GivenRow,
    Rejections,
    WireRow,
    convert_column,
    convert_rows,
    gather,
    has_none,
    known_rows,
    take,
    unknown_keys,
    well_formed,
)
from observatory_storage.writers.keyed_batch import KeyedBatch
from observatory_storage.writers.nested_calls import linked_traces, repeated_calls
from observatory_storage.writers.shared_content import SharedContent
from observatory_storage.writers.tables import EVENTS, SPANS

# Indexes of events that were written by themselves, without a place in their span, start here.
LOOSE_EVENTS: Final = 2**62
UNIX_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_SPAN_KEYS: Final = frozenset(SpanRow.__annotations__) | {"created_at", "input_from_logs", "output_from_logs"}
_EVENT_KEYS: Final = frozenset(EventRow.__annotations__)
# What a batch looks at before its rows are converted.
_TAKEN: Final = (
    *SPANS.key,
    "end_time",
    "parent_span_id",
    "counts_usage",
    "project",
    "resource_id",
    "resource",
    "events",
)
# An optional column that is filled though no row has it.
_MADE: Final = frozenset({"repeats_usage"})
_DURATION: Final = SPANS.columns[SPANS.index["duration_us"]]
_USAGE: Final = ("input_tokens", "output_tokens", "total_tokens", "cost_usd")


class SpanBatch(KeyedBatch):
    """The spans of a batch with their events and resources.

    Duplicates within the batch are folded: of two spans with one key the first stays, unless it has no end
    and the other has.
    """

    table = SPANS

    def __init__(self, rejections: Rejections) -> None:
        super().__init__(rejections)
        names = (*SPANS.key, "end_time", "parent_span_id", "counts_usage", "repeats_usage")
        self._keys.update({name: [] for name in names})
        self._events: list[WireRow] | None = None
        self._has_events = False
        self._settled_without = 0
        self.shared = SharedContent()
        self._references: Mapping[int, bytes] = {}
        self.periods: dict[int, int] = {}
        """The period that the messages of each sharing span belong to, by the span's place."""

    @classmethod
    def from_rows(
        cls, rows: Sequence[GivenRow], project: str, rejections: Rejections, *, share: bool = True
    ) -> SpanBatch:
        """Fold and order rows; those that name no project get `project`. `share` finds what can be stored once."""
        batch = cls(rejections)
        batch._take(rows, project)
        if share and "operation" in batch._present:
            batch.shared = SharedContent.of_rows(batch._given, batch._keys["project"])
        return batch

    @property
    def projects(self) -> dict[bytes, str]:
        """The traces that the batch touches, with the project that the batch says."""
        return dict(zip(self._keys["trace_id"], self._keys["project"], strict=True))

    @property
    def trace_ids(self) -> list[bytes]:
        """The trace ids of all spans."""
        return self._keys["trace_id"]

    @property
    def start_times(self) -> list[int]:
        """Start times in microseconds since 2000, ascending."""
        return self._keys["start_time"]

    @property
    def has_events(self) -> bool:
        """Tell whether any span of the batch has events."""
        return self._has_events

    def events(self) -> list[WireRow]:
        """Return the events of all spans of the batch, converted, in writing order."""
        if self._events is None:
            self._events = self._convert_events()
        return self._events

    def key_columns(self) -> list[list[Any]]:
        """Return the parts of the keys of all rows, rejected ones included, a list for each column."""
        return [self._keys[name] for name in SPANS.key]

    def finished(self) -> dict[bytes, int]:
        """Return the places of the rows that have an end, by `span_key`."""
        starts, ends = self._keys["start_time"], self._keys["end_time"]
        ids = zip(self._keys["trace_id"], self._keys["span_id"], starts, strict=True)
        return {
            span_key(key): place
            for place, key in enumerate(ids)
            if ends[place] is not None and place not in self._rejected
        }

    def convert_ahead(self) -> bool:
        """Convert one more chunk before it is to be sent; none of a batch whose content becomes references then."""
        if self.shared.spans:
            return False
        self.settle_usage()
        return super().convert_ahead()

    def settle_usage(self) -> None:
        """Decide which model calls of the batch count, for the rows that are there now, unless some are converted."""
        if self._ahead:
            return
        self._settled_without = len(self._rejected)
        repeats = [False] * len(self._given)
        calls = self._keys["counts_usage"]
        if self._rejected:
            calls = [is_call and place not in self._rejected for place, is_call in enumerate(calls)]
        for place in repeated_calls(*self._tree, calls, self._have_usage):
            repeats[place] = True
        self._keys["repeats_usage"] = repeats

    def unsettled(self, continued: AbstractSet[bytes], *, all_new: bool) -> set[bytes]:
        """Return the traces in which stored spans may change which calls count, of those that had spans before.

        And those of which a row was rejected while the batch was sent, that another one was thought to repeat.
        `all_new` says that no row of the batch was a duplicate.
        """
        found: set[bytes] = set()
        if continued:
            found = linked_traces(continued, *self._tree, self._keys["counts_usage"], all_new=all_new)
        if len(self._rejected) > self._settled_without:
            repeats = zip(self._keys["trace_id"], self._keys["repeats_usage"], strict=True)
            found.update(trace_id for trace_id, is_repeat in repeats if is_repeat)
        return found

    @property
    def _tree(self) -> tuple[list[bytes], list[bytes], list[bytes | None]]:
        return self._keys["trace_id"], self._keys["span_id"], self._keys["parent_span_id"]

    def _have_usage(self, places: Sequence[int]) -> list[bool]:
        given = gather(take(places)(self._given), _USAGE)
        columns = (convert_column(SPANS.columns[SPANS.index[name]], values, {}, {}) for name, values in given.items())
        return [any(values) for values in zip(*columns, strict=True)]

    def select(self, wanted: Callable[[int], bool]) -> Self:
        """Return a batch of the rows at the wanted places."""
        places = [place for place in range(len(self._given)) if place not in self._rejected and wanted(place)]
        part = super().select(wanted)
        part._has_events = self._has_events
        part.shared = self.shared.select(places)
        return part

    def refer(self, references: Mapping[int, bytes]) -> None:
        """Send references instead of the content of some spans, by their places; of all others the content itself."""
        self._references = references
        self.layout = SPANS.layout(self._present | _MADE | ({"content_refs"} if references else set()))
        if references:
            self._keys["content_refs"] = [references.get(place) for place in range(len(self._given))]
        else:
            self._keys.pop("content_refs", None)

    def key_at(self, place: int) -> tuple[bytes, int, str]:
        """Return the trace, the start and the project of a span."""
        return self._keys["trace_id"][place], self._keys["start_time"][place], self._keys["project"][place]

    def without_events(self) -> Self:
        """Return the same spans without their events."""
        part = self.select(lambda place: True)
        part._given = [{**row, "events": ()} for row in part._given]
        part._has_events = False
        return part

    def given_events(self) -> list[GivenRow]:
        """Return the events of all spans as rows that can be written by themselves."""
        rows: list[GivenRow] = []
        for row, project in zip(self._given, self._keys["project"], strict=True):
            span = {"trace_id": row.get("trace_id"), "span_id": row.get("span_id"), "span_start_time": _start_of(row)}
            for index, event in enumerate(row.get("events") or ()):
                given = {name: value for name, value in event.items() if value is not None}
                rows.append({**given, **span, "event_index": index, "project": project})
        return rows

    def without_traces(self, reasons: Mapping[bytes, str]) -> Self:
        """Reject the spans of some traces, with the reason of each; return the batch of the others."""
        trace_ids = self._keys["trace_id"]
        for place, key in enumerate(trace_ids):
            if key in reasons and place not in self._rejected:
                self._reject(place, reasons[key])
        return self.select(lambda place: True)

    def _take(self, rows: Sequence[GivenRow], project: str) -> None:
        known, present = known_rows(rows, _SPAN_KEYS, self.rejections)
        self._present = present
        self.layout = SPANS.layout(present | _MADE)
        raw = gather(known, _TAKEN, present)
        fit = well_formed(known, raw, _SHAPES, self.rejections)
        if len(fit) < len(known):
            known, raw = fit, gather(fit, _TAKEN, present)
        self._has_events = any(raw.pop("events"))
        failed: dict[int, str] = {}
        kept: dict[int, dict[str, Any]] = {}
        resources, resource_ids = raw.pop("resource"), raw.pop("resource_id")
        raw["project"] = [named or project for named in raw["project"]]
        if has_none(raw["start_time"]):
            raw["start_time"] = [
                _start_of(row) if start is None else start for row, start in zip(known, raw["start_time"], strict=True)
            ]
        keys = {name: convert_column(SPANS.columns[SPANS.index[name]], raw[name], failed, kept) for name in raw}
        places = self._fold(keys, failed)
        for place, reason in failed.items():
            self.rejections.add(known[place], reason)
        taken = take(places)
        self._given = taken(list(known))
        self._keys = {name: taken(column) for name, column in keys.items()}
        self._keys["repeats_usage"] = [False] * len(places)
        if kept:
            self._kept = {at: kept[place] for at, place in enumerate(places) if place in kept}
        self._resolve_resources(taken(resource_ids), taken(resources))

    def _given_at(self, places: Sequence[int]) -> dict[str, list[Any]]:
        given = super()._given_at(places)
        if self._references:
            spans = self.shared.spans
            for at, place in enumerate(places):
                if place in self._references:
                    for name, value in spans[place].columns.items():
                        given[name][at] = value
        return given

    def _fold(self, keys: Mapping[str, list[Any]], failed: Mapping[int, str]) -> list[int]:
        """Return the places of the rows to write, in writing order, one for each key."""
        places = None if failed else _in_order(*(keys[name] for name in SPANS.order))
        if places is not None:
            return places
        ordered = list(zip(*(keys[name] for name in SPANS.order), strict=True))
        best: dict[tuple[Any, ...], int] = {}
        ends = keys["end_time"]
        for place, key in enumerate(ordered):
            if place in failed:
                continue
            first = best.setdefault(key, place)
            if first != place:
                self.rejections.counts["spans_duplicate"] += 1
                if ends[first] is None and ends[place] is not None:
                    best[key] = place
        return [best[key] for key in sorted(best)]

    def _computed(
        self,
        given: Mapping[str, list[Any]],
        ready: Mapping[str, list[Any]],
        failed: dict[int, str],
        kept: dict[int, dict[str, Any]],
    ) -> Mapping[str, list[Any]]:
        computed = computed_columns(given, ready["start_time"], ready["end_time"], kept)
        repeats = ready["repeats_usage"]
        if True in repeats:
            pairs = zip(ready["counts_usage"], repeats, strict=True)
            computed["counts_usage"] = [counts and not is_repeat for counts, is_repeat in pairs]
        return computed

    def _convert_events(self) -> list[WireRow]:
        if not self._has_events:
            return []
        ready: dict[str, list[Any]] = {name: [] for name in (*EVENTS.key, "project")}
        sources: list[tuple[GivenRow, GivenRow]] = []
        rows: list[GivenRow] = []
        keys = (self._keys[name] for name in (*SPANS.key, "project"))
        for place, (row, *key, project) in enumerate(zip(self._given, *keys, strict=True)):
            events = row.get("events")
            if not events or place in self._rejected:
                continue
            start_time = _start_of(row)
            for index, event in enumerate(events):
                reason = unknown_keys(event, _EVENT_KEYS)
                if reason is not None:
                    self._reject_event(row, event, reason)
                    continue
                sources.append((row, event))
                rows.append(event if event.get("timestamp") is not None else {**event, "timestamp": start_time})
                for name, value in zip(ready, (*key, index, project), strict=True):
                    ready[name].append(value)
        failed: dict[int, str] = {}
        converted = convert_rows(EVENTS.full, rows, failed, ready=ready)
        for at, reason in failed.items():
            self._reject_event(*sources[at], reason)
        return [row for at, row in enumerate(converted) if at not in failed]

    def _reject_event(self, span: GivenRow, event: GivenRow, reason: str) -> None:
        named = {"trace_id": span.get("trace_id"), "span_id": span.get("span_id"), "span_start_time": _start_of(span)}
        self.rejections.add_once(event, reason, {**event, **named})


def _in_order(starts: list[int], trace_ids: list[bytes], span_ids: list[bytes]) -> list[int] | None:
    """Return the places of spans in writing order; None where two have one key.

    By time first, and by ids where times are equal: a tuple of all three for each span would have the garbage
    collector walk over the batch seven times, which takes 2 µs a span.
    """
    places = sorted(range(len(starts)), key=starts.__getitem__)
    last = -1
    for at, (start, next_start) in enumerate(pairwise(map(starts.__getitem__, places))):
        if start != next_start or at < last:
            continue
        last = at + 1
        while last + 1 < len(places) and starts[places[last + 1]] == start:
            last += 1
        tied = {(trace_ids[place], span_ids[place]): place for place in places[at : last + 1]}
        if len(tied) <= last - at:
            return None
        places[at : last + 1] = map(tied.__getitem__, sorted(tied))
    return places


def span_key(row: Sequence[Any]) -> bytes:
    """Return the key of a span, or of an event's span, as the server computes it.

    Takes what begins with trace id, span id and start.
    """
    return b"%b%b%b" % (row[0], row[1], row[2].to_bytes(8, signed=True))


def computed_columns(
    given: Mapping[str, list[Any]], starts: Sequence[Any], ends: Sequence[Any], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the columns of spans that follow from others: the duration, and the total of tokens.

    A span without end keeps the duration it was given; the total is computed where none was given.
    """
    columns = {
        name: convert_column(SPANS.columns[SPANS.index[name]], given[name], {}, kept)
        for name in ("input_tokens", "output_tokens", "total_tokens")
    }
    if None in ends or None in starts:
        durations = [
            before if end is None or start is None else max(0, end - start)
            for before, start, end in zip(given["duration_us"], starts, ends, strict=True)
        ]
        columns["duration_us"] = convert_column(_DURATION, durations, {}, kept)
    else:
        columns["duration_us"] = [end - start if end > start else 0 for start, end in zip(starts, ends, strict=True)]
    totals = columns["total_tokens"]
    if None in totals:
        columns["total_tokens"] = [
            total if total is not None or (read is None and written is None) else (read or 0) + (written or 0)
            for total, read, written in zip(totals, columns["input_tokens"], columns["output_tokens"], strict=True)
        ]
    return columns


def time_columns(
    given: Mapping[str, list[Any]], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return start and end, converted."""
    return {
        name: convert_column(SPANS.columns[SPANS.index[name]], given[name], failed, kept)
        for name in ("start_time", "end_time")
    }


class LooseEvents:
    """Events that were written by themselves, in writing order, with the rows they were given as."""

    def __init__(self, rows: Sequence[WireRow], given: Mapping[WireRow, GivenRow]) -> None:
        self.rows = rows
        self._given = given

    @classmethod
    def from_rows(cls, rows: Sequence[GivenRow], project: str, rejections: Rejections) -> LooseEvents:
        """Convert events; of equal ones, one is left.

        An event without `event_index` gets one from its content, so that a second delivery is the same row.
        """
        sources: list[GivenRow] = []
        prepared: list[GivenRow] = []
        for row in known_rows(rows, _EVENT_KEYS, rejections)[0]:
            if row.get("span_start_time") is None:
                rejections.add(row, "span_start_time is missing: the start of its span is part of an event's key")
                continue
            try:
                index = _content_index(row) if row.get("event_index") is None else row["event_index"]
            except RecursionError:
                rejections.add(row, "attributes is nested too deeply to be stored as JSON")
                continue
            sources.append(row)
            prepared.append(
                {
                    **row,
                    "event_index": index,
                    "project": row.get("project") or project,
                    "timestamp": row.get("timestamp") or row["span_start_time"],
                }
            )
        failed: dict[int, str] = {}
        unique: dict[WireRow, WireRow] = {}
        given: dict[WireRow, GivenRow] = {}
        for at, wire in enumerate(convert_rows(EVENTS.full, prepared, failed)):
            if at in failed:
                rejections.add(sources[at], failed[at])
            elif _event_key(wire) not in unique:
                unique[_event_key(wire)] = wire
                given[_event_key(wire)] = sources[at]
        order = [EVENTS.index[name] for name in EVENTS.order]
        return cls(sorted(unique.values(), key=lambda row: tuple(row[place] for place in order)), given)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, wanted: Callable[[int], bool]) -> LooseEvents:
        """Return the events at the wanted places."""
        return LooseEvents([row for place, row in enumerate(self.rows) if wanted(place)], self._given)

    def given(self, row: WireRow) -> GivenRow:
        """Return what an event was given as."""
        return self._given[_event_key(row)]


def _event_key(row: WireRow) -> WireRow:
    return row[: len(EVENTS.key)]


def _content_index(row: GivenRow) -> int:
    time = row.get("timestamp")
    if isinstance(time, dt.datetime) and time.tzinfo is not None:
        time = time.astimezone(dt.UTC)
    content = content_id("event", str(time), repair_json(row.get("name")), repair_json(row.get("attributes")))
    return LOOSE_EVENTS + int.from_bytes(content[:8]) % LOOSE_EVENTS


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value)


_SHAPES: Final = (PROJECT_SHAPE, RESOURCE_SHAPE, ("events", _is_list_of_mappings, "a list of mappings"))


def _start_of(row: GivenRow) -> Any:
    """Return the start, or what stands in for a missing one: never the clock, or a replay would be new."""
    for time in (row.get("start_time"), row.get("end_time")):
        if time is not None:
            return time
    for event in row.get("events") or ():
        if event.get("timestamp") is not None:
            return event["timestamp"]
    return UNIX_EPOCH
