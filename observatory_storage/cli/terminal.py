"""Where the commands print: what a stream can show, and text that is safe to show on it."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from observatory_storage.cli.formats import json_value

# What a pipe or a file gets where COLUMNS does not say: wide enough for every column of the tables.
_WIDTH_WITHOUT_TERMINAL: Final = 120


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The signs that are not letters."""

    tick: str
    cross: str
    skipped: str
    ellipsis: str
    arrow: str
    micro: str
    bar: str
    point: str
    branch: str
    last_branch: str
    trunk: str
    unknown: str
    levels: str
    """A column of a drawing, from the lowest to the full one."""


UNICODE: Final = Glyphs("✓", "✗", "·", "…", "→", "µ", "━", "╺", "├ ", "└ ", "│ ", "\ufffd", "▁▂▃▄▅▆▇█")
ASCII: Final = Glyphs("ok", "x", "-", "..", "->", "u", "=", "|", "+ ", "` ", "| ", "?", "_.-=+*%#")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit with status 1: the program says itself that its reader has left.
        raise BrokenPipeError


class Terminal:
    """One output stream. What the stream's encoding lacks is escaped, so that printing never fails on it."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self.stream = stream
        self._encoding = stream.encoding or "ascii"
        self.glyphs = UNICODE if _can_encode(self._encoding, UNICODE) else ASCII
        self.console = _Console(file=stream, width=_width(stream), highlight=False, markup=False, emoji=False)

    @property
    def is_interactive(self) -> bool:
        """Tell whether a person may be looking on, so that a progress bar makes sense."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.console.width

    def print(self, *parts: str | tuple[str, str]) -> None:
        """Print one line of parts, each a text or (text, style); a long one goes on in the next row."""
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def print_json(self, value: Any) -> None:
        """Print one JSON value on one line."""
        ascii_only = self.glyphs is ASCII
        self.stream.write(json.dumps(value, default=json_value, ensure_ascii=ascii_only) + "\n")

    def text(self, value: object, width: int | None = None) -> str:
        """Return stored or foreign text as one line that this stream can show, cut to `width` columns.

        Control characters are replaced: a span's name must not be able to move the cursor.
        """
        plain = "".join(
            sign if sign.isprintable() else " " if sign.isspace() else self.glyphs.unknown for sign in str(value)
        )
        plain = plain.encode(self._encoding, "backslashreplace").decode(self._encoding)
        return plain if width is None else self.cut(plain, width)

    def cut(self, text: str, width: int) -> str:
        """Cut text to a number of columns and mark the cut; a double-width sign counts two."""
        if cell_len(text) <= width:
            return text
        mark = self.glyphs.ellipsis[: max(width, 0)]
        return set_cell_size(text, max(width - len(mark), 0)).rstrip() + mark


@dataclass(frozen=True, slots=True)
class Terminals:
    """Results go to `out`; progress, warnings and errors to `err`."""

    out: Terminal
    err: Terminal

    @classmethod
    def standard(cls) -> Terminals:
        """Take the process's standard output and standard error as they are now."""
        return cls(Terminal(sys.stdout), Terminal(sys.stderr))


def _can_encode(encoding: str, glyphs: Glyphs) -> bool:
    try:
        "".join(getattr(glyphs, name) for name in Glyphs.__dataclass_fields__).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _width(stream: TextIO) -> int | None:
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return None
    return _WIDTH_WITHOUT_TERMINAL
