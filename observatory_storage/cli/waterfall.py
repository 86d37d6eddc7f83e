"""A trace as a waterfall: the span tree beside bars on the trace's own time axis."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from observatory_storage.cli import formats
from observatory_storage.cli.terminal import Glyphs, Terminal
from observatory_storage.cli.tree import TRAIL_LENGTH, Node, Top, arrange
from observatory_storage.models import Trace, TraceSpan

_MOST_NAME: Final = 48
_LEAST_NAME: Final = 12
_MOST_BAR: Final = 40
_LEAST_BAR: Final = 8


@dataclass(frozen=True, slots=True)
class _Axis:
    """The time from the first start to the last end, and the columns it is drawn on."""

    start: dt.datetime
    microseconds: int
    width: int

    def place(self, span: TraceSpan) -> tuple[int, int]:
        """Return the first column of a span's bar and the number of columns, which is 1 at least."""
        if self.microseconds <= 0:
            return 0, self.width
        begin = _microseconds(span.start_time - self.start)
        end = begin + max(span.duration_us or 0, 0)
        first = min(begin * self.width // self.microseconds, self.width - 1)
        last = min(-(-end * self.width // self.microseconds), self.width)
        return first, max(last - first, 1)


def print_waterfall(terminal: Terminal, trace: Trace, spans: Sequence[TraceSpan]) -> None:
    """Print the trace's facts, then one line for each span; a failed one is marked and its message follows."""
    _print_heading(terminal, trace)
    nodes = arrange(spans)
    if not nodes:
        terminal.print("no span of this trace is stored")
        return
    labels = [_label(terminal, node) for node in nodes]
    times = [formats.duration(node.span.duration_us, micro=terminal.glyphs.micro) or "open" for node in nodes]
    facts = [_facts(terminal, node.span) for node in nodes]
    time_width = max(map(cell_len, times))
    name_width, bar_width, facts_width = _widths(
        terminal.width - time_width - 6,
        max(cell_len(label) for label in labels),
        max(cell_len(fact) for fact in facts),
    )
    axis = _axis(spans, bar_width)
    terminal.console.print()
    for node, label, time, fact in zip(nodes, labels, times, facts, strict=True):
        failed = node.span.status == "error"
        line = Text()
        name = terminal.cut(label, name_width)
        line.append(name + " " * (name_width - cell_len(name) + 2), "bold red" if failed else "")
        line.append(_bar(axis, node.span, terminal.glyphs), "red" if failed else _bar_style(node.span))
        line.append("  " + " " * (time_width - cell_len(time)) + time)
        line.append("  " + terminal.cut(fact, facts_width) if fact else "", "dim")
        line.rstrip()
        terminal.console.print(line, no_wrap=True, crop=False)
        for note, style in _notes(node):
            indent = min(2 * min(node.depth + 1, TRAIL_LENGTH), name_width)
            shown = terminal.text(note, max(terminal.width - indent, 1))
            terminal.console.print(Text(" " * indent + shown, style), no_wrap=True, crop=False)


def _print_heading(terminal: Terminal, trace: Trace) -> None:
    status = trace.status if trace.status != "unset" else ("error" if trace.error_count else "ok")
    terminal.print((terminal.text(trace.name or "(no name)"), "bold"), "  ", (trace.id.hex, "dim"))
    tokens = f"{formats.count(trace.input_tokens)}{terminal.glyphs.arrow}{formats.count(trace.output_tokens)}"
    facts = [
        ("started", f"{formats.moment(trace.start_time)} UTC" if trace.start_time else ""),
        ("took", formats.duration(trace.duration_us, micro=terminal.glyphs.micro)),
        ("spans", formats.count(trace.span_count)),
        ("errors", formats.count(trace.error_count) if trace.error_count else ""),
        ("tokens", tokens if trace.total_tokens else ""),
        ("cost", formats.dollars(trace.cost_usd)),
        ("status", status),
        ("service", trace.service_name),
        ("project", trace.project if trace.project != "default" else ""),
        ("user", trace.user_id),
        ("session", trace.session_id),
    ]
    line = Text()
    for name, value in facts:
        if not value:
            continue
        part = terminal.text(value)
        if line and line.cell_len + cell_len(name) + cell_len(part) + 3 > terminal.width:
            terminal.console.print(line, no_wrap=True, crop=False)
            line = Text()
        line.append(("  " if line else "") + name + " ", "dim").append(part)
    terminal.console.print(line, no_wrap=True, crop=False)


def _widths(available: int, names: int, facts: int) -> tuple[int, int, int]:
    """Share the columns between names, bars and facts: facts are cut last, names and bars give way first."""
    facts = min(facts, max(available - _LEAST_NAME - _LEAST_BAR, 0))
    rest = available - facts
    name = max(min(names, _MOST_NAME, rest - min(_MOST_BAR, rest // 3)), 1)
    return name, max(min(rest - name, _MOST_BAR), 1), facts


def _axis(spans: Sequence[TraceSpan], width: int) -> _Axis:
    start = min(span.start_time for span in spans)
    end = max(_microseconds(span.start_time - start) + max(span.duration_us or 0, 0) for span in spans)
    return _Axis(start, end, width)


def _bar(axis: _Axis, span: TraceSpan, glyphs: Glyphs) -> str:
    first, length = axis.place(span)
    # A span without an end, or too short for its column, is a point rather than a bar.
    sign = glyphs.point if not span.duration_us else glyphs.bar
    drawn = sign if sign == glyphs.point else sign * length
    return (" " * first + drawn).ljust(axis.width)


def _bar_style(span: TraceSpan) -> str:
    return "cyan" if span.operation in (None, "") else "green"


def _facts(terminal: Terminal, span: TraceSpan) -> str:
    tokens = formats.count(span.input_tokens)
    if span.output_tokens is not None:
        tokens += f"{terminal.glyphs.arrow}{formats.count(span.output_tokens)}"
    model = terminal.text(span.model or span.response_model or "", 32)
    return "  ".join(part for part in (model, tokens, formats.dollars(span.cost_usd)) if part)


def _label(terminal: Terminal, node: Node) -> str:
    glyphs = terminal.glyphs
    prefix = ""
    if node.depth:
        prefix = "".join("  " if last else glyphs.trunk for last in node.trail)
        prefix += glyphs.last_branch if node.is_last else glyphs.branch
        if node.depth - 1 > TRAIL_LENGTH:
            prefix = f"({node.depth}) " + prefix
    mark = f"{glyphs.cross} " if node.span.status == "error" else ""
    return prefix + mark + terminal.text(node.span.name or "(no name)")


def _notes(node: Node) -> Iterator[tuple[str, str]]:
    if node.top is Top.ORPHAN:
        yield f"its parent {node.span.parent_span_id} is not stored", "dim"
    elif node.top is Top.CYCLE:
        yield f"its parents lead back to itself, by way of {node.span.parent_span_id}", "dim"
    if node.span.status == "error" and node.span.status_message:
        yield node.span.status_message, "red"


def _microseconds(delta: dt.timedelta) -> int:
    return delta // dt.timedelta(microseconds=1)
