"""What a long run is at, on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time

_started = time.perf_counter()


def say(what: str) -> None:
    """Show one line in the place of the last one; says nothing where standard error is no terminal."""
    terminal = sys.__stderr__
    if terminal is not None and terminal.isatty():
        seconds = int(time.perf_counter() - _started)
        terminal.write(f"\r\x1b[K{seconds // 60:>3}:{seconds % 60:02} {what}")
        terminal.flush()


def clear() -> None:
    """Take the line away."""
    terminal = sys.__stderr__
    if terminal is not None and terminal.isatty():
        terminal.write("\r\x1b[K")
        terminal.flush()
