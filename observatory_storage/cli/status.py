"""Exit statuses, and how an error leaves the program: as one sentence, without a traceback and without a secret."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import NoReturn, TextIO

import typer

from observatory_storage.cli.terminal import Terminal
from observatory_storage.errors import ConfigurationError, StorageError

PROGRAM = "observatory-storage"


class Status(IntEnum):
    """What the exit status says."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    """Everything else was done, but rows were rejected."""
    INTERRUPTED = 128 + signal.SIGINT
    BROKEN_PIPE = 128 + 13


EXIT_STATUSES = (
    "Exit status: 0 when all was done; 1 when something failed; 2 for wrong usage; 3 when everything was stored "
    "but rows that were rejected; 130 when interrupted."
)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn the errors of the library, Ctrl-C and a reader that left into a sentence and an exit status."""
    try:
        yield
        sys.stdout.flush()
    except ConfigurationError as error:
        # Several problems stand below each other, as `check` shows them.
        sentence = str(error).partition("\n")[0]
        fail(sentence, *(problem for problem in error.problems if problem not in sentence))
    except StorageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        Terminal(sys.stderr).print(f"{PROGRAM}: interrupted")
        raise typer.Exit(Status.INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(Status.BROKEN_PIPE) from None
    except OSError as error:
        if error.filename is None:
            # Standard output itself: what it could not take must not be tried again at exit.
            _discard(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}")


def fail(sentence: str, *details: str, status: Status = Status.FAILED) -> NoReturn:
    """Say on standard error what is wrong, and end with a status."""
    terminal = Terminal(sys.stderr)
    terminal.print((f"{PROGRAM}: ", ""), (terminal.text(sentence), "red"))
    for detail in details:
        terminal.print(f"  {terminal.text(detail)}")
    raise typer.Exit(status) from None


def log_to_terminal() -> None:
    """Show warnings of the library as lines on standard error, above a progress bar where there is one."""
    logging.basicConfig(handlers=[_TerminalHandler()], level=logging.WARNING)
    # What it warns of, once for each attempt, is in the error that the command ends with.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


class _TerminalHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        terminal = Terminal(sys.stderr)
        terminal.print((f"{PROGRAM}: {terminal.text(record.getMessage())}", "yellow"))


def replace_closed_streams() -> None:
    """Give a program that was started without standard output or error something to print to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the program, so that writers flush and an embedded server stops."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _discard_output() -> None:
    # The interpreter flushes standard output once more when it ends, and would complain.
    for stream in (sys.stdout, sys.stderr):
        _discard(stream)


def _discard(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except OSError:
        return  # it has no descriptor that could complain
    finally:
        os.close(nowhere)
