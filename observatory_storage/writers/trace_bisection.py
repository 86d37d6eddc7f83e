"""A batch that the server refused for its data: smaller and smaller parts, until the bad row is alone."""

from __future__ import annotations

from collections.abc import Iterator

from observatory_storage.errors import StorageError, describe
from observatory_storage.writers.span_batch import LooseEvents, SpanBatch
from observatory_storage.writers.trace_transaction import TraceBatch


def parts_of(batch: TraceBatch, error: StorageError) -> Iterator[TraceBatch]:
    """Yield parts to be written one after the other, or reject the row that is alone.

    The next part is made when the one before has been written, so that a part may depend on what became of it.
    """
    nothing = SpanBatch(batch.spans.rejections)
    spans, events, traces = batch.spans, batch.events, batch.traces
    no_events = events.select(lambda place: False)
    if len(spans) and (len(events) or traces):
        yield TraceBatch(spans, no_events, {})
        yield TraceBatch(nothing, events, traces)
    elif len(spans) > 1:
        for half in spans.halves():
            yield TraceBatch(half, no_events, {})
    elif len(spans):
        yield from _parts_of_span(spans, no_events, error)
    elif len(events) + len(traces) > 1:
        middle = (len(events) + 1) // 2
        keys = list(traces)
        first = keys[: len(keys) // 2]
        yield TraceBatch(nothing, events.select(lambda place: place < middle), {key: traces[key] for key in first})
        rest = {key: traces[key] for key in keys[len(first) :]}
        yield TraceBatch(nothing, events.select(lambda place: place >= middle), rest)
    else:
        for event in events.rows:
            spans.rejections.add(events.given(event), describe(error), error.sqlstate)
        for trace in traces.values():
            for row in trace.given:
                spans.rejections.add(row, describe(error), error.sqlstate)


def _parts_of_span(span: SpanBatch, no_events: LooseEvents, error: StorageError) -> Iterator[TraceBatch]:
    """Tell the span from its events and its resource: the span is rejected only if it is the bad row."""
    nothing = SpanBatch(span.rejections)
    rejected = len(span.rejections.errors)
    if span.has_events:
        events = span.given_events()
        project = next(iter(span.projects.values()))
        yield TraceBatch(span.without_events(), no_events, {})
        # Events of a span that is not stored would belong to nothing.
        if len(span.rejections.errors) == rejected:
            yield TraceBatch(nothing, LooseEvents.from_rows(events, project, span.rejections), {})
    elif span.resources:
        resources = span.given_resources()
        yield TraceBatch(span.without_resources(), no_events, {})
        if len(span.rejections.errors) == rejected:
            for resource in resources:
                span.rejections.add_once(resource, describe(error))
    else:
        span.reject_all(describe(error), error.sqlstate)
