"""`logs`: the newest log records, one a line, and those that follow."""

from __future__ import annotations

import datetime as dt
import io
import json
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TextIO

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.paging import read_pages
from observatory_storage.cli.terminal import ASCII, Terminal, Terminals
from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import LogRecord
from observatory_storage.models.severity import Severity, level_of
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import Level, LogFilters
from observatory_storage.repositories.log_results import LogMatch, SnippetStyle

# A body is one line, and never a whole document.
_LONGEST_LINE: Final = 2000
STYLES: Final[Mapping[str | None, str]] = {
    "TRACE": "dim",
    "DEBUG": "dim",
    "WARN": "yellow",
    "ERROR": "red",
    "FATAL": "bold red",
}


def logs(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="How many; with --follow 0 for those alone that are stored now.")
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each record that is stored.")] = False,
    search: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='With these words in the body: word "a phrase" one OR other -excluded.'),
    ] = None,
    ranked: Annotated[bool, typer.Option("--ranked", help="The best matches of the search first.")] = False,
    snippets: Annotated[
        bool, typer.Option("--snippets", help="Show where a body matches the search, not its beginning.")
    ] = False,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="Of this severity: a name (warn, error2), 1 to 24, or a range (info..warn, warn..)."
        ),
    ] = None,
    min_level: Annotated[
        str | None, typer.Option("--min-level", metavar="LEVEL", help="Of this severity or a worse one.")
    ] = None,
    max_level: Annotated[
        str | None, typer.Option("--max-level", metavar="LEVEL", help="Of this severity or a lesser one.")
    ] = None,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Of this instrumentation scope.")] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help='With this attribute. VALUE is JSON (7, true, "7"), else the text as it stands. Can be repeated.',
        ),
    ] = None,
    trace: Annotated[str | None, typer.Option(metavar="ID", help="Of this trace.")] = None,
    span: Annotated[str | None, typer.Option(metavar="ID", help="Of this span.")] = None,
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
    if not follow and limit == 0:
        raise typer.BadParameter("0 goes with --follow alone", param_hint="--limit")
    if follow and (ranked or snippets or cursor is not None):
        raise typer.BadParameter("--follow goes with none of --ranked, --snippets and --cursor")
    if (ranked or snippets) and search is None:
        raise typer.BadParameter(f"{'--ranked' if ranked else '--snippets'} needs --search")
    try:
        filters = LogFilters(
            project=project,
            service_name=service,
            severity=None if level is None else _level(level),
            min_severity=min_level,
            max_severity=max_level,
            scope_name=scope,
            attributes=None if not attribute else _attributes(attribute),
            trace_id=trace,
            span_id=span,
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
        style = _style(out, as_json=as_json) if snippets else None
        found, next_cursor = read_pages(
            lambda page: repository.search_logs(
                filters.model_copy(update=page), ranked=ranked, snippets=style or False, include_content=True
            ),
            filters.cursor,
            limit,
        )
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
        _print(out, match.log, match.snippet)


def _follow(out: Terminal, repository: LogRepository, filters: LogFilters, recent: int, *, as_json: bool) -> None:
    stream = repository.stream_logs(filters, recent=recent, stop=refuse_closed(out.stream), include_content=True)
    for record in stream:
        if as_json:
            out.print_json(formats.row(record))
        else:
            _print(out, record)
        out.stream.flush()


def refuse_closed(stream: TextIO) -> Callable[[], bool]:
    """Return what raises BrokenPipeError once a pipe's reader has left, however long nothing is printed."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return lambda: False
    # Windows has none; there the next record fails.
    if not hasattr(select, "poll"):
        return lambda: False
    looked_at = select.poll()
    # For nothing but what is always told: that the other end is closed.
    looked_at.register(descriptor, 0)

    def refuse() -> bool:
        if looked_at.poll(0):
            raise BrokenPipeError
        return False

    return refuse


def _print(out: Terminal, record: LogRecord, snippet: str | None = None) -> None:
    level = level_of(record.severity_number)
    utc = record.timestamp.astimezone(dt.UTC).replace(tzinfo=None)
    out.print(
        (f"{utc.isoformat(' ', 'milliseconds')}  ", "dim"),
        (f"{out.text(record.severity_text or level or '-', 8):<8}  ", STYLES.get(level, "")),
        f"{out.text(record.service_name or '-')}  ",
        out.text(_message(record, snippet), _LONGEST_LINE),
    )


def _message(record: LogRecord, snippet: str | None) -> str:
    shown = snippet or record.body or ""
    if snippet is None and record.body_json is not None:
        shown = json.dumps(record.body_json, ensure_ascii=False)
    name = record.event_name
    # Cut before each sign is looked at: it can be megabytes long.
    return (f"{name}: {shown}" if name and shown else name or shown)[: _LONGEST_LINE + 1]


def _as_json(match: LogMatch) -> dict[str, Any]:
    rank = {} if match.rank is None else {"rank": match.rank}
    snippet = {} if match.snippet is None else {"snippet": match.snippet}
    return {**formats.row(match.log), **rank, **snippet}


def _style(out: Terminal, *, as_json: bool) -> SnippetStyle:
    if as_json or out.glyphs is not ASCII:
        return SnippetStyle()
    return SnippetStyle(start_mark="*", end_mark="*", delimiter=f" {out.glyphs.ellipsis} ")


def _attributes(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE", param_hint="--attribute")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="--attribute")
        try:
            found[key] = json.loads(value, parse_constant=str)
        except ValueError:
            found[key] = value
    return found


def _level(text: str) -> Level:
    lowest, dots, highest = text.partition("..")
    # Open ends reach to the last there is.
    return (lowest or Severity.TRACE, highest or Severity.FATAL4) if dots else lowest


def _time(text: str | None, option: str) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return formats.parse_since(text, now=dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
