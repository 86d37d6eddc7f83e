"""Maintenance in a process of its own: when it did what, and what memory it took."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self, TypeAlias

import psutil
import psycopg

from observatory_storage.lifecycle import MaintenanceReport
from observatory_storage.pool import StoragePool

Line: TypeAlias = "Connection[Any, Any]"
_NAME: Final = "benchmark-maintainer"
# A store that is maintained has the partitions of the coming week; here they are not what is looked at.
_AHEAD: Final = dt.timedelta(hours=1)
# How often memory is looked at, in seconds. Of the server's processes seldom: the kernel walks all their pages for it.
_OWN_PAUSE: Final = 0.02
_SERVER_PAUSE: Final = 1.0
_SESSIONS: Final = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


class Step(NamedTuple):
    """What maintenance said it is at, from then until it said something else."""

    what: str
    began: float
    ended: float


class Run(NamedTuple):
    """One call of `pool.maintain`; times are by the clock that all processes share."""

    steps: Sequence[Step]
    report: MaintenanceReport

    @property
    def began(self) -> float:
        return self.steps[0].began

    @property
    def ended(self) -> float:
        return self.steps[-1].ended


class Maintainer:
    """Maintains when told. It has connected when this is made, and `base_mb` is its memory then."""

    def __init__(self, url: str, retention: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_maintain, args=(url, retention, theirs))
        self._process.start()
        theirs.close()
        assert self._line.recv() == "ready"
        self._own = psutil.Process(self._process.pid)
        self.base_mb = self.peak_mb = float(self._own.memory_info().rss / 1e6)
        self.server_mb: float | None = None
        """What one of its sessions had to itself at most; None where the server's processes cannot be looked at."""
        self._url = url
        self._done = threading.Event()
        self._watching = [threading.Thread(target=watch) for watch in (self._watch, self._watch_server)]

    def __enter__(self) -> Self:
        for thread in self._watching:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._watching:
            thread.join()
        self._line.send(None)
        self._process.join()

    @property
    def growth_mb(self) -> float:
        return self.peak_mb - self.base_mb

    def run(self) -> Run:
        """Maintain once, and wait for the end."""
        self._line.send("maintain")
        found: Run = self._line.recv()
        return found

    def _watch(self) -> None:
        while not self._done.wait(_OWN_PAUSE):
            with suppress(psutil.NoSuchProcess):
                self.peak_mb = max(self.peak_mb, self._own.memory_info().rss / 1e6)

    def _watch_server(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while True:
                for (pid,) in connection.execute(_SESSIONS, [_NAME]).fetchall():
                    # Gone, another user's, another host's, or a system that does not say.
                    with suppress(psutil.Error, AttributeError):
                        process = psutil.Process(pid)
                        if "postgres" in process.name():
                            private = process.memory_full_info().uss / 1e6
                            self.server_mb = max(self.server_mb or 0.0, private)
                if self._done.wait(_SERVER_PAUSE):
                    return


def _maintain(url: str, retention: str, line: Line) -> None:
    with StoragePool.from_url(url, retention=retention, application_name=_NAME, max_connections=2) as pool:
        pool.open()
        line.send("ready")
        while line.recv() is not None:
            said = [("looking for what is due", time.monotonic())]

            def note(what: str, done: int, total: int, said: list[tuple[str, float]] = said) -> None:
                if said[-1][0] != what:
                    said.append((what, time.monotonic()))

            report = pool.maintain(ahead=_AHEAD, on_progress=note)
            said.append(("", time.monotonic()))
            line.send(Run([Step(*one, following[1]) for one, following in pairwise(said)], report))
