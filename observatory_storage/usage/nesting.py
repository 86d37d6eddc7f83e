"""Which model calls of a trace repeat the usage of another one: a function of the set of its spans.

Two instrumentations that record one call, a framework's and a provider's, nest one model call in another, with any
spans between, and both say the same tokens. So of model calls that lie one inside the other, one counts:

- a call *with usage* (tokens or cost, not zero) counts if no call with usage lies inside it: the innermost counts;
- a call without usage counts if no call at all lies inside it, and none of those that it lies inside counts. So a
  failed call that two instrumentations recorded is one call and one error, and a retry that failed inside a call
  whose next attempt went well is a call of its own.

Spans that share an id have one place, below the smallest of their parents' ids. A parent that is not stored ends the
way up, and so does a span that is its own ancestor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """A span as the rule sees it: its ids, whether it is a model call, and whether it has usage."""

    span_id: bytes
    parent_id: bytes | None
    is_call: bool
    has_usage: bool


def find_repeats(nodes: Sequence[Node]) -> list[bool]:
    """Tell of each span of one trace, all of whose spans are given, whether it is a call that does not count."""
    calls = [node for node in nodes if node.is_call]
    if len(calls) < 2:
        return [False] * len(nodes)
    parents = _parents(nodes)
    around_usage = _ancestors({node.span_id for node in calls if node.has_usage}, parents)
    around_calls = _ancestors({node.span_id for node in calls}, parents)
    counted = {node.span_id for node in calls if node.has_usage and node.span_id not in around_usage}
    # Asked for calls without usage alone, and most traces have none.
    without_usage = any(not node.has_usage for node in calls)
    below_counted = _descendants(counted, parents) if without_usage else set[bytes]()

    def repeats(node: Node) -> bool:
        if not node.is_call:
            return False
        if node.has_usage:
            return node.span_id in around_usage
        return node.span_id in around_calls or node.span_id in below_counted

    return [repeats(node) for node in nodes]


def _parents(nodes: Iterable[Node]) -> dict[bytes, bytes | None]:
    """Return the parent of each span that has one in the trace, without circles."""
    found: dict[bytes, bytes | None] = {}
    for node in nodes:
        parent, known = node.parent_id, found.get(node.span_id)
        found[node.span_id] = parent if known is None or (parent is not None and parent < known) else known
    parents = {span_id: parent if parent in found else None for span_id, parent in found.items()}
    safe: set[bytes] = set()
    for span_id in found:
        path: dict[bytes, None] = {}
        at: bytes | None = span_id
        while at is not None and at not in safe and at not in path:
            path[at] = None
            at = parents[at]
        if at is not None and at in path:
            circle = list(path)
            for one in circle[circle.index(at) :]:
                parents[one] = None
        safe.update(path)
    return parents


def _ancestors(span_ids: Iterable[bytes], parents: dict[bytes, bytes | None]) -> set[bytes]:
    """Return all spans inside of which one of these lies."""
    found: set[bytes] = set()
    for span_id in span_ids:
        at = parents[span_id]
        while at is not None and at not in found:
            found.add(at)
            at = parents[at]
    return found


def _descendants(span_ids: set[bytes], parents: dict[bytes, bytes | None]) -> set[bytes]:
    """Return all spans that lie inside one of these."""
    inside: dict[bytes, bool] = {}
    for span_id in parents:
        path = []
        at = span_id
        is_inside = False
        while at not in inside:
            path.append(at)
            above = parents[at]
            if above is None:
                break
            if above in span_ids:
                is_inside = True
                break
            at = above
        else:
            is_inside = inside[at]
        inside.update(dict.fromkeys(path, is_inside))
    return {span_id for span_id, is_inside in inside.items() if is_inside}
