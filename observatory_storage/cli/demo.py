"""`demo`: all of it at once, with real captures, on a server of its own where none is named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from observatory_storage.cli.ingest import Ingestion, print_result
from observatory_storage.cli.measure import ROWS, RUNS, SPANS_PER_TRACE, Rate, measure
from observatory_storage.cli.options import (
    AsJson,
    ConfigFile,
    DatabaseUrl,
    Where,
    for_one_command,
    nothing_is_configured,
    where,
)
from observatory_storage.cli.rejected import RejectedRows
from observatory_storage.cli.sources import Source
from observatory_storage.cli.tables import Column, print_table
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.cli.traces import print_traces
from observatory_storage.cli.waterfall import print_waterfall
from observatory_storage.config import StorageConfig
from observatory_storage.errors import ConfigurationError, StorageError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository
from observatory_storage.writers import WriterConfig

PROJECT: Final = "demo"
_MOST_TRACES: Final = 25


def demo(
    context: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run the embedded PostgreSQL here and keep the data.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Store real captures, show and measure.

    Shows them as a table and one of them as a waterfall, and measures INSERT against COPY on the spot. Uses
    the database that is named or configured; without one, an embedded PostgreSQL that is thrown away
    afterwards. What is stored is in the project "demo"; what is measured with is deleted again.
    """
    place = where(context, database_url, config)
    if data_dir is not None and place.is_given:
        raise typer.BadParameter("--data-dir excludes --database-url and --config")
    terminals = Terminals.standard()
    # With --json the tables are left out, and what is being done is said beside the one object.
    said = terminals.err if as_json else terminals.out
    with ExitStack() as stack:
        pool = stack.enter_context(_pool(place, data_dir, said))
        said.print((f"{said.glyphs.tick} ", "green"), f"schema at revision {pool.run_migrations().current}")
        ingestion = _ingest_captures(pool, terminals.err)
        repository = TraceRepository(pool)
        # Where another project has the captures already, they are shown as they are there.
        project = None if ingestion.result.rejected else PROJECT
        traces = repository.list(TraceFilters(project=project, limit=_MOST_TRACES))
        if not as_json:
            print_result(said, ingestion.result)
            said.console.print()
            print_traces(said, traces)
            said.console.print()
            interesting = _most_interesting(traces.items)
            print_waterfall(said, interesting, repository.get_spans(interesting.id, include_content=False))
            said.console.print()
        said.print(f"measuring INSERT against COPY, {RUNS} runs of {ROWS:,} spans each way {said.glyphs.ellipsis}")
        rates = measure(pool)
    if as_json:
        figures = {"ingest": ingestion.result.as_json(), "rates": [asdict(rate) for rate in rates]}
        terminals.out.print_json(figures)
    else:
        print_rates(said, rates)


def print_rates(out: Terminal, rates: Sequence[Rate]) -> None:
    """Print the measured rates, and what they mean."""
    print_table(
        out,
        [
            Column("WAY", [rate.method for rate in rates]),
            Column("ROWS/S", [f"{rate.rows_per_second:,}" for rate in rates], right=True),
            Column("RATIO", [f"{rate.ratio:.1f}" for rate in rates], right=True),
            Column("KEEPS", [rate.keeps for rate in rates], keep=1, flexible=True),
        ],
    )
    out.print(
        (
            f"medians of {rates[0].runs} interleaved runs; rows of about 1.5 kB, {SPANS_PER_TRACE} spans a trace, one "
            f"transaction of {rates[0].rows:,} rows with its COMMIT",
            "dim",
        )
    )


@contextmanager
def _pool(place: Where, data_dir: Path | None, said: Terminal) -> Iterator[StoragePool]:
    settings = None if data_dir is not None else _configured(place)
    if settings is not None:
        with StoragePool(for_one_command(settings)) as pool:
            pool.open()
            said.print((f"{said.glyphs.tick} ", "green"), f"PostgreSQL at {said.text(settings.postgres)}")
            yield pool
        return
    with ExitStack() as stack:
        # A socket's path may have about 100 characters: the name is kept short.
        directory = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="obs-")))
        pool = stack.enter_context(StoragePool.embedded(directory))
        kept = f"in {directory}, which keeps the data" if data_dir is not None else "in a temporary directory"
        said.print((f"{said.glyphs.tick} ", "green"), f"embedded PostgreSQL {said.text(kept)}")
        yield pool


def _configured(place: Where) -> StorageConfig | None:
    try:
        return place.load()
    except ConfigurationError as error:
        if place.is_given or not nothing_is_configured(error):
            raise
    return None


def _ingest_captures(pool: StoragePool, err: Terminal) -> Ingestion:
    captures = resources.files("observatory_storage") / "captures"
    with RejectedRows(err, None) as rejected, resources.as_file(captures) as directory:
        ingestion = Ingestion(pool, WriterConfig(project=PROJECT), err, rejected)
        ingestion.run([Source(str(path)) for path in sorted(directory.glob("*.pb"))])
    if ingestion.result.errors:
        raise StorageError("the captures of this package could not all be stored")
    return ingestion


def _most_interesting(traces: Sequence[Trace]) -> Trace:
    """Return the trace with the most spans; among those the one with the most tokens."""
    return max(traces, key=lambda trace: (trace.span_count, trace.total_tokens, trace.id))
