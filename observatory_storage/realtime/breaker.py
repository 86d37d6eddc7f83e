"""A circuit breaker: while Redis is away nobody waits for it, and one thread asks whether it is back."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import redis

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
# One that opens again so soon has met a Redis that answers a ping in time and little else: the next pause is longer.
_STEADY_SECONDS: Final = 10.0
# A probe under way ends by the timeouts of its connection, which are shorter as a rule.
_STOP_SECONDS: Final = 1.0


class Breaker:
    """Closed while Redis answers. The first failure opens it, and then `allows()` is false for everyone at once.

    No caller's own call is the probe: a thread asks, first after 0.1 s and then less and less often, up to every
    5 s. When `probe` returns without redis.RedisError the breaker is closed, and it is called once more for what
    came up in between. In a forked child it is closed.
    """

    def __init__(self, probe: Callable[[], None]) -> None:
        self._probe = probe
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._is_closed = True
        self.openings = 0
        """How often it has opened."""
        # A signal handler that closes the pool may come while its own thread holds it.
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._asking: threading.Thread | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._closed_at = time.monotonic()
        self._pid = os.getpid()

    def allows(self) -> bool:
        """Tell whether Redis may be asked."""
        return self._is_closed

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Run a call to Redis; one that fails opens the breaker, and is raised."""
        try:
            yield
        except redis.RedisError as error:
            if is_outage(error):
                self.open(error)
            raise

    def open(self, error: redis.RedisError) -> None:
        """Note a failure."""
        with self._lock:
            if not self._is_closed or self._over.is_set():
                return
            self._is_closed = False
            self.openings += 1
            steady = time.monotonic() - self._closed_at > _STEADY_SECONDS
            self._pause = _FIRST_PAUSE_SECONDS if steady else min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
            # At the interpreter's end no thread can be started any more, and none is needed.
            with suppress(RuntimeError):
                thread = threading.Thread(target=self._ask, name="observatory-redis-probe", daemon=True)
                thread.start()
                self._asking = thread
        _log.warning("Redis does not answer, going on without it: %s", error)

    def stop(self) -> None:
        """Ask no more, and wait for a probe under way, for a second at most. The breaker stays as it is."""
        self._over.set()
        with self._lock:
            asking = self._asking
        if asking is not None and asking is not threading.current_thread():
            asking.join(_STOP_SECONDS)

    def _ask(self) -> None:
        pause = self._pause
        while not self._over.wait(pause):
            try:
                self._probe()
            except redis.RedisError:
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            with self._lock:
                self._closed_at = time.monotonic()
                self._is_closed = True
            _log.info("Redis answers again")
            try:
                self._probe()
            except redis.RedisError as error:
                self.open(error)
            return


def is_outage(error: redis.RedisError) -> bool:
    """Tell a Redis that does not answer from one that refused a command, and from a client with too few connections."""
    # redis-py has no class of its own for a pool that had no connection to give in time.
    return not isinstance(error, redis.ResponseError) and not isinstance(error.__context__, queue.Empty)


_all: Final[weakref.WeakSet[Breaker]] = weakref.WeakSet()


def _reset_all() -> None:
    for breaker in list(_all):
        breaker._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
