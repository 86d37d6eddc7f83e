"""IngestWorker: requests from a queue to committed rows, exact however often workers die."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from observatory_storage.errors import (
    DecodeError,
    RejectedRowError,
    StorageError,
    UnavailableError,
    WriteError,
    describe,
    is_transient,
)
from observatory_storage.otlp import DecodedLogs, DecodedMetrics, DecodedTraces, Signal, decode
from observatory_storage.realtime.queue import QueuedBatch, RedisIngestQueue
from observatory_storage.writers.config import WriteMethod, WriterConfig
from observatory_storage.writers.log import LogWriter
from observatory_storage.writers.metric import MetricWriter
from observatory_storage.writers.trace import TraceWriter

if TYPE_CHECKING:
    from observatory_storage.pool import StoragePool

_log = logging.getLogger(__name__)

DEFAULT_CLAIM_IDLE_SECONDS: Final = 60.0
DEFAULT_MAX_ATTEMPTS: Final = 5
DEFAULT_BATCHES: Final = 64
_BLOCK_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0
_SIGNALS: Final = frozenset(Signal)
# No request's fault: rights, missing tables, limits, the server's state. Waiting is all that helps.
_SERVER_CLASSES: Final = ("08", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "XX")


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker has done: requests stored and acknowledged, rows given to writers, replays included, rejected rows,
    requests moved to the dead letters, requests taken over from dead workers, and attempts that failed.
    """

    batches: int = 0
    rows: int = 0
    rejected: int = 0
    buried: int = 0
    claimed: int = 0
    failures: int = 0


class _Stopped(Exception):  # noqa: N818 - not an error: told to stop while the database was away
    pass


