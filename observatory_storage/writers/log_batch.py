"""What one transaction writes of logs: records in writing order, with ids made from their content."""

from __future__ import annotations

import datetime as dt
import marshal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, Self

from sqlalchemy import Table

from observatory_storage.identity import timed_id
from observatory_storage.models import LogRecord
from observatory_storage.models.base import table_of
from observatory_storage.models.log import SEARCHED_CHARACTERS
from observatory_storage.models.rows import LogRow
from observatory_storage.text import digits, encode_json
from observatory_storage.writers.convert import (
    PROJECT_SHAPE,
    RESOURCE_SHAPE,
    GivenRow,
    Rejections,
    WireRow,
    convert_column,
    gather,
    known_rows,
    well_formed,
)
from observatory_storage.writers.keyed_batch import KeyedBatch
from observatory_storage.writers.span_batch import UNIX_EPOCH
from observatory_storage.writers.tables import LOGS, Column

_LOG_KEYS: Final = frozenset(LogRow.__annotations__) | {"route_id", "created_at", "transaction_id"}
_TAKEN: Final = ("id", "timestamp", "observed_timestamp", "project", "resource_id", "resource", "ordinal")
_TIMESTAMP: Final = LOGS.columns[LOGS.index["timestamp"]]
_BODY: Final = LOGS.columns[LOGS.index["body"]]
_BODY_JSON: Final = LOGS.columns[LOGS.index["body_json"]]
# An id that was given; one that was not is made from the content.
_OWN_ID: Final = Column("id", LOGS.columns[LOGS.index["id"]].kind)
_ID: Final = LOGS.index["id"]
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

    def __init__(self, rejections: Rejections) -> None:
        super().__init__(rejections)
        self._keys.update(timestamp=[], id=[])

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

    def times(self) -> Iterator[tuple[Table, list[int]]]:
        """Yield the table with the times of its rows."""
        yield table_of(LogRecord), self._keys["timestamp"]

    def _take(self, rows: Sequence[GivenRow], project: str) -> None:
        known, present = known_rows(rows, _LOG_KEYS, self.rejections)
        raw = gather(known, _TAKEN)
        fit = well_formed(known, raw, _SHAPES, self.rejections)
        if len(fit) < len(known):
            known, raw = fit, gather(fit, _TAKEN)
        failed: dict[int, str] = {}
        timestamps, ids = _keys(raw, failed)
        for place, reason in failed.items():
            self.rejections.add(known[place], reason)
        places = sorted((place for place in range(len(known)) if place not in failed), key=timestamps.__getitem__)
        words = {"body"} if "body_json" in present else set()
        self.layout = LOGS.layout(present | words)
        self._given = [known[place] for place in places]
        self._keys["timestamp"] = [timestamps[place] for place in places]
        self._keys["id"] = [ids[place] for place in places]
        self._keys["project"] = [raw["project"][place] or project for place in places]
        self._resolve_resources(
            [raw["resource_id"][place] for place in places], [raw["resource"][place] for place in places]
        )

    def _chunk_end(self, last: int) -> int:
        times = self._keys["timestamp"]
        while last < len(times) and times[last] == times[last - 1]:
            last += 1
        return last

    def _computed(
        self,
        rows: Sequence[GivenRow],
        ready: Mapping[str, list[Any]],
        failed: dict[int, str],
        kept: dict[int, dict[str, Any]],
    ) -> Mapping[str, list[Any]]:
        # Filled in when all that ids are made from is converted.
        computed: dict[str, list[Any]] = {"route_id": [None] * len(rows)}
        return computed | (_bodies(rows, failed, kept) if "body_json" in self.layout.names else {})

    def _convert(self, places: Sequence[int]) -> list[WireRow]:
        if self._rejected:
            places = [place for place in places if place not in self._rejected]
        rows = super()._convert(places)
        if len(rows) < len(places):
            places = [place for place in places if place not in self._rejected]
        identified = identify_logs(rows, self.layout.names, [self._given[place] for place in places])
        times = [row[0] for row in identified]
        if len(set(times)) == len(times):
            return identified
        found: dict[WireRow, WireRow] = {}
        for row in identified:
            found.setdefault(row[:_KEY_WIDTH], row)
        return [found[key] for key in sorted(found)]


