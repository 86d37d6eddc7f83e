"""Which model calls of a batch repeat the usage of another one of the batch, found before any row is sent.

So a trace that arrives as a whole is stored with what counts at once, and no row is changed afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    around = _calls_around(several, trace_ids, span_ids, parent_ids, calls)
    if around is None:
        traces = {trace_ids[place] for place in several}
        return _repeats_in(traces, trace_ids, span_ids, parent_ids, calls, has_usage)
    nested = sorted({*around, *around.values()})
    nodes = [
        Node(span_ids[place], span_ids[around[place]] if place in around else None, True, usage)
        for place, usage in zip(nested, has_usage(nested), strict=True)
    ]
    return [place for place, repeats in zip(nested, find_repeats(nodes), strict=True) if repeats]


def linked_traces(
    traces: AbstractSet[bytes],
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
    calls: Sequence[bool],
    *,
    all_new: bool,
) -> set[bytes]:
    """Return those of the traces, which had spans before, in which a call may lie inside another one only now.

    That takes a new call, or a new span that joins what hung apart: one with a parent that is not in the batch. Unless
    `all_new`, what the batch says of a parent may not be what is stored of it.
    """
    linked = {trace_id for trace_id, is_call in zip(trace_ids, calls, strict=True) if is_call and trace_id in traces}
    others = traces - linked
    if others:
        places = [place for place, trace_id in enumerate(trace_ids) if trace_id in others]
        here = {(trace_ids[place], span_ids[place]) for place in places} if all_new else set()
        linked.update(
            trace_ids[place]
            for place in places
            if parent_ids[place] is not None and (trace_ids[place], parent_ids[place]) not in here
        )
    return linked


def _calls_around(
    places: Sequence[int],
    trace_ids: Sequence[bytes],
    span_ids: Sequence[bytes],
    parent_ids: Sequence[bytes | None],
    calls: Sequence[bool],
) -> dict[int, int] | None:
    """Return the nearest call around each call that lies inside one; None where the tree is not that simple."""
    place_of = dict(zip(span_ids, range(len(span_ids)), strict=True))
    if len(place_of) < len(span_ids):
        # An id stands for several spans, of one trace or of several: who is whose parent is for the rule to say.
        return None
    around: dict[int, int] = {}
    clear: set[int] = set()
    for place in places:
        path: list[int] = []
        trace_id, parent = trace_ids[place], parent_ids[place]
        while parent is not None:
            at = place_of.get(parent)
            if at is None or at in clear or trace_ids[at] != trace_id:
                break
            if calls[at]:
                around[place] = at
                path.clear()
                break
            path.append(at)
            if len(path) > len(span_ids):
                # It goes in a circle.
                return None
            parent = parent_ids[at]
        clear.update(path)
    return None if _has_circle(around) else around


def _has_circle(around: Mapping[int, int]) -> bool:
    done: set[int] = set()
    for place in around:
        path: set[int] = set()
        at: int | None = place
        while at is not None and at not in done:
            if at in path:
                return True
            path.add(at)
            at = around.get(at)
        done |= path
    return False


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