class IngestWorker:
    """Takes requests from a queue, writes them by COPY, and acknowledges them after the COMMIT.

    Killed at any point it loses nothing: what it had taken is taken over by another worker after `claim_idle_seconds`,
    and what it had stored already is stored once. A request that cannot be decoded, that was taken more than
    `max_attempts` times without an end, or that fails alone `max_attempts` times for a reason of its own, goes to the
    dead letters; one that fails because the database is away is held and tried again. Several workers may run, each in
    a thread or process of its own.
    """

    def __init__(
        self,
        pool: StoragePool,
        queue: RedisIngestQueue,
        *,
        consumer: str | None = None,
        config: WriterConfig | None = None,
        batches: int = DEFAULT_BATCHES,
        claim_idle_seconds: float = DEFAULT_CLAIM_IDLE_SECONDS,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        on_rejected: Callable[[RejectedRowError], None] | None = None,
    ) -> None:
        self._pool = pool
        self._queue = queue
        self.consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        given = config or WriterConfig(method=WriteMethod.COPY)
        # Flushed by hand, because what is acknowledged must be what was flushed. What is taken at a time bounds the
        # buffer: where that made the caller wait, it would not say why.
        self._config = given.model_copy(update={"flush_interval_seconds": 3600.0, "max_buffered_rows": 10_000_000})
        self._batches = batches
        self._claim_idle_seconds = claim_idle_seconds
        self._max_attempts = max_attempts
        self._on_rejected = on_rejected
        self._writers: dict[str, Any] = {}
        self._claim_at = 0.0
        self._stats = WorkerStats()
        self._stop: Callable[[], bool] = lambda: False

    def run(self, stop: Callable[[], bool], *, idle_timeout_seconds: float | None = None) -> WorkerStats:
        """Work until `stop` returns true, asked between batches and twice a second, or nothing came for so long.

        What is under way is finished first, unless the database is away: then it is left to the next worker.
        """
        self._stop = stop
        idle_since = time.monotonic()
        pause = 0.1
        try:
            while not stop():
                try:
                    taken = self._next()
                    pause = 0.1
                except UnavailableError as error:
                    _log.warning("%s", error)
                    self._wait(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                    continue
                if taken:
                    self._store_all(taken)
                    idle_since = time.monotonic()
                elif idle_timeout_seconds is not None and time.monotonic() - idle_since >= idle_timeout_seconds:
                    break
        except _Stopped:
            pass
        finally:
            self._drop_writers()
        try:
            self._queue.leave(self.consumer)
        except UnavailableError as error:
            _log.info("%s", error)
        return self._stats

    def stats(self) -> WorkerStats:
        """Return what was done so far."""
        return self._stats

    def _next(self) -> list[QueuedBatch]:
        now = time.monotonic()
        if now >= self._claim_at:
            claimed = self._queue.claim(self.consumer, self._claim_idle_seconds)
            if claimed is not None:
                self._count(claimed=1)
                return [claimed]
            self._claim_at = now + min(self._claim_idle_seconds / 2, 5.0)
        return self._queue.take(self.consumer, self._batches, min(_BLOCK_SECONDS, self._claim_idle_seconds / 2))

    def _store_all(self, taken: Sequence[QueuedBatch]) -> None:
        good = []
        for batch in taken:
            if batch.deliveries > self._max_attempts:
                self._bury(batch, f"taken {batch.deliveries} times, and no worker came to an end with it")
            else:
                good.append(batch)
        if good:
            self._store(good)

    def _store(self, batches: Sequence[QueuedBatch]) -> None:
        """Store requests in one go, or where that fails for one of them, each alone."""
        failed, pause = 0, 0.1
        while True:
            try:
                stored = self._write(batches)
                break
            except WriteError as error:
                self._drop_writers()
                self._count(failures=1)
                if not _blames_a_request(error):
                    _log.warning("%s", error)
                    self._hold(batches, pause)
                    # A sign of life comes before others look for one.
                    pause = min(pause * 2, _LONGEST_PAUSE_SECONDS, self._claim_idle_seconds / 3)
                elif len(batches) > 1:
                    for batch in batches:
                        self._store([batch])
                    return
                else:
                    failed += 1
                    if failed >= self._max_attempts:
                        self._bury(batches[0], f"could not be stored in {failed} attempts: {_reason(error)}")
                        return
                    self._hold(batches, pause)
        if stored:
            self._patiently(lambda: self._queue.acknowledge(stored))
            self._count(batches=len(stored))

    def _write(self, batches: Sequence[QueuedBatch]) -> list[QueuedBatch]:
        """Write and commit; return the requests that were not buried."""
        stored = []
        for batch in batches:
            if batch.signal not in _SIGNALS:
                self._bury(batch, f"no known signal: {batch.signal!r}")
                continue
            try:
                decoded = decode(batch.payload, Signal(batch.signal), batch.content_type)
            except DecodeError as error:
                self._bury(batch, str(error))
                continue
            for rejected in decoded.rejected:
                self._reject(rejected)
            self._count(rows=self._give(decoded, batch.project))
            stored.append(batch)
        for writer in self._writers.values():
            writer.flush()
        return stored

    def _give(self, decoded: DecodedTraces | DecodedMetrics | DecodedLogs, project: str | None) -> int:
        rows: list[Any]
        if isinstance(decoded, DecodedTraces):
            rows = list(decoded.spans)
            give = self._writer("traces", TraceWriter).write_spans
        elif isinstance(decoded, DecodedMetrics):
            rows = list(decoded.data_points)
            give = self._writer("metrics", MetricWriter).write_data_points
        else:
            rows = list(decoded.logs)
            give = self._writer("logs", LogWriter).write_logs
        if project is not None:
            rows = [row if row.get("project") else {**row, "project": project} for row in rows]
        give(rows)
        return len(rows)

    def _writer(self, signal: str, kind: type[Any]) -> Any:
        if signal not in self._writers:
            self._writers[signal] = kind(self._pool, self._config, on_rejected=self._reject)
        return self._writers[signal]

    def _drop_writers(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        self._writers = {}

    def _reject(self, error: RejectedRowError) -> None:
        self._count(rejected=1)
        if self._on_rejected is not None:
            self._on_rejected(error)
        else:
            _log.warning("a row was rejected: %s", error.reason)

    def _bury(self, batch: QueuedBatch, reason: str) -> None:
        _log.warning("request %s goes to the dead letters: %s", batch.id, reason)
        self._patiently(lambda: self._queue.bury(batch, reason))
        self._count(buried=1)

    def _hold(self, batches: Sequence[QueuedBatch], pause: float) -> None:
        """Wait, and keep others from taking what is held."""
        self._wait(pause)
        try:
            self._queue.keep(self.consumer, batches)
        except UnavailableError as error:
            _log.info("%s", error)

    def _patiently(self, tell: Callable[[], object]) -> None:
        """Tell the queue, again until it is there."""
        pause = 0.1
        while True:
            try:
                tell()
                return
            except UnavailableError as error:
                _log.warning("%s", error)
                self._wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._stop():
                raise _Stopped
            time.sleep(min(0.1, seconds))

    def _count(self, **numbers: int) -> None:
        old = self._stats
        self._stats = replace(old, **{name: getattr(old, name) + number for name, number in numbers.items()})


def _blames_a_request(error: WriteError) -> bool:
    cause = error.__cause__
    if isinstance(cause, UnavailableError) or is_transient(error):
        return False
    state = error.sqlstate or (cause.sqlstate if isinstance(cause, StorageError) else None)
    return state is None or not state.startswith(_SERVER_CLASSES)


def _reason(error: WriteError) -> str:
    cause = error.__cause__
    return describe(cause) if isinstance(cause, StorageError) else repr(cause or error)