def identify_logs(rows: Sequence[WireRow], names: Sequence[str], given: Sequence[GivenRow]) -> list[WireRow]:
    """Fill in the ids of records in wire form: from their content, or those that they were given."""
    content_of = itemgetter(*(names.index(name) if name in names else len(names) for name in _CONTENT))
    trace_at = names.index("trace_id")
    encode, absent = marshal.dumps, (None,)
    identified = []
    for row, source in zip(rows, given, strict=True):
        key = row[_ID]
        if key is None:
            content = content_of(row + absent)
            ordinal = source.get("ordinal")
            # Six times as fast as JSON. Version 2 of the format says the same of equal values, whichever objects they
            # are, and is written by every Python so far; a test holds the ids.
            encoded = encode((ordinal, content) if ordinal else content, _MARSHAL_VERSION)
            key = timed_id(row[0] // 1000 + _UNIX_MS_OF_2000, encoded)
        identified.append((row[0], row[trace_at] or key, key, *row[3:]))
    return identified


def log_columns(
    rows: Sequence[GivenRow], projects: Sequence[str], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the columns of records that follow from others; ids that were not given are left to `identify_logs`."""
    timestamps, ids = _keys(gather(rows, _TAKEN), failed)
    return {"timestamp": timestamps, "id": ids, "route_id": [None] * len(rows), **_bodies(rows, failed, kept)}


def _keys(raw: Mapping[str, list[Any]], failed: dict[int, str]) -> tuple[list[Any], list[Any]]:
    # A time that is missing never comes from the clock, or a replay would be a new record.
    times = [
        first or second or UNIX_EPOCH for first, second in zip(raw["timestamp"], raw["observed_timestamp"], strict=True)
    ]
    ids = raw["id"]
    return (
        convert_column(_TIMESTAMP, times, failed, {}),
        ids if ids.count(None) == len(ids) else convert_column(_OWN_ID, ids, failed, {}),
    )


def _bodies(rows: Sequence[GivenRow], failed: dict[int, str], kept: dict[int, dict[str, Any]]) -> dict[str, list[Any]]:
    given = gather(rows, ("body", "body_json"))
    # First, because there may be no end to the words of what cannot be stored.
    encoded = convert_column(_BODY_JSON, given["body_json"], failed, kept)
    bodies = [
        words_of(structured) if body is None and stored is not None else body
        for body, structured, stored in zip(given["body"], given["body_json"], encoded, strict=True)
    ]
    return {"body": convert_column(_BODY, bodies, failed, kept), "body_json": encoded}


def words_of(value: Any) -> str:
    """Return the texts and numbers within a JSON-like value, a line each: what a search finds of it."""
    found: list[str] = []
    left = SEARCHED_CHARACTERS
    # Not recursive, because what can be stored may be nested deeply.
    waiting: list[Any] = [value]
    while waiting and left > 0:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple)):
            waiting.extend(reversed(item))
        elif item is not None and not isinstance(item, (bool, bytes)):
            text = (digits(item) if isinstance(item, int) else str(item))[:left]
            found.append(text)
            left -= len(text) + 1
    return "\n".join(found)


class Ordinals:
    """Tells equal records of one request apart by counting them."""

    def __init__(self) -> None:
        self._first: dict[tuple[Any, Any], GivenRow] = {}
        self._counts: dict[bytes, int] = {}

    def number(self, rows: Iterable[GivenRow]) -> Iterator[GivenRow]:
        """Yield the rows, with `ordinal` where an equal one came before."""
        for row in rows:
            time, body = row.get("timestamp"), row.get("body")
            key = (time if isinstance(time, dt.datetime) else None, body if isinstance(body, str) else None)
            # One object may be given several times.
            first = self._first.get(key)
            if first is None or row.get("ordinal") is not None or row.get("id") is not None:
                self._first.setdefault(key, row)
                yield row
                continue
            content = _content(row)
            # The first one was not counted, because hardly any record meets an equal one.
            before = self._counts.get(content, 1 if content == _content(first) else 0)
            self._counts[content] = before + 1
            yield {**row, "ordinal": before} if before else row


def _content(row: GivenRow) -> bytes:
    try:
        return encode_json({name: row[name] for name in sorted(row) if row[name] is not None})
    except Exception:  # noqa: BLE001 - the value's own code failed: a row that will be rejected
        return b"%d" % id(row)


def _is_ordinal(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


_SHAPES: Final = (PROJECT_SHAPE, RESOURCE_SHAPE, ("ordinal", _is_ordinal, "a number from 0 on"))
