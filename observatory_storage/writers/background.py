"""What a process does for all its writers: write at exit, and start afresh in a forked child."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from typing import Final, Protocol

# Imported for the order of things at exit: what registers first is closed last, and writers need connections.
from observatory_storage import connections
from observatory_storage.errors import StorageError

_log = logging.getLogger(__name__)


class Closable(Protocol):
    """A writer, as far as the end of a process concerns it."""

    def close(self) -> None:
        """Write what is left."""
        ...

    def abandon(self) -> int:
        """Give up what is left; return its number."""
        ...

    def start_afresh(self) -> None:
        """Forget what belongs to the parent process."""
        ...


_writers: Final[weakref.WeakSet[Closable]] = weakref.WeakSet()


def register(writer: Closable) -> None:
    """Have a writer closed at interpreter exit and emptied in forked children."""
    _writers.add(writer)


def unregister(writer: Closable) -> None:
    """Forget a writer that is closed."""
    _writers.discard(writer)


def _close_all() -> None:
    for writer in list(_writers):
        try:
            writer.close()
        except Exception as error:  # noqa: BLE001 - see below
            # Nobody is left to raise to, and the other writers are to have their turn.
            cause = error.__cause__ or error
            is_ours = isinstance(cause, StorageError)
            _log.error(
                "at interpreter exit %d rows of a %s are lost: %s",
                writer.abandon(),
                type(writer).__name__,
                cause if is_ours else repr(cause),
                exc_info=None if is_ours else cause,
            )


def _start_all_afresh() -> None:
    for writer in list(_writers):
        writer.start_afresh()


assert connections.__name__ in sys.modules
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_afresh)
