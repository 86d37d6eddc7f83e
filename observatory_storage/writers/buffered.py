"""The part that all writers share: a buffer, the thread that empties it, flush, close, and the accounts."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from observatory_storage.errors import ConfigurationError, RejectedRowError, StorageError, WriteError, describe
from observatory_storage.writers import background
from observatory_storage.writers.buffer import BufferStats, RowBuffer
from observatory_storage.writers.config import WriterConfig
from observatory_storage.writers.store import BatchStore, Prepared, Stored

if TYPE_CHECKING:
    from observatory_storage.pool import StoragePool

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommitStats:
    """What every writer counts since it was made.

    `rows_rejected` counts rejected rows of any kind, `batches_committed` transactions, `retries` those that were
    tried again, and `failures` attempts that committed nothing.
    """

    rows_rejected: int = 0
    batches_committed: int = 0
    retries: int = 0
    failures: int = 0


S = TypeVar("S", bound=CommitStats)


def _kind(value: object) -> str:
    return type(value).__name__


class BufferedWriter(ABC, Generic[S]):
    """Buffers rows and writes them in batches, each in one transaction, exact under replay.

    `write_…` returns when the row is in the buffer; it is acknowledged, that is committed, when `flush` or
    `close` has returned. A background thread writes full and old batches meanwhile. What could not be
    written stays in the buffer and is tried again; a full buffer makes callers wait. A single row is copied
    when it is given, not what it refers to; rows that are given together are the writer's from then on, and
    not to be changed. Rows that cannot be stored are handed to `on_rejected`, from the thread that flushed,
    or else logged as a warning.

    Safe for threads. In a forked child the writer is empty and uses connections of its own.
    """

    _kinds: ClassVar[Sequence[str]]

    def __init__(
        self,
        pool: StoragePool,
        config: WriterConfig | None = None,
        *,
        on_rejected: Callable[[RejectedRowError], None] | None = None,
    ) -> None:
        if not hasattr(pool, "raw_connection"):
            raise ConfigurationError(f"{type(self).__name__} writes on a StoragePool, and was given a {_kind(pool)}")
        if config is not None and not isinstance(config, WriterConfig):
            raise ConfigurationError(f"config is a {_kind(config)} and must be a WriterConfig")
        self._pool = pool
        self._config = config or WriterConfig()
        self._on_rejected = on_rejected
        self._project = self._config.project or pool.config.project
        self._batch_size = min(self._config.batch_size, self._config.max_buffered_rows)
        self._buffer = RowBuffer(self._kinds, self._config.max_buffered_rows, self._config.full_buffer_timeout_seconds)
        self.start_afresh()
        background.register(self)

    @abstractmethod
    def _make_store(self) -> BatchStore[Any]:
        """Return what stores the rows of this writer."""

    @abstractmethod
    def _no_stats(self) -> S:
        """Return the statistics of a writer that has done nothing."""

    def start_afresh(self) -> None:
        """Forget buffered rows, threads and counts: what a forked child does with its parent's writer."""
        self._buffer.reset()
        self._store = self._make_store()
        self._stats = self._no_stats()
        self._closed = False
        self._rejected: deque[RejectedRowError] = deque()
        self._flushing = threading.Lock()
        self._flusher: int | None = None
        self._flush_failed = False
        self._resting = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ahead: Prepared[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flush(self) -> None:
        """Write all that was buffered before the call; returns after the COMMIT.

        Raises WriteError if something did not commit: it stays in the buffer, and the next flush tries again.
        Cannot be called while the same thread is flushing, as from a signal handler: that raises WriteError.
        """
        self._exclusively(self._write_all)
        self._hand_over()

    def close(self) -> None:
        """Flush and stop. Raises WriteError as `flush` does; the writer is then still open and holds the rows."""
        if self._closed:
            return
        self.flush()
        self._buffer.close()
        try:
            # A row that another thread put in meanwhile is not left behind.
            self.flush()
            thread = self._thread
            if thread is not None and thread is not threading.current_thread() and thread.is_alive():
                thread.join()
        except BaseException:  # raised again: the rows are held, and the writer goes on
            self._buffer.close(False)
            self._thread = None
            raise
        self._closed = True
        background.unregister(self)

    def abandon(self) -> int:
        """Give up what is not committed, for a server that will not come back; return the number of rows lost.

        Closes the writer without a word: what is to be said of the loss is the caller's to say.
        """
        lost = len(self._buffer)
        self._buffer.close()
        self._closed = True
        background.unregister(self)
        return lost

    def buffer_stats(self) -> BufferStats:
        """Return what waits to be written."""
        return self._buffer.stats()

    def write_stats(self) -> S:
        """Return what has been committed so far."""
        return self._stats

    def _put(self, kind: str, rows: Iterable[object], *, copy: bool = False) -> None:
        if self._closed:
            raise WriteError("the writer is closed; make a new one")
        self._ensure_thread()
        self._buffer.put(kind, rows, copy=copy)

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                # One whose start was interrupted never ran.
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="observatory-writer", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        thread = threading.current_thread()
        pause = 0.0
        try:
            # From Python 3.12 on a pool cannot start its threads at interpreter exit, when rows may be left.
            self._pool.open()
        except StorageError as error:
            _log.warning("%s", error)
        # Where `close` failed and the writer went on, another thread has taken over.
        while not self._buffer.wait_closed(pause) and self._thread is thread:
            if not self._buffer.wait_for_batch(self._batch_size, self._config.flush_interval_seconds):
                return
            if self._thread is not thread:
                return
            try:
                self._exclusively(self._write_oldest)
                self._hand_over()
                pause = self._config.flush_interval_seconds if self._resting else 0.0
            except Exception as error:  # noqa: BLE001 - this thread must live: a flush or a full buffer tells the caller
                if self._closed:
                    return
                _log.warning("%s", error if isinstance(error, StorageError) else repr(error))
                pause = min(max(0.1, pause * 2), 10.0)

    def _exclusively(self, write: Callable[[], None]) -> None:
        # Not a context manager of our own: a signal handler that raises could strike between its taking the lock and
        # the `with` that would give it back.
        thread = threading.get_ident()
        if self._flusher == thread:
            raise WriteError(
                "this thread is flushing already, and a signal handler or finalizer asked for another flush",
                unwritten=len(self._buffer),
            )
        with self._flushing:
            self._flusher = thread
            try:
                write()
            finally:
                self._flusher = None

    def _write_all(self) -> None:
        """Write what is buffered now."""
        left = len(self._buffer)
        self._flush_failed = True
        while left > 0:
            left -= self._write_batch()
        self._flush_failed = False

    def _write_oldest(self) -> None:
        """Write one batch for the background thread.

        Not so where a flush failed since the last time: it has told its caller, whose turn it is, and the thread
        rests before it tries the same in a second voice.
        """
        self._resting, self._flush_failed = self._flush_failed, False
        if not self._resting:
            self._write_batch()

    def _write_batch(self) -> int:
        """Write one batch and return its rows."""
        number = min(len(self._buffer), self._batch_size)
        if not number:
            return 0
        stored = Stored()
        ahead: list[Prepared[Any]] = []
        try:
            prepared, self._ahead = self._ahead or self._prepare(), None
            number = prepared.rows
            self._store.store(prepared, stored, lambda: self._work_ahead(number, ahead))
        except Exception as error:
            self._stats = replace(self._stats, failures=self._stats.failures + 1)
            reason = describe(error) if isinstance(error, StorageError) else repr(error)
            self._buffer.last_error = reason
            waiting = len(self._buffer)
            raise WriteError(
                f"a batch of {number} rows was not committed: {reason}; {waiting} rows are held and will be "
                "tried again",
                unwritten=waiting,
                sqlstate=error.sqlstate if isinstance(error, StorageError) else None,
            ) from error
        finally:
            self._account(stored)
        self._buffer.drop(number)
        # Only now are these the oldest rows: an interrupt before leaves nothing prepared.
        self._ahead = ahead[0] if ahead else None
        self._buffer.last_error = None
        return number

    def _prepare(self, skip: int = 0) -> Prepared[Any]:
        return self._store.prepare(self._buffer.peek(self._batch_size, skip))

    def _work_ahead(self, number: int, ahead: list[Prepared[Any]]) -> bool:
        """Do some of the work for the batch behind the first `number` rows; false where there is none.

        Only if it is full: others would be joined by rows to come.
        """
        # What is wrong with those rows is no fault of the batch that is being written.
        with suppress(Exception):
            if ahead:
                return self._store.convert_ahead(ahead[0])
            if len(self._buffer) >= number + self._batch_size:
                ahead.append(self._prepare(number))
                return True
        return False

    def _account(self, stored: Stored) -> None:
        old = self._stats
        counts = stored.counts + Counter(
            rows_rejected=len(stored.rejected), batches_committed=stored.batches, retries=stored.retries
        )
        self._stats = replace(old, **{name: getattr(old, name) + number for name, number in counts.items()})
        self._rejected.extend(stored.rejected)
        if stored.rejected and self._on_rejected is None:
            self._rejected.clear()
            _log.warning("%d rows rejected; the first one: %s", len(stored.rejected), stored.rejected[0].reason)

    def _hand_over(self) -> None:
        """Hand rejected rows to the caller, outside of all locks, each once."""
        while self._rejected and self._on_rejected is not None:
            try:
                error = self._rejected.popleft()
            except IndexError:  # another thread had the last one
                return
            try:
                self._on_rejected(error)
            except Exception:  # noqa: BLE001 - see below
                # The caller's code: its failure must not undo a committed batch.
                _log.exception("on_rejected failed for a rejected row: %s", error.reason)
