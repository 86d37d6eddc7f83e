"""`tail`: what is stored, as it is stored, by way of Redis."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.logs import STYLES, refuse_closed
from observatory_storage.cli.options import (
    AsJson,
    ConfigFile,
    DatabaseUrl,
    RedisUrl,
    for_one_command,
    where,
    with_redis,
)
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import InvalidFilterError
from observatory_storage.models.severity import level_of
from observatory_storage.otlp import Signal
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import Event, EventTail, LogEvent, PointEvent, SpanEvent, TailFilters


def tail(
    context: typer.Context,
    signal: Annotated[
        list[Signal] | None, typer.Option(help="Of this signal. Can be repeated. Default: of all.", show_default=False)
    ] = None,
    project: Annotated[str | None, typer.Option(help="Of this project. Default: of all.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    name: Annotated[str | None, typer.Option(help="Spans, metrics and events of this name.")] = None,
    trace: Annotated[str | None, typer.Option(metavar="ID", help="Spans and log records of this trace.")] = None,
    model: Annotated[str | None, typer.Option(help="Spans with this model.")] = None,
    status: Annotated[str | None, typer.Option(help="Spans with this status: unset, ok or error.")] = None,
    min_level: Annotated[
        str | None, typer.Option("--min-level", metavar="LEVEL", help="Log records of this severity or a worse one.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="AGE|TIME", help="Begin with what was stored since then, as far as Redis has it."),
    ] = None,
    position: Annotated[
        str | None, typer.Option(help="Go on after the event with which --json printed this position.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Print spans, log records and data points as they are stored, a line each, until it is interrupted.

    Needs REDIS_URL. What Redis did not get or no longer has is missing, and counted on standard error; of log records
    `logs --follow` misses none.
    """
    given: dict[str, Any] = {
        "project": project,
        "service_name": service,
        "name": name,
        "trace_id": trace,
        "model": model,
        "status": status,
        "min_severity": min_level,
    }
    if signal:
        given["signals"] = frozenset(map(str, signal))
    try:
        filters = TailFilters(**given)
        begin = None if since is None else formats.parse_since(since, now=dt.datetime.now(dt.UTC))
    except InvalidFilterError as error:
        raise typer.BadParameter("; ".join(error.problems)) from error
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
    settings = for_one_command(with_redis(where(context, database_url, config).load(), redis_url))
    terminals = Terminals.standard()
    with StoragePool(settings) as pool:
        try:
            events = pool.stream.tail(filters, position=position, since=begin, stop=refuse_closed(terminals.out.stream))
        except InvalidFilterError as error:
            raise typer.BadParameter("; ".join(error.problems)) from error
        _print_all(terminals, events, as_json=as_json)


def _print_all(terminals: Terminals, events: EventTail, *, as_json: bool) -> None:
    missed = 0
    for event in events:
        if events.missed > missed:
            terminals.err.print((f"{events.missed - missed:,} events were dropped or trimmed", "yellow"))
            missed = events.missed
        if as_json:
            terminals.out.print_json({"signal": signal_of(event), **event._asdict(), "position": events.position})
        else:
            _print(terminals.out, event)
        terminals.out.stream.flush()


def signal_of(event: Event) -> str:
    """Return which signal an event is of."""
    if isinstance(event, SpanEvent):
        return Signal.TRACES
    return Signal.LOGS if isinstance(event, LogEvent) else Signal.METRICS


def _print(out: Terminal, event: Event) -> None:
    if isinstance(event, SpanEvent):
        time, kind, style = event.start_time, "span", "red" if event.status == "error" else ""
        notes = [event.name, event.model, _tokens(event), _cost(event), _duration(event)]
    elif isinstance(event, LogEvent):
        level = level_of(event.severity_number)
        time, kind, style = event.timestamp, event.severity_text or level or "log", STYLES.get(level, "")
        notes = [event.event_name, event.body]
    else:
        time, kind, style = event.timestamp, "point", ""
        notes = [event.name, _value(event)]
    utc = time.astimezone(dt.UTC).replace(tzinfo=None)
    text = "  ".join(note for note in notes if note)
    out.print(
        (f"{utc.isoformat(' ', 'milliseconds')}  ", "dim"),
        (f"{out.text(kind, 8):<8}  ", style),
        f"{out.text(event.service_name or '-')}  ",
        out.text(text),
    )


def _tokens(span: SpanEvent) -> str | None:
    if span.input_tokens is None and span.output_tokens is None:
        return None
    return f"{span.input_tokens or 0:,} + {span.output_tokens or 0:,} tokens"


def _cost(span: SpanEvent) -> str | None:
    return None if span.cost_usd is None else f"${span.cost_usd:f}"


def _duration(span: SpanEvent) -> str | None:
    return None if span.duration_us is None else f"{span.duration_us / 1000:,.1f} ms"


def _value(point: PointEvent) -> str:
    value = point.value if point.value is not None else f"{point.value_count or 0:,} values"
    return f"{value} {point.unit}" if point.unit and point.value is not None else f"{value}"
