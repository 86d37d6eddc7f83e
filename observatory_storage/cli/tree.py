"""The order in which a trace's spans are shown: a tree, whatever the spans say of their parents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from observatory_storage.models import TraceSpan

# Deeper spans show the innermost levels only, so that a chain of 10,000 spans stays readable.
TRAIL_LENGTH: Final = 8


class Top(Enum):
    """Why a span stands at the top level."""

    ROOT = "root"
    ORPHAN = "orphan"
    """Its parent is not stored."""
    CYCLE = "cycle"
    """Its ancestors lead back to itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """A span in its place. `trail` says of its innermost ancestors below the top whether each is a last child."""

    span: TraceSpan
    depth: int
    is_last: bool
    trail: tuple[bool, ...]
    top: Top | None


def arrange(spans: Iterable[TraceSpan]) -> list[Node]:
    """Return every span once, parents before children and siblings by start time.

    A span whose parent is missing stands at the top, and so does the earliest span of a cycle, after the others.
    """
    ordered = sorted(spans, key=lambda span: (span.start_time, span.span_id))
    # A span id that was sent with two start times has two rows; children go to the first.
    first = {span.span_id: number for number, span in reversed(list(enumerate(ordered)))}
    children: dict[int, list[int]] = {}
    tops: list[tuple[int, Top]] = []
    for number, span in enumerate(ordered):
        if span.parent_span_id is None:
            tops.append((number, Top.ROOT))
        elif span.parent_span_id not in first:
            tops.append((number, Top.ORPHAN))
        else:
            children.setdefault(first[span.parent_span_id], []).append(number)
    nodes: list[Node] = []
    seen: set[int] = set()
    for number, top in tops:
        _walk(number, top, ordered, children, nodes, seen)
    for number in range(len(ordered)):
        if number not in seen:
            _walk(number, Top.CYCLE, ordered, children, nodes, seen)
    return nodes


def _walk(
    start: int,
    top: Top,
    spans: Sequence[TraceSpan],
    children: dict[int, list[int]],
    nodes: list[Node],
    seen: set[int],
) -> None:
    seen.add(start)
    root = Node(spans[start], 0, True, (), top)
    stack = [(start, root)]
    while stack:
        number, node = stack.pop()
        nodes.append(node)
        below = [child for child in children.get(number, ()) if child not in seen]
        seen.update(below)
        trail = (*node.trail, node.is_last)[-TRAIL_LENGTH:] if node.depth else ()
        stack.extend(
            (child, Node(spans[child], node.depth + 1, child == below[-1], trail, None)) for child in reversed(below)
        )
