"""What one transaction writes of logs: records in writing order, with ids made from their content."""

from __future__ import annotations

import marshal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, Self

from sqlalchemy import Table

from observatory_storage.identity import timed_ids
from observatory_storage.models import LogRecord
from observatory_storage.models.base import table_of
from observatory_storage.models.log import SEARCHED_CHARACTERS
from observatory_storage.models.rows import LogRow
from observatory_storage.otlp import EVENT_ORDER, GENAI_EVENT_NAMES
from observatory_storage.text import digits
from observatory_storage.writers.convert import (
    PROJECT_SHAPE,
    RESOURCE_SHAPE,
    GivenRow,
    Rejections,
    WireRow,
    are_none,
    convert_column,
    gather,
    has_none,
    known_rows,
    take,
    well_formed,
)
from observatory_storage.writers.keyed_batch import KeyedBatch
from observatory_storage.writers.span_batch import UNIX_EPOCH
from observatory_storage.writers.tables import LOGS, Column

_LOG_KEYS: Final = frozenset(LogRow.__annotations__) | {"route_id", "created_at", "transaction_id"}
_TAKEN: Final = ("id", "timestamp", "observed_timestamp", "project", "resource_id", "resource", "ordinal")
_TIMESTAMP: Final = LOGS.columns[LOGS.index["timestamp"]]
BODY: Final = LOGS.columns[LOGS.index["body"]]
_BODY_JSON: Final = LOGS.columns[LOGS.index["body_json"]]
# An id that was given; one that was not is made from the content.
_OWN_ID: Final = Column("id", LOGS.columns[LOGS.index["id"]].kind)
_KEY_WIDTH: Final = len(LOGS.key)
_MARSHAL_VERSION: Final = 2
_UNIX_MS_OF_2000: Final = 946_684_800_000
# What makes a record what it is, in an order that is never changed: ids are made from it.
_CONTENT: Final = (
    "timestamp",
    "project",
    "resource_id",
    "observed_timestamp",
    "severity_number",
    "severity_text",
    "body",
    "body_json",
    "event_name",
    "trace_id",
    "span_id",
    "trace_flags",
    "service_name",
    "scope_name",
    "scope_version",
    "scope_attributes",
    "attributes",
    "dropped_attributes_count",
)


class LogBatch(KeyedBatch):
    """The log records of a batch with their resources.

    A record's id is made from its content while it is converted, so that writing order is found in two steps:
    by time at once, and among records of one time when they are converted, which is why they stay in one chunk.
    Records with one id are folded there, too.
    """

    table = LOGS
    beside = ("ordinal",)

    def __init__(self, rejections: Rejections) -> None:
        super().__init__(rejections)
        self._keys.update(timestamp=[], id=[])
        self.content_of: set[bytes] = set()
        """The traces whose spans may get content from the records that were sent so far."""

    @classmethod
    def from_rows(cls, rows: Sequence[GivenRow], project: str, rejections: Rejections) -> Self:
        """Order rows by time; those that name no project get `project`."""
        batch = cls(rejections)
        batch._take(rows, project)
        return batch

    @property
    def size(self) -> int:
        """The rows by whose number COPY or INSERT is chosen."""
        return len(self)

    @property
    def span_us(self) -> int:
        """How far the first and the last time lie apart, in microseconds."""
        times = self._keys["timestamp"]
        return times[-1] - times[0] if times else 0

    def touched_traces(self) -> set[bytes]:
        """Return the ids of the traces whose spans may have got content."""
        return self.content_of

    def times(self) -> Iterator[tuple[Table, list[int]]]:
        """Yield the table with the times of its rows."""
        yield table_of(LogRecord), self._keys["timestamp"]

    def _take(self, rows: Sequence[GivenRow], project: str) -> None:
        known, present = known_rows(rows, _LOG_KEYS, self.rejections)
        words = {"body"} if "body_json" in present else set()
        self._present = present
        self.layout = LOGS.layout(present | words)
        raw = gather(known, _TAKEN, present)
        fit = well_formed(known, raw, _SHAPES, self.rejections)
        if len(fit) < len(known):
            known, raw = fit, gather(fit, _TAKEN, present)
        failed: dict[int, str] = {}
        timestamps, ids = _keys(raw, failed)
        for place, reason in failed.items():
            self.rejections.add(known[place], reason)
        raw |= {"timestamp": timestamps, "id": ids, "project": [named or project for named in raw["project"]]}
        self._given = known if isinstance(known, list) else list(known)
        if failed or timestamps != sorted(timestamps):
            taken = take(
                sorted((place for place in range(len(known)) if place not in failed), key=timestamps.__getitem__)
            )
            self._given = taken(self._given)
            raw = {name: taken(column) for name, column in raw.items()}
        self._keys |= {name: raw[name] for name in ("timestamp", "id", "project")}
        self._resolve_resources(raw["resource_id"], raw["resource"])

    def _chunk_end(self, last: int) -> int:
        times = self._keys["timestamp"]
        while last < len(times) and times[last] == times[last - 1]:
            last += 1
        return last

    def _computed(
        self,
        given: Mapping[str, list[Any]],
        ready: Mapping[str, list[Any]],
        failed: dict[int, str],
        kept: dict[int, dict[str, Any]],
    ) -> Mapping[str, list[Any]]:
        # Filled in when all that ids are made from is converted.
        computed: dict[str, list[Any]] = {"route_id": [None] * len(ready["timestamp"])}
        return computed | (_bodies(given, failed, kept) if "body_json" in self.layout.names else {})

    def _assemble(
        self, columns: dict[str, list[Any]], given: Mapping[str, list[Any]], places: Sequence[int]
    ) -> list[WireRow]:
        identify_logs(columns, given["ordinal"])
        rows = super()._assemble(columns, given, places)
        if len(set(columns["timestamp"])) == len(rows):
            return rows
        found: dict[WireRow, WireRow] = {}
        for row in rows:
            found.setdefault(row[:_KEY_WIDTH], row)
        return [found[key] for key in sorted(found)]


