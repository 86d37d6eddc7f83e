"""`maintain`: what a store needs done every few minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from observatory_storage.cli import formats
from observatory_storage.cli.ingest import require_schema
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.status import Status
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.lifecycle import MaintenanceReport
from observatory_storage.pool import StoragePool


def maintain(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due and change nothing.")] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for another maintainer.")
    ] = 0.0,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Make partitions ahead, fold usage, remove what is older than its policy, and index the text of closed partitions.

    To be called every few minutes, from as many hosts as you like: while one works, the others leave it to that
    one, which is no error. Prints nothing into a pipe where nothing was due.
    """
    settings = for_one_command(where(context, database_url, config).load())
    terminals = Terminals.standard()
    with StoragePool(settings) as pool:
        require_schema(pool)
        with _progress(terminals.err) as on_progress:
            report = pool.maintain(dry_run=dry_run, wait_seconds=wait_seconds, on_progress=on_progress)
    if as_json:
        terminals.out.print_json(as_json_object(report))
    else:
        print_report(terminals, report)
    if report.problems:
        raise typer.Exit(Status.FAILED)


def as_json_object(report: MaintenanceReport) -> dict[str, Any]:
    """Return the report's fields, and whether all that was due has been done."""
    return {**asdict(report), "is_complete": report.is_complete}


def print_report(terminals: Terminals, report: MaintenanceReport) -> None:
    """Print what was done on standard output and what was not on standard error."""
    out = terminals.out
    if report.is_busy:
        if terminals.err.is_interactive:
            terminals.err.print("another maintainer is at work; nothing was done here")
        return
    if report.is_dry_run:
        _print_names(out, "to make", report.partitions_left)
        _print_retention(
            out, "to go", report.retention.partitions_left, report.retention.rows_left, report.retention.bytes_left
        )
        _print_usage(out, "to fold", report.usage.parts_left, "to add to usage", report.usage.spans_left)
        _print_indexes(out, "to build", report.text_indexes_left)
    else:
        _print_names(out, "made", report.partitions_made)
        retention = report.retention
        _print_retention(out, "gone", retention.partitions_dropped, retention.rows_deleted, retention.bytes_freed)
        _print_usage(out, "folded", report.usage.parts_folded, "added to usage", report.usage.spans_added)
        if report.usage.spans_left:
            out.print(f"{formats.counted(report.usage.spans_left, 'span')} left for the next run to add to usage")
        _print_indexes(out, "built", report.text_indexes_built)
    for problem in report.problems:
        terminals.err.print((terminals.err.text(problem), "red"))
    is_idle = not (
        report.partitions_made
        or report.text_indexes_built
        or report.usage.parts_folded
        or report.usage.spans_added
        or report.retention.partitions_dropped
        or report.retention.rows_deleted
    )
    if report.is_complete and is_idle and out.is_interactive:
        out.print((f"{out.glyphs.tick} ", "green"), "nothing is due")


def _print_names(out: Terminal, what: str, names: tuple[str, ...]) -> None:
    for table, group in groupby(names, lambda name: name.rpartition("_p")[0]):
        of_table = list(group)
        partitions = formats.counted(len(of_table), "partition")
        out.print(f"{partitions} of {out.text(table)} {what}: {_span(out, of_table)}")


def _print_retention(out: Terminal, what: str, partitions: tuple[str, ...], rows: Mapping[str, int], size: int) -> None:
    _print_names(out, f"{what}, expired", partitions)
    if partitions:
        out.print(f"{size:,} bytes of expired partitions {'to free' if what == 'to go' else 'freed'}")
    for table, number in rows.items():
        out.print(f"{formats.counted(number, 'row')} of {out.text(table)} {what}, expired")


def _print_usage(out: Terminal, folded: str, parts: int, added: str, spans: int) -> None:
    if parts:
        out.print(f"{formats.counted(parts, 'part')} of usage {folded}")
    if spans:
        out.print(f"{formats.counted(spans, 'span')} {added}")


def _print_indexes(out: Terminal, what: str, names: tuple[str, ...]) -> None:
    if names:
        out.print(f"text index {what} on {formats.counted(len(names), 'partition')}: {_span(out, names)}")


def _span(out: Terminal, names: Sequence[str]) -> str:
    first, last = out.text(names[0]), out.text(names[-1])
    return first if len(names) == 1 else f"{first} {out.glyphs.ellipsis} {last}"


@contextmanager
def _progress(err: Terminal) -> Iterator[_Show]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err.console, transient=True, disable=not err.is_interactive) as progress:
        yield _Show(progress)


class _Show:
    """A progress bar for each kind of work, which shows only on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total, refresh=True)
