"""What repositories return besides rows: a whole trace, and figures about one or many."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from observatory_storage.models import Resource, Trace, TraceEvent, TraceSpan


class TraceTimes(NamedTuple):
    """When a trace began and ended: the bounds within which its spans start. Absent where none is known."""

    start_time: dt.datetime | None
    end_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class TraceDetail:
    """A trace with all that belongs to it.

    `spans` are in start order, those that start together by span id; `events` by span id, in the order of
    their span, with an empty tuple for a span that has none; `resources` by id.
    """

    trace: Trace
    spans: Sequence[TraceSpan]
    events: Mapping[str, Sequence[TraceEvent]]
    resources: Mapping[uuid.UUID, Resource]

    def events_of(self, span: TraceSpan) -> Sequence[TraceEvent]:
        """Return one span's events, also where its id stands for several spans with different starts."""
        return tuple(event for event in self.events[span.span_id] if event.span_start_time == span.start_time)


class UsageRow(NamedTuple):
    """Spans of a trace that share operation, provider and model.

    Tokens and cost are sums over the spans that count as usage; durations over all, in microseconds, absent
    where no span has one. `max_ttft_us` is the longest time to the first token.
    """

    operation: str | None
    provider: str | None
    model: str | None
    span_count: int
    error_count: int
    usage_count: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost_usd: Decimal
    duration_us: int | None
    max_duration_us: int | None
    max_ttft_us: int | None


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Figures about one trace, computed from its spans; `usage` has the rows they are sums of."""

    trace_id: uuid.UUID
    start_time: dt.datetime | None
    end_time: dt.datetime | None
    duration_us: int | None
    usage: Sequence[UsageRow]

    @property
    def span_count(self) -> int:
        """How many spans it has."""
        return sum(row.span_count for row in self.usage)

    @property
    def error_count(self) -> int:
        """How many of its spans failed."""
        return sum(row.error_count for row in self.usage)

    @property
    def model_call_count(self) -> int:
        """How many of its spans count as usage."""
        return sum(row.usage_count for row in self.usage)

    @property
    def input_tokens(self) -> int:
        """Input tokens of its model calls, cached ones included."""
        return sum(row.input_tokens for row in self.usage)

    @property
    def output_tokens(self) -> int:
        """Output tokens of its model calls, reasoning included."""
        return sum(row.output_tokens for row in self.usage)

    @property
    def cached_input_tokens(self) -> int:
        """The part of the input tokens that was read from a cache."""
        return sum(row.cached_input_tokens for row in self.usage)

    @property
    def reasoning_tokens(self) -> int:
        """The part of the output tokens that was reasoning."""
        return sum(row.reasoning_tokens for row in self.usage)

    @property
    def total_tokens(self) -> int:
        """All tokens of its model calls."""
        return sum(row.total_tokens for row in self.usage)

    @property
    def cost_usd(self) -> Decimal:
        """What its model calls cost."""
        return sum((row.cost_usd for row in self.usage), Decimal(0))

    @property
    def max_span_duration_us(self) -> int | None:
        """The duration of its longest span, the root included."""
        return _largest(row.max_duration_us for row in self.usage)

    @property
    def max_ttft_us(self) -> int | None:
        """The longest wait for a first token."""
        return _largest(row.max_ttft_us for row in self.usage)

    @property
    def spans_by_operation(self) -> Mapping[str | None, int]:
        """How many spans have which operation; None stands for spans without one."""
        counts: Counter[str | None] = Counter()
        for row in self.usage:
            counts[row.operation] += row.span_count
        return dict(counts)

    @property
    def spans_by_model(self) -> Mapping[str, int]:
        """How many spans name which model."""
        counts: Counter[str] = Counter()
        for row in self.usage:
            if row.model is not None:
                counts[row.model] += row.span_count
        return dict(counts)


class TraceStats(NamedTuple):
    """Totals over many traces, from their summaries.

    `error_trace_count` counts the traces that failed or hold a failed span, `error_count` the failed spans.
    The percentiles are of the traces' durations, absent where none has one.
    """

    trace_count: int
    error_trace_count: int
    span_count: int
    error_count: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: Decimal
    p50_duration_us: float | None
    p95_duration_us: float | None
    p99_duration_us: float | None


class ContentMatch(NamedTuple):
    """A message that a search found, and the first span that holds it, by (start_time, span_id).

    `message` is as it is stored once: an answer without the finish reason that its span's column has. What a client
    repeats in attributes, such as definitions of tools, is an object of these attributes and has no `role`.
    `snippet` only where snippets were asked for.
    """

    message: Any
    role: str | None
    trace_id: uuid.UUID
    span_id: str
    start_time: dt.datetime
    end_time: dt.datetime | None
    project: str
    span_name: str
    snippet: str | None = None


class DeletedCounts(NamedTuple):
    """How many rows a deletion took.

    `skipped` traces were due, but held by another transaction; a later call takes them.
    """

    traces: int = 0
    spans: int = 0
    events: int = 0
    skipped: int = 0

    def plus(self, other: DeletedCounts) -> DeletedCounts:
        """Return the sums."""
        return DeletedCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
