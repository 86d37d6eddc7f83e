"""LogWriter: log records from application code to committed rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from observatory_storage.errors import StorageError, describe
from observatory_storage.models import LogRecord, LogRow
from observatory_storage.writers.buffered import BufferedWriter, CommitStats
from observatory_storage.writers.convert import GivenRow, Rejections
from observatory_storage.writers.log_batch import LogBatch, in_order
from observatory_storage.writers.log_ordinals import differ, number_equal
from observatory_storage.writers.log_transaction import LogTransaction
from observatory_storage.writers.rows import Connection
from observatory_storage.writers.store import BatchStore, Outcome, Prepared, Terms, by_project


@dataclass(frozen=True, slots=True)
class LogWriteStats(CommitStats):
    """What a `LogWriter` has committed since it was made.

    Each record given is counted once: as written (new), as duplicate (stored already, or twice in a batch) or as
    rejected. `spans_filled` are spans that got their input or output from records.
    """

    logs_written: int = 0
    logs_duplicate: int = 0
    spans_filled: int = 0


class LogWriter(BufferedWriter[LogWriteStats]):
    """Writes log records, from application code to committed rows; exact under replay.

    A record's id is made from its content, time included, so that one that is delivered again is stored once.
    Equal records of one call are told apart by counting them: a call of `write_logs` is a request, to be
    repeated as it was. How it buffers, what it promises and when: `BufferedWriter`.
    """

    _kinds = ("log",)

    def _make_store(self) -> LogStore:
        return LogStore(self._pool, self._config, self._project, self._pool.config.retry)

    def _no_stats(self) -> LogWriteStats:
        return LogWriteStats()

    def write_log(self, log: LogRow | Mapping[str, object] | LogRecord) -> None:
        """Write a log record; an equal one that was written before is the same record. `write_logs` costs less."""
        self._put("log", [log], copy=True)

    def write_logs(self, logs: Iterable[LogRow | Mapping[str, object] | LogRecord]) -> None:
        """Write the log records of one request; their mappings are not to be changed afterwards.

        Of equal records all are stored, if they come in one call: equal is what would be stored alike, however it
        is spelled. The call's records stay in memory until it
        returns; where they come from an endless source give them in pieces.
        """
        rows = in_order(logs if isinstance(logs, list) else list(logs))
        self._put("log", rows if differ(rows) else number_equal(rows, self._project))


class LogStore(BatchStore[LogBatch]):
    """Stores rows of the kind `log`."""

    signal = "logs"
    landed_count = "logs_written"

    def prepare(self, rows: Mapping[str, Sequence[GivenRow]]) -> Prepared[LogBatch]:
        """Check and order rows, so that no transaction says two projects of one trace."""
        batches = [
            LogBatch.from_rows(part["log"], self._project, Rejections()) for part in by_project(rows, self._project)
        ]
        return Prepared(len(rows["log"]), batches)

    def transact(self, connection: Connection, batch: LogBatch, terms: Terms) -> Outcome:
        """Run the protocol of `log_transaction`."""
        return LogTransaction(connection, terms).write(batch)

    def parts(self, batch: LogBatch, error: StorageError) -> Iterator[LogBatch]:
        """Tell half from half, then a record from its resource."""
        if len(batch) > 1:
            yield from batch.halves()
        elif batch.resources:
            resources, rejected = batch.given_resources(), len(batch.rejections.errors)
            yield batch.without_resources()
            if len(batch.rejections.errors) == rejected:
                for resource in resources:
                    batch.rejections.add_once(resource, describe(error))
        else:
            batch.reject_all(describe(error), error.sqlstate)
