"""`usage`: what model calls used and cost, as a small table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, cast

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.tables import Column, print_table
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import InvalidFilterError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import (
    UsagePercentileQuery,
    UsagePercentiles,
    UsageQuery,
    UsageRepository,
    UsageTotals,
)

_DIMENSIONS: Final = ("project", "service", "provider", "model", "operation")
_P50, _P95 = 0.5, 0.95


def usage(
    context: typer.Context,
    since: Annotated[
        str, typer.Option(metavar="AGE|TIME", help="From this time on: 24h, 30d, or an ISO time (UTC).")
    ] = "24h",
    until: Annotated[str | None, typer.Option(metavar="AGE|TIME", help="Before this time. Default: now.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="DIMENSION", help=f"One row for each: {', '.join(_DIMENSIONS)}. Can be repeated."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Of this provider.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project. Default: of all.")] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Show what model calls used and cost, from the rollups, which outlive the spans.

    Usage is kept by the hour: the time range is widened to whole hours, and the output says to which.
    """
    dimensions = tuple(by or ("model",))
    unknown = [name for name in dimensions if name not in _DIMENSIONS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(_DIMENSIONS)}", param_hint="--by")
    now = dt.datetime.now(dt.UTC)
    start = _time(since, "--since", now)
    end = now if until is None else _time(until, "--until", now)
    given = {
        "start": start,
        "end": end,
        "group_by": dimensions,
        "project": project,
        "service_name": service,
        "provider": provider,
        "model": model,
    }
    try:
        query = UsageQuery(**cast("dict[str, Any]", given))
        percentiles = UsagePercentileQuery(**cast("dict[str, Any]", given), percentiles=(_P50, _P95))
    except InvalidFilterError as error:
        raise typer.BadParameter("; ".join(error.problems) or str(error)) from error
    settings = for_one_command(where(context, database_url, config).load())
    out = Terminals.standard().out
    with StoragePool(settings) as pool, pool.session() as session:
        repository = UsageRepository(session)
        found = repository.get_totals(query)
        latency = {tuple(one.labels.values()): one for one in repository.get_percentiles(percentiles)}
    rows = [(one, latency.get(tuple(one.labels.values()))) for one in found]
    if as_json:
        out.print_json({"start": found.start, "end": found.end, "usage": [_json(*row) for row in rows]})
        return
    span = f"{formats.moment(found.start)} to {formats.moment(found.end)} UTC"
    if not rows:
        out.print(f"no model call from {span}")
        return
    _print(out, dimensions, rows)
    out.print((span, "dim"))


def _print(
    out: Terminal, dimensions: Sequence[str], rows: Sequence[tuple[UsageTotals, UsagePercentiles | None]]
) -> None:
    totals = [one for one, _ in rows]
    columns = [
        Column(name.upper(), [out.text(one.labels[name] or "-") for one in totals], flexible=True)
        for name in dimensions
    ]
    figures: Mapping[str, tuple[int, list[str]]] = {
        "CALLS": (9, [f"{one.call_count:,}" for one in totals]),
        "ERRORS": (6, [f"{one.error_count:,}" for one in totals]),
        "INPUT": (8, [f"{one.input_tokens:,}" for one in totals]),
        "CACHED": (3, [f"{one.cached_input_tokens:,}" for one in totals]),
        "OUTPUT": (7, [f"{one.output_tokens:,}" for one in totals]),
        "REASONING": (2, [f"{one.reasoning_tokens:,}" for one in totals]),
        "USD": (10, [_dollars(one) for one in totals]),
        "P50": (4, [_latency(one, _P50) for _, one in rows]),
        "P95": (5, [_latency(one, _P95) for _, one in rows]),
    }
    columns += [Column(title, cells, keep=keep, right=True) for title, (keep, cells) in figures.items()]
    print_table(out, columns)


def _dollars(one: UsageTotals) -> str:
    # A cost that is not known of all calls is at least what is said.
    return f"{one.cost_usd:,.4f}" + ("+" if one.unpriced_count else "")


def _latency(one: UsagePercentiles | None, fraction: float) -> str:
    return "" if one is None else formats.duration(round(one.value(fraction)))


def _json(one: UsageTotals, latency: UsagePercentiles | None) -> dict[str, Any]:
    found = {} if latency is None else {f"p{p.fraction * 100:g}_us": p.value for p in latency.percentiles}
    return {**one._asdict(), "labels": dict(one.labels), "latency": found}


def _time(text: str, option: str, now: dt.datetime) -> dt.datetime:
    try:
        return formats.parse_since(text, now=now)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
