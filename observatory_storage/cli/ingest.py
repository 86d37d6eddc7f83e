"""`ingest`: OTLP files into the database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from observatory_storage.cli import formats
from observatory_storage.cli.counts import NOUNS, AnyDecoded, Counts, Held, rows_in
from observatory_storage.cli.feeds import FEEDS, Feed
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.rejected import Limited, RejectedRows
from observatory_storage.cli.sources import STANDARD_INPUT, Source
from observatory_storage.cli.status import Status
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import SchemaVersionError, WriteError
from observatory_storage.migrations import schema_state
from observatory_storage.otlp import Signal
from observatory_storage.pool import StoragePool
from observatory_storage.writers import WriteMethod, WriterConfig


@dataclass(slots=True)
class Result:
    """What became of the files: what is committed now by kind, duplicates included, and what is not."""

    counts: Counts = field(default_factory=Counts)
    rejected: int = 0
    seconds: float = 0.0
    duplicates: dict[Signal, int] = field(default_factory=dict)
    """How many spans, data points and log records were stored already, for each signal that was met."""
    conflicting: int = 0
    """How many of the rejected are data points that differ from the one stored for their series and time."""
    spans_filled: int = 0
    """How many spans got their input or output from log records."""
    passed_over: int = 0
    """How many rows stood beside those of the signal that was asked for, and were not wanted."""
    errors: int = 0
    """How many files, or lines of files, could not be read or written."""
    files: list[Held] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The exit status that says so."""
        if self.errors:
            return Status.FAILED
        return Status.REJECTED if self.rejected else Status.DONE

    @property
    def failed_altogether(self) -> bool:
        """Whether nothing was stored nor rejected because of errors, which have been said."""
        return bool(self.errors) and not self.rejected and not any(asdict(self.counts).values())

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            **asdict(self.counts),
            "rejected": self.rejected,
            "duplicates": sum(self.duplicates.values()),
            "conflicting": self.conflicting,
            "spans_filled": self.spans_filled,
            "passed_over": self.passed_over,
            "seconds": self.seconds,
            "files": [held.as_json() for held in self.files],
        }


