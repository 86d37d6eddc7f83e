"""`metrics`: what metrics there are, and the series of one of them."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.metric_chart import print_chart
from observatory_storage.cli.metric_reading import AGGREGATIONS, Asked, Reading, is_aggregation, query_of, read
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, for_one_command, where
from observatory_storage.cli.paging import read_pages
from observatory_storage.cli.tables import Column, print_table
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.models import Metric
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import DataPointFilters, MetricFilters, MetricRepository
from observatory_storage.repositories.metric_activity import MetricActivity

_WINDOW: Final = dt.timedelta(hours=1)
_LISTS: Final = "it is of the list of metrics: leave NAME out"
_DRAWS: Final = "it is of one metric: give its NAME"


def metrics(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="The metric whose series are drawn. Without it, metrics are listed.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", metavar="LABEL", help="One series for each value of this label: model, service … Can be repeated."
        ),
    ] = None,
    where_label: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="LABEL=VALUE", help="Only where the label is this. Can be repeated."),
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            metavar="FIGURE",
            help=f"What is drawn: {', '.join(AGGREGATIONS)}, or of a histogram a percentile such as p95. Default: rate "
            "of a counter, else avg.",
        ),
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="How long each step is: 30s, 5m, 1h. Default: 60 steps or so.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="AGE|TIME",
            help="From this time on: 30m, 1h, 2d, or an ISO time (UTC). Default: 1h with NAME, else everything.",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="AGE|TIME", help="Before this time. Default: now.")] = None,
    metric_type: Annotated[
        Literal["gauge", "counter", "histogram", "exponential_histogram", "summary"] | None,
        typer.Option("--type", help="Of this type."),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Of this unit.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project. Default: of all.")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Whose name contains this.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many metrics, or drawn series.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on after the page that printed this cursor.")] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """List metrics, or draw the series of one.

    The time range of a drawing is widened to whole steps, and a step without a point stays empty. With --json
    each series has its labels and points: time, value (null where nothing is known, text where it is infinite) and
    count, how many points or recorded values it is from. In the JSON of the list point_count ends at 20,000.
    """
    given = {"--by": by, "--where": where_label, "--aggregation": aggregation, "--step": step}
    if name is None:
        _refuse(given, _DRAWS)
    else:
        _refuse({"--search": search, "--cursor": cursor}, _LISTS)
    now = dt.datetime.now(dt.UTC)
    start, end = _time(since, "--since", now), _time(until, "--until", now)
    last = end if name is None else end or now
    if start is not None and last is not None and start >= last:
        raise typer.BadParameter("it must be before --until, which is now unless given", param_hint="--since")
    settings = for_one_command(where(context, database_url, config).load())
    out = Terminals.standard().out
    try:
        if name is None:
            filters = MetricFilters(
                name=search,
                project=project,
                service_name=service,
                metric_type=metric_type,
                unit=unit,
                timestamp_from=start,
                timestamp_before=end,
                cursor=cursor,
            )
        else:
            end = end or now
            asked = Asked(
                name,
                start or _before(end),
                end,
                step=_length(step),
                aggregation=_figure(aggregation),
                group_by=tuple(by or ()),
                where=_conditions(where_label or ()),
                project=project,
                service_name=service,
                metric_type=metric_type,
                unit=unit,
            )
            query = query_of(asked)
    except InvalidFilterError as error:
        raise typer.BadParameter("; ".join(error.problems) or str(error)) from error
    with StoragePool(settings) as pool:
        if name is None:
            _list(out, pool, filters, limit, as_json=as_json)
            return
        with pool.session() as session:
            repository = MetricRepository(session)
            reading = read(repository, query, asked)
            if as_json:
                out.print_json(_reading_json(reading))
            elif reading.series:
                print_chart(out, reading, limit)
            else:
                out.print(_nothing(repository, asked, reading))


def _list(out: Terminal, pool: StoragePool, filters: MetricFilters, limit: int, *, as_json: bool) -> None:
    with pool.session() as session:
        repository = MetricRepository(session)
        found, next_cursor = read_pages(
            lambda page: repository.list(filters.model_copy(update=page)), filters.cursor, limit
        )
        activity = repository.get_activity(
            [metric.id for metric in found], start=filters.timestamp_from, end=filters.timestamp_before
        )
    rows = [(metric, activity[metric.id]) for metric in found if metric.id in activity]
    if as_json:
        out.print_json({"metrics": [_metric_json(*row) for row in rows], "next_cursor": next_cursor})
    elif not rows:
        out.print("no metric matches" if filters != MetricFilters() else "no metric is stored yet")
    else:
        _print_list(out, rows)
        if next_cursor is not None:
            out.print((f"more: --cursor {next_cursor}", "dim"))


def _print_list(out: Terminal, rows: Sequence[tuple[Metric, MetricActivity]]) -> None:
    projects = [out.text(metric.project) for metric, _ in rows]
    points = [formats.count(has.point_count) + ("" if has.is_exact else "+") for _, has in rows]
    columns = [
        Column("NAME", [out.text(metric.name) for metric, _ in rows], flexible=True, minimum=20, first=True),
        Column("TYPE", [metric.metric_type.replace("_", " ") for metric, _ in rows], keep=9),
        Column("UNIT", [out.text(metric.unit or "", 16) for metric, _ in rows], keep=7),
        Column("SERIES", [formats.count(has.series_count) for _, has in rows], keep=5, right=True),
        Column("POINTS", [points[number] for number in range(len(rows))], keep=6, right=True),
        Column("LAST (UTC)", [formats.moment(has.last_timestamp) or "-" for _, has in rows], keep=8),
        Column("SERVICE", [out.text(m.service_name or "") for m, _ in rows], keep=4, flexible=True),
        Column("PROJECT", projects if len(set(projects)) > 1 else [""] * len(rows), keep=3, flexible=True),
    ]
    print_table(out, columns)


def _nothing(repository: MetricRepository, asked: Asked, reading: Reading) -> str:
    narrowed = f"{formats.moment(reading.start)} to {formats.moment(reading.end)} UTC"
    filters = DataPointFilters(labels=dict(asked.where or {}), **asked.narrowed)
    try:
        last = repository.get_latest_data_point(filters).point.timestamp
    except NotFoundError:
        return f"no point of {asked.name} matches"
    return (
        f"{asked.name} has no point from {narrowed}; the last one is of {formats.moment(last)}: give --since or --until"
    )


def _metric_json(metric: Metric, activity: MetricActivity) -> dict[str, Any]:
    return {**formats.row(metric), **activity._asdict()}


def _reading_json(reading: Reading) -> dict[str, Any]:
    return {
        "name": reading.name,
        "type": reading.metric_type,
        "unit": reading.unit,
        "aggregation": reading.aggregation,
        "start": reading.start,
        "end": reading.end,
        "step_seconds": reading.step.total_seconds(),
        "series": [
            {
                "labels": dict(one.labels),
                "points": [
                    {"time": point.time, "value": _json_number(point.value), "count": point.count}
                    for point in one.points
                ],
                "percentiles": {
                    f"p{percentile.fraction * 100:g}": _json_number(percentile.value) for percentile in one.percentiles
                },
            }
            for one in reading.series
        ],
    }


def _json_number(value: int | float | None) -> int | float | str | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        # As OTLP/JSON spells it: JSON has no number for it.
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _refuse(options: Mapping[str, object], why: str) -> None:
    for option, value in options.items():
        if value:
            raise typer.BadParameter(why, param_hint=option)


def _figure(text: str | None) -> str | None:
    if text is not None and not is_aggregation(text):
        raise typer.BadParameter(
            f"{text!r} is none of {', '.join(AGGREGATIONS)} and a percentile such as p95", param_hint="--aggregation"
        )
    return text


def _conditions(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        label, equals, value = text.partition("=")
        if not label or not equals:
            raise typer.BadParameter(f"{text!r} is not of the form LABEL=VALUE", param_hint="--where")
        found[label] = (*found.get(label, ()), value)
    return found


def _length(text: str | None) -> dt.timedelta | None:
    if text is None:
        return None
    try:
        return formats.parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--step") from error


def _before(end: dt.datetime) -> dt.datetime:
    earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
    return end - _WINDOW if end - earliest > _WINDOW else earliest


def _time(text: str | None, option: str, now: dt.datetime) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return formats.parse_since(text, now=now)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
