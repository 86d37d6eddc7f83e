"""The order in which spans are written: by time, and by ids where times are equal."""

from __future__ import annotations

import datetime as dt

from hypothesis import example, given
from hypothesis import strategies as st

from observatory_storage.writers.convert import Rejections
from observatory_storage.writers.span_batch import SpanBatch

_FIRST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
# Few of each, so that times are equal and keys are met again. Times count from 2000 on, as on the wire.
_KEYS = st.tuples(
    st.integers(0, 3),
    st.sampled_from([bytes([number]) * 16 for number in (1, 2, 255)]),
    st.sampled_from([bytes([number]) * 8 for number in (1, 2, 255)]),
)


@given(st.lists(_KEYS, max_size=40))
@example([(0, b"b" * 16, b"a" * 8), (0, b"a" * 16, b"b" * 8), (0, b"a" * 16, b"a" * 8), (1, b"a" * 16, b"a" * 8)])
@example([(1, b"a" * 16, b"a" * 8), (0, b"a" * 16, b"a" * 8), (1, b"a" * 16, b"a" * 8)])
def test_spans_are_ordered_by_time_trace_and_id_and_each_key_is_written_once(
    keys: list[tuple[int, bytes, bytes]],
) -> None:
    rejections = Rejections()
    rows = []
    for later, trace_id, span_id in keys:
        start = _FIRST + dt.timedelta(microseconds=later)
        rows.append({"trace_id": trace_id, "span_id": span_id, "start_time": start, "end_time": start})

    batch = SpanBatch.from_rows(rows, "default", rejections)

    trace_ids, span_ids, starts = batch.key_columns()
    assert list(zip(starts, trace_ids, span_ids, strict=True)) == sorted(set(keys))
    assert rejections.counts["spans_duplicate"] == len(keys) - len(set(keys))
