"""`logs`: the newest log records, one a line, and those that follow."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import LogRecord
from observatory_storage.models.severity import level_of
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import Level, LogFilters
from observatory_storage.repositories.log_results import LogMatch

_PAGE: Final = 1000
# A body is one line, and never a whole document.
_LONGEST_LINE: Final = 2000
_STYLES: Final[Mapping[str | None, str]] = {
    "TRACE": "dim",
    "DEBUG": "dim",
    "WARN": "yellow",
    "ERROR": "red",
    "FATAL": "bold red",
}


def logs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each record that is stored.")] = False,
    search: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='With these words in the body: word "a phrase" one OR other -excluded.'),
    ] = None,
    ranked: Annotated[bool, typer.Option("--ranked", help="The best matches of the search first.")] = False,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="Of this severity: a name (warn, error2), 1 to 24, or a range (info..warn)."
        ),
    ] = None,
    min_level: Annotated[
        str | None, typer.Option("--min-level", metavar="LEVEL", help="Of this severity or a worse one.")
    ] = None,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    trace: Annotated[str | None, typer.Option(metavar="ID", help="Of this trace.")] = None,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="With this event name.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE|TIME", help="Since: 30m, 1h, 2d, or an ISO time (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="AGE|TIME", help="Before this time.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project. Default: of all.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on after the page that printed this cursor.")] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Print the newest log records, the newest last.

    With --follow each record comes once, when it is stored, however old its time is; with --json one object a line.
    """
    if follow and (ranked or cursor is not None):
        raise typer.BadParameter("--follow goes with neither --ranked nor --cursor")
    if ranked and search is None:
        raise typer.BadParameter("--ranked needs --search")
    try:
        filters = LogFilters(
            project=project,
            service_name=service,
            severity=None if level is None else _level(level),
            min_severity=min_level,
            trace_id=trace,
            event_name=event,
            timestamp_from=_time(since, "--since"),
            timestamp_before=_time(until, "--until"),
            search=search,
            cursor=cursor,
        )
    except InvalidFilterError as error:
        raise typer.BadParameter("; ".join(error.problems)) from error
    settings = for_one_command(where(context, database_url, config).load())
    out = Terminals.standard().out
    with StoragePool(settings) as pool:
        repository = LogRepository(pool)
        if follow:
            _follow(out, repository, filters, limit, as_json=as_json)
            return
        found, next_cursor = _read(repository, filters, limit, ranked=ranked)
    if as_json:
        out.print_json({"logs": [_as_json(match) for match in found], "next_cursor": next_cursor})
    elif not found:
        out.print("no log record matches" if filters != LogFilters() else "no log record is stored yet")
    else:
        _print_all(out, found, ranked=ranked)
        if next_cursor is not None:
            out.print((f"more: --cursor {next_cursor}", "dim"))


def _print_all(out: Terminal, found: Sequence[LogMatch], *, ranked: bool) -> None:
    for match in found if ranked else reversed(found):
        _print(out, match.log)


def _follow(out: Terminal, repository: LogRepository, filters: LogFilters, recent: int, *, as_json: bool) -> None:
    for record in repository.stream_logs(filters, recent=recent, include_content=True):
        if as_json:
            out.print_json(formats.row(record))
        else:
            _print(out, record)
        out.stream.flush()


def _print(out: Terminal, record: LogRecord) -> None:
    level = level_of(record.severity_number)
    utc = record.timestamp.astimezone(dt.UTC).replace(tzinfo=None)
    out.print(
        (f"{utc.isoformat(' ', 'milliseconds')}  ", "dim"),
        (f"{out.text(record.severity_text or level or '-', 8):<8}  ", _STYLES.get(level, "")),
        f"{out.text(record.service_name or '-')}  ",
        out.text(_message(record), _LONGEST_LINE),
    )


def _message(record: LogRecord) -> str:
    shown = record.body or ""
    if record.body_json is not None:
        shown = json.dumps(record.body_json, ensure_ascii=False)
    name = record.event_name
    # Cut before each sign is looked at: it can be megabytes long.
    return (f"{name}: {shown}" if name and shown else name or shown)[: _LONGEST_LINE + 1]


def _as_json(match: LogMatch) -> dict[str, Any]:
    rank = {} if match.rank is None else {"rank": match.rank}
    return {**formats.row(match.log), **rank}


def _read(
    repository: LogRepository, filters: LogFilters, limit: int, *, ranked: bool
) -> tuple[list[LogMatch], str | None]:
    found: list[LogMatch] = []
    cursor = filters.cursor
    while len(found) < limit:
        size = min(limit - len(found), _PAGE)
        asked = filters.model_copy(update={"cursor": cursor, "limit": size})
        page = repository.search_logs(asked, ranked=ranked, include_content=True)
        found.extend(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    return found, cursor


def _level(text: str) -> Level:
    lowest, dots, highest = text.partition("..")
    return (lowest, highest) if dots else lowest


def _time(text: str | None, option: str) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return formats.parse_since(text, now=dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
