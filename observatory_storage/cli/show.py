"""`show`: one trace as a waterfall."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.terminal import Terminals
from observatory_storage.cli.waterfall import print_waterfall
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceDetail, TraceRepository


def show(
    context: typer.Context,
    trace_id: Annotated[str, typer.Argument(help="The trace's id: hex digits, or the text it was written with.")],
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Print one trace as a waterfall.

    Each span has its model, tokens, cost and duration. One whose parent is not stored stands at the top.
    With --json everything that is stored is printed, prompts and answers included.
    """
    settings = for_one_command(where(context, database_url, config).load())
    out = Terminals.standard().out
    with StoragePool(settings) as pool:
        repository = TraceRepository(pool)
        if as_json:
            out.print_json(_as_json(repository.get_trace_by_id(trace_id)))
            return
        trace = repository.get_by_id(trace_id)
        spans = repository.get_spans(trace_id, include_content=False)
    print_waterfall(out, trace, spans)


def _as_json(detail: TraceDetail) -> dict[str, Any]:
    return {
        "trace": formats.row(detail.trace),
        "spans": [
            {**formats.row(span), "events": [formats.row(event) for event in detail.events_of(span)]}
            for span in detail.spans
        ],
        "resources": [formats.row(resource) for resource in detail.resources.values()],
    }
