"""TraceWriter: traces, spans and events from application code to committed rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.models import EventRow, SpanRow, Trace, TraceEvent, TraceRow, TraceSpan
from observatory_storage.writers.buffered import BufferedWriter, CommitStats
from observatory_storage.writers.trace_store import TraceStore

if TYPE_CHECKING:
    from observatory_storage.llm import LlmSpan

_SPAN_COLUMNS = frozenset(TraceSpan.__table__.columns.keys())


@dataclass(frozen=True, slots=True)
class WriteStats(CommitStats):
    """What a `TraceWriter` has committed since it was made.

    Each span given is counted once: as written (new), as duplicate (stored already, or twice in a batch), as
    replaced (the finished version of an open span) or as rejected. `events_written` are new events,
    `traces_written` traces given to `write_trace`. `spans_filled` are spans that got their input or output from
    log records.
    """

    spans_written: int = 0
    spans_duplicate: int = 0
    spans_replaced: int = 0
    spans_filled: int = 0
    events_written: int = 0
    traces_written: int = 0


class TraceWriter(BufferedWriter[WriteStats]):
    """Writes traces, spans and events, from application code to committed rows; exact under replay.

    How it buffers, what it promises and when: `BufferedWriter`.
    """

    _kinds = ("span", "event", "trace")

    def _make_store(self) -> TraceStore:
        return TraceStore(self._pool, self._config, self._project, self._pool.config.retry)

    def _no_stats(self) -> WriteStats:
        return WriteStats()

    def write_trace(self, trace: TraceRow | Mapping[str, object] | Trace) -> None:
        """Give a trace its own status and attributes.

        What is computed from spans (times, name, user, counts …) is taken from here only until the trace's
        first span is stored. Write facts about a user or session on the spans. Of a `Trace` that was read, status and
        attributes are taken where they are its own and not its spans'.
        """
        self._put("trace", [trace], copy=True)

    def write_traces(self, traces: Iterable[TraceRow | Mapping[str, object] | Trace]) -> None:
        """Write several traces, as `write_trace` does; their mappings are not to be changed afterwards."""
        self._put("trace", traces)

    def write_span(self, span: SpanRow | Mapping[str, object] | TraceSpan) -> None:
        """Write a span, with the events and the resource of its mapping; its trace appears where it is missing.

        For many spans `write_spans` costs less. A TraceSpan that a repository returned, from this database or another,
        is written with the content it has; raises RejectedRowError for an object that was read without some of its
        columns, or whose `content_refs` say that its content is elsewhere.
        """
        self._put("span", [span], copy=True)

    def write_spans(self, spans: Iterable[SpanRow | Mapping[str, object] | TraceSpan]) -> None:
        """Write spans; their mappings are not to be changed afterwards, nor one of them given again and again."""
        self._put("span", spans)

    def write_event(self, event: EventRow | Mapping[str, object] | TraceEvent) -> None:
        """Write an event of a span that is or will be written; `span_start_time` is part of its key."""
        self._put("event", [event], copy=True)

    def write_events(self, events: Iterable[EventRow | Mapping[str, object] | TraceEvent]) -> None:
        """Write several events, as `write_event` does; their mappings are not to be changed afterwards."""
        self._put("event", events)

    def write_span_from_llm(self, span: LlmSpan) -> TraceSpan:
        """Write an LLM span and return it as a TraceSpan with its trace UUID resolved.

        The returned object belongs to no session, and lacks what the writer computes (duration, total of
        tokens) and the server fills in. Raises RejectedRowError for an id that is none.
        """
        row: dict[str, Any] = dict(span.to_row())
        trace_id = resolve_trace_id(row["trace_id"])
        stored = {name: value for name, value in row.items() if name in _SPAN_COLUMNS}
        stored.update(trace_id=trace_id, span_id=resolve_span_id(row["span_id"]).hex())
        if row.get("parent_span_id") is not None:
            stored["parent_span_id"] = resolve_span_id(row["parent_span_id"], "parent_span_id").hex()
        stored["project"] = row.get("project") or self._project
        self._put("span", [row])
        return TraceSpan(**stored)
