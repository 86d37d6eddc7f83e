"""Spans get their input and output from GenAI events in logs, where a client sends content only there.

Whichever comes first: the writer of spans and the writer of logs both take the trace's row by the ordered upsert,
which is the lock, and only then look, in a new statement, for what the other side has stored. So of two
transactions at one time the second sees what the first wrote.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from observatory_storage.otlp import GENAI_EVENT_NAMES, content_of_events
from observatory_storage.writers import sql, wire
from observatory_storage.writers.kinds import JsonKind
from observatory_storage.writers.rows import Connection, query
from observatory_storage.writers.tables import SPANS

SpanKey = tuple[bytes, bytes]
"""Trace id and span id."""

MODEL_CALLS: Final = ("chat", "text_completion", "generate_content", "embeddings")
"""The operations of spans that have an input and an output of their own."""

# An event belongs to a span if it lies within the span's time, give or take this much: events are logged by the
# process that makes the span, but their own time is often zero and the observer's clock stands in. A wider range
# would cost two more partitions an hour for each span without content.
_LEEWAY: Final = dt.timedelta(hours=1)
_INTERVAL: Final = wire.BinaryValue(struct.pack("!qii", _LEEWAY // dt.timedelta(microseconds=1), 0, 0))
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_NAMES: Final = tuple(sorted(GENAI_EVENT_NAMES))
_EVENT_COLUMNS: Final = ("timestamp", "id", "event_name", "body", "body_json", "attributes")
_JSON: Final = JsonKind()


def fill_spans(connection: Connection, keys: Iterable[SpanKey]) -> int:
    """Fill the input and output of these spans from stored events; return how many changed.

    The caller holds the locks on their traces.
    """
    wanted = sorted(set(keys))
    if not wanted:
        return 0
    parameters = [
        _array("trace_id", [key[0] for key in wanted]),
        _array("span_id", [key[1] for key in wanted]),
        _array("name", MODEL_CALLS),
        _INTERVAL,
        _INTERVAL,
        _array("name", _NAMES),
    ]
    events: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trace_id, span_id, start_time, wants_input, wants_output, *event in query(
        connection, sql.CONTENT_EVENTS, parameters
    ):
        span = (bytes(trace_id), bytes(span_id), start_time, wants_input, wants_output)
        events.setdefault(span, []).append(dict(zip(_EVENT_COLUMNS, event, strict=True)))
    filled = []
    for (trace_id, span_id, start_time, wants_input, wants_output), found in sorted(events.items()):
        given, answered = content_of_events(found)
        read, written = given if wants_input else None, answered if wants_output else None
        if read is not None or written is not None:
            filled.append((trace_id, span_id, _microseconds(start_time), _encode(read), _encode(written)))
    if not filled:
        return 0
    columns = list(zip(*filled, strict=True))
    names = ("trace_id", "span_id", "start_time", "input", "output")
    times = columns[2]
    update = [
        *(_array(name, column) for name, column in zip(names, columns, strict=True)),
        wire.encode_time(min(times)),
        wire.encode_time(max(times)),
    ]
    return len(query(connection, sql.FILL_SPANS, update))


def _array(column: str, values: Sequence[Any]) -> wire.BinaryValue:
    kind = SPANS.columns[SPANS.index[column]].kind
    return wire.encode_array(kind.element_oid, kind.element, values)


def _encode(value: Any) -> bytes | None:
    return None if value is None else _JSON.convert(value)


def _microseconds(time: dt.datetime) -> int:
    return (time - _EPOCH) // dt.timedelta(microseconds=1)
