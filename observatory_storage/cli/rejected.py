"""Rows that cannot be stored: shown on the terminal as far as a person reads, kept in a file in full."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from observatory_storage.cli.terminal import Terminal
from observatory_storage.errors import RejectedRowError
from observatory_storage.otlp import Signal
from observatory_storage.text import encode_json

# More than a screen of them says nothing new.
MOST_SHOWN: Final = 10
_IDS: Final = ("trace_id", "span_id", "parent_span_id", "id")


class Limited:
    """Lines of one kind on standard error, of which the first few are printed and the rest counted."""

    def __init__(self, terminal: Terminal, style: str) -> None:
        self.total = 0
        self._terminal = terminal
        self._style = style

    def add(self, line: str) -> None:
        """Print a line, unless enough were."""
        self.total += 1
        if self.total <= MOST_SHOWN:
            self._terminal.print((self._terminal.text(line), self._style))

    def finish(self, what: str) -> None:
        """Say how many lines were not printed."""
        if self.total > MOST_SHOWN:
            ellipsis = self._terminal.glyphs.ellipsis
            self._terminal.print((f"{ellipsis} and {self.total - MOST_SHOWN:,} more {what}", self._style))


class RejectedRows:
    """Takes rejected rows from any thread. `kept_in` gets one JSON object a line: file, line, reason, row.

    The file is made, or emptied, at once, so that what an earlier run left is never taken for this one's.
    """

    def __init__(self, terminal: Terminal, kept_in: Path | None) -> None:
        self._lock = threading.Lock()
        self._shown = Limited(terminal, "yellow")
        self._path = kept_in
        self._file = kept_in.open("wb") if kept_in else None
        self._failure: OSError | None = None
        self.source = ""

    @property
    def total(self) -> int:
        """The number of rows so far."""
        return self._shown.total

    def add(self, error: RejectedRowError, line: int | None = None, *, signal: Signal) -> None:
        """Take a row of the file that `source` names at present."""
        with self._lock:
            where = self.source if line is None else f"{self.source} line {line}"
            row = dict(error.row) if error.row is not None else None
            self._shown.add(f"rejected: {where}: {_name(row, signal)}{error.reason}")
            if self._file is None or self._failure is not None:
                return
            entry = {"file": self.source, "line": line, "reason": error.reason, "row": _readable(row)}
            try:
                self._file.write(encode_json(entry) + b"\n")
            except OSError as failure:
                # Raised on close: the thread that calls here may be the writer's.
                self._failure = failure

    def finish(self) -> None:
        """Say how many rows were not shown, and finish the file. Raises OSError where it does not hold them all."""
        elsewhere = f"; all are in {self._path}" if self._path else "; --rejected FILE keeps all"
        self._shown.finish(f"rejected rows{elsewhere}")
        self.close()
        if self._failure is not None:
            raise OSError(self._failure.errno, self._failure.strerror, str(self._path)) from self._failure

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _name(row: Mapping[str, Any] | None, signal: Signal) -> str:
    if not row:
        return ""
    if signal is Signal.METRICS:
        metric = row.get("metric")
        name = metric.get("name") if isinstance(metric, Mapping) else metric
        return f"data point of {name[:60]!r}: " if isinstance(name, str) else ""
    if signal is Signal.LOGS:
        return f"log record of span {_hex(row['span_id'])}: " if row.get("span_id") else ""
    if "span_id" not in row:
        return ""
    name = f"span {_hex(row['span_id'])}"
    if isinstance(row.get("name"), str) and row["name"]:
        name += f" {row['name'][:60]!r}"
    return f"{name}: "


def _readable(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return row and {key: _hex(value) if key in _IDS else value for key, value in row.items()}


def _hex(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
