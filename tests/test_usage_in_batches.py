"""What a batch decides of itself is what the rule says of the same spans."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.writers.nested_calls import repeated_calls
from tests.usage_cases import counted, make_tree


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    circles=st.booleans(),
    shared=st.booleans(),
)
def test_a_batch_decides_as_the_rule_says(seed: int, sizes: list[int], circles: bool, shared: bool) -> None:
    dice = random.Random(seed)
    spans = [span for size in sizes for span in make_tree(dice, size)]
    ids = [span["span_id"] for span in spans]
    for span in spans:
        if circles and dice.random() < 0.3:
            span["parent_span_id"] = dice.choice(ids)
    if shared and len(sizes) > 1:
        # The ids of one trace stand for spans of another one, too.
        other = [{**span, "trace_id": b"other".ljust(16), "counts_usage": True} for span in spans[: sizes[0]]]
        spans += other
    dice.shuffle(spans)

    def has_usage(places: Any) -> list[bool]:
        return [
            any(spans[place].get(name) for name in ("input_tokens", "output_tokens", "cost_usd")) for place in places
        ]

    repeated = repeated_calls(
        [span["trace_id"] for span in spans],
        [span["span_id"] for span in spans],
        [span["parent_span_id"] for span in spans],
        [span["counts_usage"] for span in spans],
        has_usage,
    )
    kept = {(span["trace_id"], span["span_id"]) for span in counted(spans)}
    calls = [span for span in spans if span["counts_usage"]]
    expected = {(span["trace_id"], span["span_id"]) for span in calls} - kept
    assert {(spans[place]["trace_id"], spans[place]["span_id"]) for place in repeated} == expected