def ingest(
    context: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files to store; - is standard input.", show_default=False)
    ],
    signal: Annotated[
        Signal | None,
        typer.Option(
            help="What the files hold; of JSON objects with several signals take this one alone. Default: all that "
            "a file's JSON objects hold by their keys, each line for itself; of protobuf what the file's name says "
            "(app.logs.pb), else traces; standard input holds traces.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[WriteMethod, typer.Option(help="How rows are sent; what is stored is the same.")] = (
        WriteMethod.AUTO
    ),
    project: Annotated[
        str | None,
        typer.Option(
            envvar="OBSERVATORY_PROJECT", help="The project of rows whose resource names none.", show_default=False
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
    """Store the traces, metrics and logs in OTLP files.

    They may be protobuf, JSON, or the Collector's JSON lines, also gzipped. A file that cannot be read does
    not stop the others. What is stored already is stored once, so that the same files may be given again.

    With --json, traces, spans, events, metrics, data_points and logs count what is stored now, duplicates
    included. duplicates: rows that were there already. spans_filled: spans that got their input or output from
    log records. rejected: rows that cannot be stored. conflicting: those of them that are data points and differ
    from the one that is stored for their series and time. passed_over: rows of other signals than --signal in the
    same JSON objects. seconds: how long it took. files: for each file its name, its signals, and what it held.
    """
    _refuse_confusion(files, rejected)
    settings = for_one_command(where(context, database_url, config).load())
    terminals = Terminals.standard()
    with RejectedRows(terminals.err, rejected) as rows, StoragePool(settings) as pool:
        require_schema(pool)
        ingestion = Ingestion(pool, WriterConfig(method=method, project=project), terminals.err, rows)
        try:
            ingestion.run([Source(path, signal) for path in files])
        finally:
            rows.finish()
            result = ingestion.result
            if as_json:
                terminals.out.print_json(result.as_json())
            elif not result.failed_altogether:
                print_files(terminals.out, result)
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


def print_files(out: Terminal, result: Result) -> None:
    """Print what each of several files held; of one the result says it."""
    if len(result.files) > 1:
        for held in result.files:
            said = held.counts.sentence(held.signals) if held.signals else "nothing"
            out.print(f"{out.text(held.file)}: {said}")


def print_result(out: Terminal, result: Result) -> None:
    """Print the figures of all files as a sentence."""
    signals = set(result.duplicates) or {Signal.TRACES}
    there = [f"{number:,} of the {NOUNS[signal]}s" for signal, number in result.duplicates.items() if number]
    notes = [f"{formats.joined(there)} were there already"] if there else []
    if result.spans_filled:
        notes.append(f"{formats.counted(result.spans_filled, 'span')} filled from logs")
    stored = f"stored {result.counts.sentence(signals)} in {result.seconds:.2f} s"
    out.print(f"{', '.join([stored, *notes])}; {result.rejected:,} rejected")


class Ingestion:
    """Feeds the writers from files and counts; what goes wrong is said on `err` at once, and counted too."""

    def __init__(self, pool: StoragePool, config: WriterConfig, err: Terminal, rejected: RejectedRows) -> None:
        self._pool = pool
        self._config = config
        self._err = err
        self._rejected = rejected
        self._errors = 0
        self._passed_over = 0
        self._feeds: dict[Signal, Feed] = {}
        self._files: list[Held] = []
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
            feeds = [self._feeds[signal] for signal in Signal if signal in self._feeds]
            for feed in feeds:
                self._close(feed)
            self.result = Result(
                counts=sum((feed.counts for feed in feeds), Counts()),
                rejected=self._rejected.total,
                seconds=round(time.perf_counter() - started, 3),
                duplicates={feed.signal: feed.duplicates for feed in feeds},
                conflicting=sum(feed.conflicting for feed in feeds),
                spans_filled=sum(feed.spans_filled for feed in feeds),
                passed_over=self._passed_over,
                errors=self._errors,
                files=self._files,
            )

    def _store(self, source: Source, progress: _Bar) -> None:
        self._rejected.source = source.name
        progress.begin(source)
        held = Held(source.name)
        self._files.append(held)
        empty = True
        wrong = Limited(self._err, "red")
        odd = Limited(self._err, "yellow")
        passed_over: dict[Signal, int] = {}
        for part in source.parts():
            empty = False
            where = source.name if part.line is None else f"{source.name} line {part.line}"
            if not part.is_wanted:
                if part.decoded is None:
                    odd.add(f"{where}: passed over: {part.reason}")
                else:
                    passed_over[part.signal] = passed_over.get(part.signal, 0) + rows_in(part.decoded)
            elif part.decoded is None:
                wrong.add(f"{where}: {part.reason}")
                self._errors += 1
            else:
                held.add(part.decoded)
                self._write(part.signal, part.decoded, part.line)
            progress.show(sum(feed.given for feed in self._feeds.values()))
        wrong.finish(f"lines of {source.name} that cannot be read")
        odd.finish(f"lines of {source.name} with what is passed over and cannot be read")
        self._pass_over(source, passed_over)
        held.forget_names()
        if empty:
            self._err.print((f"{self._err.text(source.name)}: empty, nothing to store", "dim"))
        for feed in self._feeds.values():
            feed.checkpoint()

    def _pass_over(self, source: Source, rows: dict[Signal, int]) -> None:
        """Say what stood beside the signal that was asked for."""
        found = [formats.counted(rows[signal], NOUNS[signal]) for signal in Signal if rows.get(signal)]
        if found:
            self._passed_over += sum(rows.values())
            said = f"{source.name}: passed over {formats.joined(found)}, which --signal does not ask for"
            self._err.print((self._err.text(said), "yellow"))

    def _write(self, signal: Signal, decoded: AnyDecoded, line: int | None) -> None:
        for error in decoded.rejected:
            self._rejected.add(error, line, signal=signal)
        if signal not in self._feeds:
            reject = partial(self._rejected.add, signal=signal)
            self._feeds[signal] = FEEDS[signal](self._pool, self._config, reject)
        self._feeds[signal].write(decoded)

    def _close(self, feed: Feed) -> None:
        try:
            feed.close()
        except WriteError as error:
            self._errors += 1
            left = formats.counted(error.unwritten, "row")
            self._err.print((self._err.text(f"{left} could not be stored: {error.__cause__ or error}"), "red"))
            # Nobody is left who could mend it before the interpreter's end, where the writer would try again.
            feed.abandon()


class _Bar:
    """A progress bar over the bytes of all files, which shows only on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def begin(self, source: Source) -> None:
        """Name the file, and move with the bytes that are read of it."""
        source.advance = self._advance
        self._progress.update(self._task, description=Path(source.name).name[-24:], refresh=True)

    def show(self, rows: int) -> None:
        """Say how many rows were found."""
        self._progress.update(self._task, rows=f"{rows:,} rows")

    def _advance(self, size: int) -> None:
        self._progress.advance(self._task, size)


@contextmanager
def _progress(err: Terminal, sources: Sequence[Source]) -> Iterator[_Bar]:
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rows]}"))
    with Progress(*columns, console=err.console, transient=True, disable=not err.is_interactive) as progress:
        yield _Bar(progress, progress.add_task("", total=total, rows="0 rows"))


def _refuse_confusion(files: Sequence[str], rejected: Path | None) -> None:
    if files.count(STANDARD_INPUT) > 1:
        raise typer.BadParameter("standard input (-) can be given once")
    for file in files:
        if rejected is not None and rejected.exists() and Path(file).exists() and rejected.samefile(file):
            raise typer.BadParameter(f"{file} would be overwritten: it is a file to read", param_hint="--rejected")