def identify_logs(columns: dict[str, list[Any]], ordinals: Sequence[Any]) -> None:
    """Fill in the ids of records in wire form, by column: from their content and ordinal where they were given none."""
    contents: Iterable[Any] = contents_of(columns, len(ordinals))
    if any(ordinals):
        contents = [
            (ordinal, content) if ordinal else content for ordinal, content in zip(ordinals, contents, strict=True)
        ]
    made = timed_ids([time // 1000 + _UNIX_MS_OF_2000 for time in columns["timestamp"]], encode_contents(contents))
    columns["id"] = ids = [own or key for own, key in zip(columns["id"], made, strict=True)]
    columns["route_id"] = [trace or key for trace, key in zip(columns["trace_id"], ids, strict=True)]


def contents_of(columns: Mapping[str, list[Any]], number: int) -> Iterator[tuple[Any, ...]]:
    """Yield what makes each of so many records what it is, from their columns in wire form."""
    absent = [None] * number
    return zip(*(columns.get(name, absent) for name in _CONTENT), strict=True)


def encode_contents(contents: Iterable[Any]) -> Iterator[bytes]:
    """Encode the contents of records, with their ordinals or without.

    Six times as fast as JSON. Version 2 of the format says the same of equal values, whichever objects they are, and
    is written by every Python so far; a test holds the ids.
    """
    return map(marshal.dumps, contents, repeat(_MARSHAL_VERSION))


def log_columns(
    given: Mapping[str, list[Any]], projects: Sequence[str], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the columns of records that follow from others; ids that were not given are left to `identify_logs`."""
    timestamps, ids = _keys(given, failed)
    return {"timestamp": timestamps, "id": ids, "route_id": [None] * len(projects), **_bodies(given, failed, kept)}


def _keys(raw: Mapping[str, list[Any]], failed: dict[int, str]) -> tuple[list[Any], list[Any]]:
    ids = raw["id"]
    return (
        times_of(raw, failed),
        ids if are_none(ids) else convert_column(_OWN_ID, ids, failed, {}),
    )


def times_of(raw: Mapping[str, list[Any]], failed: dict[int, str]) -> list[Any]:
    """Return the times under which records are stored, converted, from their columns as given."""
    # A time that is missing never comes from the clock, or a replay would be a new record.
    times = raw["timestamp"]
    if has_none(times):
        times = [
            time if time is not None else observed if observed is not None else UNIX_EPOCH
            for time, observed in zip(times, raw["observed_timestamp"], strict=True)
        ]
    return convert_column(_TIMESTAMP, times, failed, {})


def _bodies(
    given: Mapping[str, list[Any]], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    if are_none(given["body_json"]):
        return {"body": convert_column(BODY, given["body"], failed, kept), "body_json": given["body_json"]}
    # First, because there may be no end to the words of what cannot be stored.
    encoded = convert_column(_BODY_JSON, given["body_json"], failed, kept)
    bodies = [
        words_of(structured) if body is None and stored is not None else body
        for body, structured, stored in zip(given["body"], given["body_json"], encoded, strict=True)
    ]
    return {"body": convert_column(BODY, bodies, failed, kept), "body_json": encoded}


def words_of(value: Any) -> str:
    """Return the texts and numbers within a JSON-like value, a line each: what a search finds of it."""
    found: list[str] = []
    left = SEARCHED_CHARACTERS
    # Not recursive, because what can be stored may be nested deeply.
    waiting: list[Any] = [value]
    while waiting and left > 0:
        item = waiting.pop()
        if isinstance(item, Mapping):
            # In the order of the keys, as jsonb has none: equal bodies have equal words.
            waiting.extend(item[key] for key in sorted(item, key=str, reverse=True))
        elif isinstance(item, (list, tuple)):
            waiting.extend(reversed(item))
        elif item is not None and not isinstance(item, (bool, bytes)):
            text = (digits(item) if isinstance(item, int) else str(item))[:left]
            found.append(text)
            left -= len(text) + 1
    return "\n".join(found)


def in_order(rows: list[Any]) -> list[Any]:
    """Note, in GenAI events of one span and one microsecond, in which order the request has them.

    The order of a conversation is nowhere else: the records' ids say nothing of it.
    """
    names = {name for row in rows if isinstance(row, dict) and isinstance(name := row.get("event_name"), str)}
    if names.isdisjoint(GENAI_EVENT_NAMES):
        return rows
    ordered = list(rows)
    met: Counter[tuple[str, ...]] = Counter()
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or row.get("event_name") not in GENAI_EVENT_NAMES:
            continue
        attributes = row.get("attributes") or {}
        if not isinstance(attributes, dict):
            continue  # will be rejected
        key = tuple(repr(row.get(name)) for name in ("timestamp", "observed_timestamp", "trace_id", "span_id"))
        if met[key] and EVENT_ORDER not in attributes:
            ordered[place] = {**row, "attributes": {**attributes, EVENT_ORDER: met[key]}}
        met[key] += 1
    return ordered


def _is_ordinal(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


_SHAPES: Final = (PROJECT_SHAPE, RESOURCE_SHAPE, ("ordinal", _is_ordinal, "a number from 0 on"))
