"""Programs in processes of their own, forked from one that has imported what they need.

What runs is what `python -c` would run, without a second of imports for each: for tests of what processes do to each
other, not of how a program starts and ends.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import sys
import traceback
import warnings
from multiprocessing.connection import Connection

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.forked", "tests.signals", "tests.telemetry", "observatory_storage.pool", "observatory_storage.writers"]
)
_SECONDS = 120


class Program:
    """A program that runs; a warning ends it."""

    def __init__(self, code: str, *arguments: str) -> None:
        self._said, theirs = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_run, args=(code, arguments, theirs))
        self._process.start()
        theirs.close()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def output(self) -> str:
        """What it wrote, when it has ended well and without a word on standard error."""
        with self._said:
            has_said = self._said.poll(_SECONDS)
            try:
                out, err = self._said.recv() if has_said else ("", f"it has not ended after {_SECONDS} s")
            except EOFError:
                out, err = "", "it ended in the middle"
        self._process.join(_SECONDS if has_said else 0)
        self._process.kill()
        self._process.join()
        assert (self._process.exitcode, err) == (0, ""), f"exit status {self._process.exitcode}: {err}"
        return str(out)


def _run(code: str, arguments: tuple[str, ...], said: Connection) -> None:
    # What was imported before stays shared with the process that was forked.
    gc.freeze()
    warnings.simplefilter("error")
    sys.argv = ["-c", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            exec(code, {"__name__": "__main__"})
        except Exception:  # noqa: BLE001 - whatever the program raises is said to who waits for it
            traceback.print_exc()
    said.send((out.getvalue(), err.getvalue()))
