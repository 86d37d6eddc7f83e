"""`ingest`: OTLP files into the database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.rejected import Limited, RejectedRows
from observatory_storage.cli.sources import STANDARD_INPUT, Source
from observatory_storage.cli.status import Status
from observatory_storage.cli.tally import Tally
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import RejectedRowError, SchemaVersionError, WriteError
from observatory_storage.migrations import schema_state
from observatory_storage.otlp import DecodedTraces
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

# Spans between two flushes that are waited for: what is held here for counting stays small.
_CHECKPOINT_SPANS: Final = 10_000


@dataclass(slots=True)
class Result:
    """What became of the files; spans and events count what is committed now, duplicates included."""

    traces: int = 0
    spans: int = 0
    events: int = 0
    rejected: int = 0
    seconds: float = 0.0
    duplicates: int = 0
    """How many of the spans were stored already."""
    errors: int = 0
    """How many files, or lines of files, could not be read or written."""

    @property
    def status(self) -> Status:
        """The exit status that says so."""
        if self.errors:
            return Status.FAILED
        return Status.REJECTED if self.rejected else Status.DONE

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        names = ("traces", "spans", "events", "rejected", "seconds", "duplicates")
        return {name: getattr(self, name) for name in names}


def ingest(
    context: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files to store; - is standard input.", show_default=False)
    ],
    method: Annotated[WriteMethod, typer.Option(help="How rows are sent; what is stored is the same.")] = (
        WriteMethod.AUTO
    ),
    project: Annotated[
        str | None,
        typer.Option(
            envvar="OBSERVATORY_PROJECT", help="The project of spans whose resource names none.", show_default=False
        ),
    ] = None,
    rejected: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep rejected rows here as JSON lines: file, line, reason, row."),
    ] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Store the traces in OTLP files.

    They may be protobuf, JSON, or the Collector's JSON lines, also gzipped. A file that cannot be read does
    not stop the others. What is stored already is stored once, so that the same files may be given again.
    """
    _refuse_confusion(files, rejected)
    settings = for_one_command(where(context, database_url, config).load())
    terminals = Terminals.standard()
    with RejectedRows(terminals.err, rejected) as rows, StoragePool(settings) as pool:
        require_schema(pool)
        ingestion = Ingestion(pool, WriterConfig(method=method, project=project), terminals.err, rows)
        try:
            ingestion.run([Source(path) for path in files])
        finally:
            rows.finish()
            result = ingestion.result
            if as_json:
                terminals.out.print_json(result.as_json())
            else:
                print_result(terminals.out, result)
    if result.status is not Status.DONE:
        raise typer.Exit(result.status)


def require_schema(pool: StoragePool) -> None:
    """Raise SchemaVersionError where the database was never migrated."""
    with pool.raw_connection() as connection:
        if schema_state(connection).current is None:
            raise SchemaVersionError(
                "the database has no tables of this package yet; make them with: observatory-storage migrate"
            )


def print_result(out: Terminal, result: Result) -> None:
    """Print the figures as a sentence."""
    there = f", {result.duplicates:,} of the spans were there already" if result.duplicates else ""
    out.print(
        f"stored {formats.counted(result.traces, 'trace')}, {formats.counted(result.spans, 'span')} and "
        f"{formats.counted(result.events, 'event')} in {result.seconds:.2f} s{there}; {result.rejected:,} rejected"
    )


class Ingestion:
    """Feeds a writer from files and counts; what goes wrong is said on `err` at once, and counted too."""

    def __init__(self, pool: StoragePool, config: WriterConfig, err: Terminal, rejected: RejectedRows) -> None:
        self._err = err
        self._rejected = rejected
        self._errors = 0
        self._tally = Tally()
        self._writer = TraceWriter(pool, config, on_rejected=self._reject)
        self.result = Result()

    def run(self, sources: Sequence[Source]) -> None:
        """Store all files; `result` holds what was stored also where this is interrupted."""
        started = time.perf_counter()
        try:
            with _progress(self._err, sources) as progress:
                for source in sources:
                    self._store(source, progress)
        except WriteError:
            # The writer holds what it could not write: closing it tries again, and says what is wrong.
            pass
        finally:
            self._close()
            stats, tally = self._writer.write_stats(), self._tally
            self.result = Result(
                traces=tally.traces,
                spans=tally.spans,
                events=tally.events,
                rejected=self._rejected.total,
                seconds=round(time.perf_counter() - started, 3),
                duplicates=max(tally.spans - stats.spans_written, 0),
                errors=self._errors,
            )

    def _store(self, source: Source, progress: _Bar) -> None:
        self._rejected.source = source.name
        progress.begin(source)
        empty = True
        wrong = Limited(self._err, "red")
        for part in source.parts():
            empty = False
            if part.decoded is None:
                where = source.name if part.line is None else f"{source.name} line {part.line}"
                wrong.add(f"{where}: {part.reason}")
                self._errors += 1
            else:
                self._write(part.decoded, part.line)
            progress.show(self._tally.given)
        wrong.finish(f"lines of {source.name} that cannot be read")
        if empty:
            self._err.print((f"{self._err.text(source.name)}: empty, nothing to store", "dim"))
        self._checkpoint()

    def _write(self, decoded: DecodedTraces, line: int | None) -> None:
        for error in decoded.rejected:
            self._rejected.add(error, line)
        self._tally.give(decoded.spans)
        self._writer.write_spans(decoded.spans)
        if self._tally.pending >= _CHECKPOINT_SPANS:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Wait for the COMMIT, so that the counts are true, and a rejected row is one of the present file."""
        if self._tally.pending:
            self._writer.flush()
            self._tally.commit_all()

    def _close(self) -> None:
        try:
            self._writer.close()
        except WriteError as error:
            self._errors += 1
            left = formats.counted(error.unwritten, "row")
            self._err.print((self._err.text(f"{left} could not be stored: {error.__cause__ or error}"), "red"))
            # Nobody is left who could mend it before the interpreter's end, where the writer would try again.
            self._writer.abandon()
        self._tally.commit_written(self._writer.write_stats())

    def _reject(self, error: RejectedRowError) -> None:
        self._tally.reject(error)
        self._rejected.add(error)


class _Bar:
    """A progress bar over the bytes of all files, which shows only on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def begin(self, source: Source) -> None:
        """Name the file, and move with the bytes that are read of it."""
        source.advance = self._advance
        self._progress.update(self._task, description=Path(source.name).name[-24:], refresh=True)

    def show(self, spans: int) -> None:
        """Say how many spans were found."""
        self._progress.update(self._task, spans=f"{spans:,} spans")

    def _advance(self, size: int) -> None:
        self._progress.advance(self._task, size)


@contextmanager
def _progress(err: Terminal, sources: Sequence[Source]) -> Iterator[_Bar]:
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[spans]}"))
    with Progress(*columns, console=err.console, transient=True, disable=not err.is_interactive) as progress:
        yield _Bar(progress, progress.add_task("", total=total, spans="0 spans"))


def _refuse_confusion(files: Sequence[str], rejected: Path | None) -> None:
    if files.count(STANDARD_INPUT) > 1:
        raise typer.BadParameter("standard input (-) can be given once")
    for file in files:
        if rejected is not None and rejected.exists() and Path(file).exists() and rejected.samefile(file):
            raise typer.BadParameter(f"{file} would be overwritten: it is a file to read", param_hint="--rejected")
