"""Which model calls of a batch repeat the usage of another one of the batch, found before any row is sent.

So a trace that arrives as a whole is stored with what counts at once, and no row is changed afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from observatory_storage.usage.nesting import Node, find_repeats

HasUsage = Callable[[Sequence[int]], Sequence[bool]]


def repeated_calls(
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
    calls: Sequence[bool],
    has_usage: HasUsage,
) -> list[int]:
    """Return the places of the calls that do not count; `has_usage` is asked about calls by their places."""
    places = [place for place, is_call in enumerate(calls) if is_call]
    if len(places) < 2:
        return []
    counts = Counter([trace_ids[place] for place in places])
    several = [place for place in places if counts[trace_ids[place]] > 1]
    if not several:
        return []
    nested = _with_nested_calls(several, trace_ids, span_ids, parent_ids)
    return _repeats_in(nested, trace_ids, span_ids, parent_ids, calls, has_usage) if nested else []


def linked_traces(
    traces: AbstractSet[bytes],
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
    calls: Sequence[bool],
) -> set[bytes]:
    """Return those of the traces, which had spans before, in which a call may lie inside another one only now.

    That takes a new call, or a new span that joins what hung apart: one with a parent that is not in the batch.
    """
    linked = {trace_id for trace_id, is_call in zip(trace_ids, calls, strict=True) if is_call and trace_id in traces}
    others = traces - linked
    if others:
        places = [place for place, trace_id in enumerate(trace_ids) if trace_id in others]
        here = {(trace_ids[place], span_ids[place]) for place in places}
        linked.update(
            trace_ids[place]
            for place in places
            if parent_ids[place] is not None and (trace_ids[place], parent_ids[place]) not in here
        )
    return linked


def _with_nested_calls(
    places: Sequence[int],
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
) -> set[bytes]:
    """Return the traces in which a call may lie inside another one: all that have one, and at worst a few more."""
    parents = dict(zip(span_ids, parent_ids, strict=True))
    if len(parents) < len(span_ids):
        # An id stands for several spans, of one trace or of several: who is whose parent is for the rule to say.
        return {trace_ids[place] for place in places}
    calls = {span_ids[place] for place in places}
    nested: set[bytes] = set()
    clear: set[bytes] = set()
    for place in places:
        if trace_ids[place] in nested:
            continue
        path: list[bytes] = []
        above = parent_ids[place]
        while above is not None and above not in clear:
            # A path as long as that goes in a circle.
            if above in calls or len(path) > len(parents):
                nested.add(trace_ids[place])
                break
            path.append(above)
            above = parents.get(above)
        else:
            clear.update(path)
    return nested


def _repeats_in(
    traces: AbstractSet[bytes],
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
    calls: Sequence[bool],
    has_usage: HasUsage,
) -> list[int]:
    by_trace: dict[bytes, list[int]] = {trace_id: [] for trace_id in traces}
    for place, trace_id in enumerate(trace_ids):
        if trace_id in traces:
            by_trace[trace_id].append(place)
    asked = [place for places in by_trace.values() for place in places if calls[place]]
    usage = dict(zip(asked, has_usage(asked), strict=True))
    repeated: list[int] = []
    for places in by_trace.values():
        nodes = [Node(span_ids[at], parent_ids[at], calls[at], usage.get(at, False)) for at in places]
        repeated += [at for at, repeats in zip(places, find_repeats(nodes), strict=True) if repeats]
    return repeated
