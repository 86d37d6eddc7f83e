"""What a set of spans adds to the summaries of their traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Final

from observatory_storage.writers.convert import GivenRow, Rejections, WireRow, convert_rows, known_rows
from observatory_storage.writers.tables import SPANS, TRACES

_TRACE_ID = SPANS.index["trace_id"]
_SPAN_ID = SPANS.index["span_id"]
_START = SPANS.index["start_time"]
_END = SPANS.index["end_time"]
_PROJECT = SPANS.index["project"]
_PARENT = SPANS.index["parent_span_id"]
_NAME = SPANS.index["name"]
_SERVICE = SPANS.index["service_name"]
_STATUS = SPANS.index["status"]
_STATUS_MESSAGE = SPANS.index["status_message"]
_COUNTS = SPANS.index["counts_usage"]
_INPUT = SPANS.index["input_tokens"]
_OUTPUT = SPANS.index["output_tokens"]
_TOTAL = SPANS.index["total_tokens"]
_COST = SPANS.index["cost_usd"]
_USER = SPANS.index["user_id"]
_SESSION = SPANS.index["session_id"]
_RESOURCE = SPANS.index["resource_id"]
_ATTRIBUTES = SPANS.index["attributes"]

_EMPTY_OBJECT: Final = b"\x01{}"
_NO_COST: Final = Decimal(0)
# Amounts have at most 15 digits before the point and 30 behind it: no sum of a batch is rounded.
_EXACT: Final = Context(prec=100)


class _Delta:
    """What the spans of one trace add to it."""

    __slots__ = (
        "cost",
        "end",
        "errors",
        "input",
        "output",
        "project",
        "root",
        "root_rank",
        "session",
        "spans",
        "start",
        "total",
        "user",
    )

    def __init__(self, project: str, root: WireRow) -> None:
        self.project = project
        self.spans = self.errors = self.input = self.output = self.total = 0
        self.cost = _NO_COST
        self.start: int = root[_START]
        self.end: int = root[_START]
        self.user: str | None = None
        self.session: str | None = None
        self.root = root
        self.root_rank = _rank(root)


class TraceDeltas:
    """Sums spans by trace. Integers and decimals: the order of the spans does not matter.

    `own` holds what `write_trace` gave, by trace; `locked` the project of each trace that is to be locked, though
    nothing may be added to it.
    """

    def __init__(self, own: Mapping[bytes, OwnTrace], locked: Mapping[bytes, str]) -> None:
        self._deltas: dict[bytes, _Delta] = {}
        self._own = own
        self._locked = dict(locked)
        self._rows: list[WireRow] | None = None

    def lock(self, projects: Mapping[bytes, str]) -> None:
        """Lock some more traces, given with their projects."""
        self._locked |= projects
        self._rows = None

    def add(self, rows: Iterable[WireRow]) -> None:
        """Add spans in wire form."""
        deltas = self._deltas
        self._rows = None
        for row in rows:
            delta = deltas.get(row[_TRACE_ID])
            if delta is None:
                delta = deltas[row[_TRACE_ID]] = _Delta(row[_PROJECT], row)
            delta.spans += 1
            if row[_STATUS] == "error":
                delta.errors += 1
            start = row[_START]
            if start < delta.start:
                delta.start = start
            end = row[_END]
            if end is None or end < start:
                end = start
            if end > delta.end:
                delta.end = end
            if row[_COUNTS]:
                delta.input += row[_INPUT] or 0
                delta.output += row[_OUTPUT] or 0
                delta.total += row[_TOTAL] or 0
                if row[_COST] is not None:
                    delta.cost = _EXACT.add(delta.cost, row[_COST])
            # Python compares text by code point, which is the order of UTF-8 bytes and of COLLATE "C".
            user = row[_USER]
            if user is not None and (delta.user is None or user < delta.user):
                delta.user = user
            session = row[_SESSION]
            if session is not None and (delta.session is None or session < delta.session):
                delta.session = session
            if (row[_PARENT] is None or delta.root_rank[0]) and _rank(row) < delta.root_rank:
                delta.root, delta.root_rank = row, _rank(row)

    def clear(self) -> None:
        """Forget all spans."""
        self._deltas.clear()
        self._rows = None

    def rows(self) -> list[WireRow]:
        """Return the rows to upsert into traces, in id order; the same list until something changes."""
        if self._rows is None:
            own, locked = self._own, self._locked
            ids = sorted({*self._deltas, *own, *locked})
            self._rows = [self._row(key, own[key].row if key in own else None, locked.get(key)) for key in ids]
        return self._rows

    def _row(self, key: bytes, own: WireRow | None, project: str | None) -> WireRow:
        delta = self._deltas.get(key)
        row = dict(zip(TRACES.names, own, strict=True)) if own is not None else dict(_NOTHING)
        row["id"] = key
        if delta is None:
            row["project"] = row["project"] or project
            return tuple(row.values())
        root = delta.root
        row.update(
            project=delta.project,
            name=root[_NAME],
            service_name=root[_SERVICE],
            has_root=root[_PARENT] is None,
            root_span_id=root[_SPAN_ID],
            root_start_time=root[_START],
            start_time=delta.start,
            end_time=delta.end,
            span_count=delta.spans,
            error_count=delta.errors,
            input_tokens=delta.input,
            output_tokens=delta.output,
            total_tokens=delta.total,
            cost_usd=delta.cost,
            user_id=delta.user,
            session_id=delta.session,
            resource_id=root[_RESOURCE],
        )
        if not row["own_status"]:
            row.update(status=root[_STATUS], status_message=root[_STATUS_MESSAGE])
        if not row["own_attributes"]:
            row["attributes"] = root[_ATTRIBUTES]
        return tuple(row.values())


_NOTHING: Final[dict[str, Any]] = {
    **dict.fromkeys(TRACES.names),
    "has_root": False,
    "status": "unset",
    "own_status": False,
    "span_count": 0,
    "error_count": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "cost_usd": _NO_COST,
    "attributes": _EMPTY_OBJECT,
    "own_attributes": False,
}


@dataclass(frozen=True, slots=True)
class OwnTrace:
    """What callers said of a trace; `given` are their rows."""

    row: WireRow
    given: tuple[GivenRow, ...]


def own_traces(rows: Sequence[GivenRow], project: str, rejections: Rejections) -> dict[bytes, OwnTrace]:
    """Convert traces as callers give them, by id. Of several rows for one trace a later column holds."""
    known = known_rows(rows, _KNOWN, rejections)[0]
    prepared = [
        {
            **{name: value for name, value in row.items() if name in _GIVEN and _is_own(name, row)},
            "project": row.get("project") or project,
            "own_attributes": row.get("attributes") is not None and _is_own("attributes", row),
        }
        for row in known
    ]
    failed: dict[int, str] = {}
    found: dict[bytes, OwnTrace] = {}
    for at, row in enumerate(convert_rows(TRACES.full, prepared, failed)):
        if at in failed:
            rejections.add(known[at], failed[at])
            continue
        named = dict(zip(TRACES.names, row, strict=True))
        named["own_status"] = named["status"] != "unset"
        first = found.get(row[0])
        if first is None:
            found[row[0]] = OwnTrace(tuple(named.values()), (known[at],))
        else:
            found[row[0]] = OwnTrace(_merged(first.row, named), (*first.given, known[at]))
    return found


def _is_own(name: str, row: GivenRow) -> bool:
    return name not in _OWN or row.get(_OWN[name]) is not False


def _merged(first: WireRow, later: dict[str, Any]) -> WireRow:
    """Return what two statements about one trace say together, as if the later one came in a later batch."""
    merged = dict(zip(TRACES.names, first, strict=True))
    for name, value in later.items():
        if name in _OWN:
            if later[_OWN[name]]:
                merged[name] = value
        elif name in _OWN.values():
            merged[name] = merged[name] or value
        elif value is not None:
            merged[name] = value
    return tuple(merged.values())


# What says of a column whether it was given: where it is false, a trace that was read has what its spans made of it.
_OWN: Final = {"status": "own_status", "status_message": "own_status", "attributes": "own_attributes"}

# What a caller may say of a trace; the rest is computed from its spans, and left out of what is given.
_GIVEN: Final = frozenset(
    {
        "id",
        "project",
        "name",
        "service_name",
        "start_time",
        "end_time",
        "status",
        "status_message",
        "user_id",
        "session_id",
        "resource_id",
        "attributes",
    }
)


_KNOWN: Final = frozenset(TRACES.names) | {"duration_us", "created_at", "updated_at"}


def _rank(row: WireRow) -> tuple[bool, int, bytes]:
    """Order candidates for a trace's root: spans without parent first, then by (start_time, span_id)."""
    return (row[_PARENT] is not None, row[_START], row[_SPAN_ID])
