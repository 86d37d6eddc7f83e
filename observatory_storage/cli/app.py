"""The commands and their options."""

from __future__ import annotations

from typing import Annotated

import typer

import observatory_storage
from observatory_storage.cli.check import check
from observatory_storage.cli.demo import demo
from observatory_storage.cli.ingest import ingest
from observatory_storage.cli.logs import logs
from observatory_storage.cli.maintain import maintain
from observatory_storage.cli.metrics import metrics
from observatory_storage.cli.migrate import migrate
from observatory_storage.cli.options import ConfigFile, DatabaseUrl, where
from observatory_storage.cli.show import show
from observatory_storage.cli.status import (
    EXIT_STATUSES,
    PROGRAM,
    end_on_signals,
    log_to_terminal,
    replace_closed_streams,
    reported_errors,
)
from observatory_storage.cli.tail import tail
from observatory_storage.cli.traces import traces
from observatory_storage.cli.usage import usage
from observatory_storage.cli.worker import queue, worker

app = typer.Typer(
    name=PROGRAM,
    help="The PostgreSQL store for LLM telemetry.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show local variables, and with them secrets and prompts.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {observatory_storage.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = where(context, database_url, config)


for command in (check, migrate, ingest, traces, show, logs, metrics, usage, tail, maintain, worker, queue, demo):
    app.command(epilog=EXIT_STATUSES)(reported_errors()(command))


def run() -> None:
    """Run the command line and exit with its status."""
    replace_closed_streams()
    end_on_signals()
    log_to_terminal()
    app(prog_name=PROGRAM)
