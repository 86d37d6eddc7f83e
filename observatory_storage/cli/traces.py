"""`traces`: the newest traces as a table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.paging import read_pages
from observatory_storage.cli.tables import Column, print_table
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository

# Below this width the seconds and the year leave the start, so that the name keeps some room.
_NARROW: Final = 100


def traces(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    status: Annotated[
        Literal["unset", "ok", "error"] | None,
        typer.Option(help="With this status; error: the trace or any of its spans failed."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With a call of this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="With a call to this provider.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user.")] = None,
    session: Annotated[str | None, typer.Option(help="Of this session.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE|TIME", help="Started since: 30m, 1h, 2d, or an ISO time (UTC).")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Of this project. Default: of all.")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Whose root span's name contains this.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on after the page that printed this cursor.")] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Print the newest traces."""
    try:
        filters = TraceFilters(
            project=project,
            service_name=service,
            status=None if status == "error" else status,
            has_error=True if status == "error" else None,
            model=model,
            provider=provider,
            user_id=user,
            session_id=session,
            start_time_from=_since(since),
            name=search,
            cursor=cursor,
        )
    except InvalidFilterError as error:
        raise typer.BadParameter("; ".join(error.problems)) from error
    settings = for_one_command(where(context, database_url, config).load())
    with StoragePool(settings) as pool:
        repository = TraceRepository(pool)
        found, next_cursor = read_pages(
            lambda page: repository.list(filters.model_copy(update=page)), filters.cursor, limit
        )
    out = Terminals.standard().out
    if as_json:
        out.print_json({"traces": [formats.row(trace) for trace in found], "next_cursor": next_cursor})
    elif not found:
        out.print("no trace matches" if filters != TraceFilters() else "no trace is stored yet")
    else:
        print_traces(out, found)
        if next_cursor is not None:
            out.print((f"more: --cursor {next_cursor}", "dim"))


def print_traces(out: Terminal, found: Sequence[Trace]) -> None:
    """Print traces as a table; a failed one is marked."""
    short = out.width < _NARROW
    mark = out.glyphs.cross
    failed = [trace.status == "error" or trace.error_count > 0 for trace in found]
    names = [
        (f"{mark} " if bad else "") + out.text(trace.name or "(no name)")
        for trace, bad in zip(found, failed, strict=True)
    ]
    projects = [out.text(trace.project) for trace in found]
    columns = [
        Column("TRACE ID", [trace.id.hex for trace in found], styles=["dim"] * len(found)),
        Column("STARTED (UTC)", [formats.moment(trace.start_time, short=short) for trace in found], keep=9),
        Column("TOOK", [formats.duration(t.duration_us, micro=out.glyphs.micro) for t in found], keep=8, right=True),
        Column("SPANS", [formats.count(trace.span_count) for trace in found], keep=6, right=True),
        Column("TOKENS", [formats.count(trace.total_tokens or None) for trace in found], keep=7, right=True),
        Column("COST", [formats.dollars(trace.cost_usd) for trace in found], keep=5, right=True),
        Column("SERVICE", [out.text(t.service_name or "") for t in found], keep=4, flexible=True),
        Column("USER", [out.text(trace.user_id or "", 24) for trace in found], keep=2, flexible=True),
        Column("SESSION", [out.text(trace.session_id or "", 36) for trace in found], keep=1, flexible=True),
        Column("PROJECT", projects if len(set(projects)) > 1 else [""] * len(found), keep=3, flexible=True),
        Column("NAME", names, flexible=True, minimum=14, styles=["bold red" if bad else "" for bad in failed]),
    ]
    print_table(out, columns)


def _since(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return formats.parse_since(text, now=dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
