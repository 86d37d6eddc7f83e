"""LLM spans through a real database and back, by both write methods."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.llm import LlmSpan
from observatory_storage.models import Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.llm_cases import full_span, llm_spans

METHODS = [WriteMethod.INSERT, WriteMethod.COPY]


def read_back(pool: StoragePool, spans: list[LlmSpan]) -> list[LlmSpan]:
    keys = [(resolve_trace_id(span.trace_id), resolve_span_id(span.span_id).hex()) for span in spans]
    traces = [trace_id for trace_id, _ in keys]
    with pool.session() as session:
        rows = {
            (row.trace_id, row.span_id): row
            for row in session.scalars(select(TraceSpan).where(TraceSpan.trace_id.in_(traces)))
        }
        events: dict[tuple[uuid.UUID, str], list[TraceEvent]] = {}
        for event in session.scalars(select(TraceEvent).where(TraceEvent.trace_id.in_(traces))):
            events.setdefault((event.trace_id, event.span_id), []).append(event)
    return [LlmSpan.from_span(rows[key], events.get(key, [])) for key in keys]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_lost(pool: StoragePool, method: WriteMethod) -> None:
    span = full_span()
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        returned = writer.write_span_from_llm(span)
    (back,) = read_back(pool, [span])
    assert back == span
    assert LlmSpan.from_span(returned).model_copy(update={"events": span.events}) == span
    with pool.session() as session:
        trace = session.get_one(Trace, returned.trace_id)
    assert (trace.span_count, trace.total_tokens, trace.error_count) == (1, 121, 1)
    assert trace.cost_usd == Decimal("0.000325")


@pytest.mark.parametrize("method", METHODS)
@settings(
    max_examples=12,
    deadline=None,
    # A failing batch is shrunk on the database; the test without one finds small examples faster.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(given=st.lists(llm_spans, min_size=1, max_size=25))
def test_any_spans_come_back_equal(pool: StoragePool, method: WriteMethod, given: list[LlmSpan]) -> None:
    # Each span gets a trace of its own, so that no two are one.
    spans = [span.model_copy(update={"trace_id": f"{uuid.uuid4()} {span.trace_id}"}) for span in given]
    rejected: list[object] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        for span in spans:
            writer.write_span_from_llm(span)
    assert rejected == []
    for back, span in zip(read_back(pool, spans), spans, strict=True):
        assert back == span
