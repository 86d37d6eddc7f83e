"""What one transaction writes of metrics: data points in writing order, with their metrics and series."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import Table

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import content_id, series_id
from observatory_storage.models import MetricDataPoint
from observatory_storage.models.base import table_of
from observatory_storage.models.rows import DataPointRow, MetricRow
from observatory_storage.text import encode_canonical_json
from observatory_storage.writers.convert import (
    PROJECT_SHAPE,
    RESOURCE_SHAPE,
    GivenRow,
    Rejections,
    WireRow,
    convert_column,
    convert_rows,
    gather,
    known_rows,
    take,
    unknown_keys,
    well_formed,
)
from observatory_storage.writers.keyed_batch import KeyedBatch
from observatory_storage.writers.metric_columns import MADE_COLUMNS, point_columns
from observatory_storage.writers.resources import ResourceSet
from observatory_storage.writers.span_batch import UNIX_EPOCH
from observatory_storage.writers.tables import DATA_POINTS, METRICS, SERIES, Column

_METRIC_KEYS: Final = frozenset(MetricRow.__annotations__) | {"id", "created_at", "seen_at"}
_POINT_KEYS: Final = frozenset(DataPointRow.__annotations__) | {"metric_id", "series_id", "resource_id", "created_at"}
_TAKEN: Final = (
    "metric",
    "metric_id",
    "series_id",
    "attributes",
    "resource",
    "resource_id",
    "timestamp",
    "start_time",
    "project",
)
_COLUMNS: Final = {name: DATA_POINTS.columns[DATA_POINTS.index[name]] for name in (*DATA_POINTS.key, "project")}
_METRIC_ID: Final = Column("metric_id", _COLUMNS["metric_id"].kind)
_ID: Final = METRICS.columns[METRICS.index["id"]].kind
_DESCRIPTION: Final = METRICS.index["description"]


def identify_metric(metric: GivenRow, project: str) -> WireRow:
    """Return a metric in wire form, with the id that its identity has. Raises RejectedRowError.

    Its identity is project, service, scope name and version, name, unit, type, temporality and monotonicity.
    """
    reason = unknown_keys(metric, _METRIC_KEYS)
    if reason is not None:
        raise RejectedRowError(reason)
    if not isinstance(metric.get("project") or project, str):
        raise RejectedRowError("project is of another shape; it must be text")
    failed: dict[int, str] = {}
    row = {**metric, "project": metric.get("project") or project}
    wire = convert_rows(METRICS.full, [row], failed, ready={"id": [None]})[0]
    if failed:
        raise RejectedRowError(failed[0])
    identity = [value for place, value in enumerate(wire) if place != _DESCRIPTION][1:]
    return (content_id("metric", *identity), *wire[1:])


def identify_series(
    given: Mapping[str, list[Any]], projects: Sequence[str], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the ids of series and their metrics: as they were given, or as their content has them."""
    return _ids(given, projects, "id", failed)


def identify_points(
    given: Mapping[str, list[Any]], projects: Sequence[str], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the ids of points' metrics and series, as they were given or as their content has them, and what else
    follows from several columns.
    """
    ids = _ids(given, projects, "series_id", failed)
    return ids | point_columns(DATA_POINTS.names, given, failed, kept)


def _ids(
    given: Mapping[str, list[Any]], projects: Sequence[str], name: str, failed: dict[int, str]
) -> dict[str, list[Any]]:
    columns = (given[one] for one in ("metric", "metric_id", name, "resource_id", "attributes"))
    found = [_id(place, failed, *values) for place, values in enumerate(zip(projects, *columns, strict=True))]
    return {"metric_id": [pair[0] for pair in found], name: [pair[1] for pair in found]}


def _id(
    place: int,
    failed: dict[int, str],
    project: str,
    metric: Any,
    metric_id: Any,
    own: Any,
    resource: Any,
    attributes: Any,
) -> tuple[Any, Any]:
    try:
        if metric is None and metric_id is None:
            raise RejectedRowError("metric is missing, and so is metric_id")
        metric_id = _ID.convert(metric_id) if metric is None else identify_metric(metric, project)[0]
        if own is not None:
            return metric_id, _ID.convert(own)
        content = encode_canonical_json(attributes or {})
        return metric_id, series_id(metric_id, None if resource is None else _ID.convert(resource), content)
    except RejectedRowError as error:
        failed.setdefault(place, error.reason.strip())
    except RecursionError:
        failed.setdefault(place, "attributes is nested too deeply to be stored as JSON")
    return None, None


@dataclass(frozen=True, slots=True)
class Series:
    """A series as it was given, to be converted where it is new."""

    metric_id: bytes
    id: bytes
    project: str
    attributes: Mapping[str, Any]
    resource_id: bytes | None

    def wire(self) -> WireRow:
        """Convert it."""
        failed: dict[int, str] = {}
        row = {name: getattr(self, name) for name in SERIES.names}
        return convert_rows(SERIES.full, [row], failed)[0]


class PointBatch(KeyedBatch):
    """The data points of a batch with their metrics, series and resources.

    Of points with one key the first stays; another one with the same content is folded. Those with other content
    are `others`: in wire form, by key. They are not sent, but may be what is stored already.
    """

    table = DATA_POINTS

    def __init__(self, rejections: Rejections) -> None:
        super().__init__(rejections)
        self._keys.update({name: [] for name in DATA_POINTS.key})
        self.metrics: dict[bytes, WireRow] = {}
        self.series: dict[tuple[bytes, bytes], Series] = {}
        self.others: dict[bytes, list[tuple[GivenRow, WireRow]]] = {}
        self._settled: set[tuple[bytes, int]] = set()

    @classmethod
    def from_rows(cls, rows: Sequence[GivenRow], project: str, rejections: Rejections) -> Self:
        """Identify, fold and order rows; those whose metric names no project either get `project`."""
        batch = cls(rejections)
        batch._take(rows, project)
        return batch

    @property
    def timestamps(self) -> list[int]:
        """Times in microseconds since 2000, ascending."""
        return self._keys["timestamp"]

    def select(self, wanted: Any) -> Self:
        """Return a batch of the rows at the wanted places."""
        part = super().select(wanted)
        keys = set(zip(part._keys["metric_id"], part._keys["series_id"], strict=True))
        part.series = {key: row for key, row in self.series.items() if key in keys}
        used = {metric_id for metric_id, _ in keys}
        part.metrics = {key: row for key, row in self.metrics.items() if key in used}
        if self.others:
            own = set(part.keys())
            part.others = {key: rows for key, rows in self.others.items() if key in own}
        return part

    def keys(self) -> list[bytes]:
        """Return the keys of the rows, in their order, as the server computes them."""
        return list(map(point_key, zip(*(self._keys[name] for name in DATA_POINTS.key), strict=True)))

    def report_conflicts(self, keys: Collection[bytes]) -> None:
        """Reject the rows with these keys: what is stored under them is something else."""
        for place, key in enumerate(self.keys()):
            if key in keys and place not in self._rejected:
                self._conflict(self._given[place])
                self._rejected.add(place)

    def settle_others(self, alike: Collection[tuple[bytes, int]]) -> int:
        """Reject the others, each once, but those that are named by key and number; return how many were not."""
        spared = 0
        for key, rows in self.others.items():
            for number, (row, _) in enumerate(rows):
                if (key, number) in self._settled:
                    continue
                if (key, number) in alike:
                    spared += 1
                else:
                    self._settled.add((key, number))
                    self._conflict(row)
        return spared

    def reject_all(self, reason: str, sqlstate: str | None) -> None:
        """Reject every row of the batch."""
        super().reject_all(reason, sqlstate)
        self.settle_others(())

    def _conflict(self, row: GivenRow) -> None:
        self.rejections.counts["data_points_conflicting"] += 1
        self.rejections.add(row, "another point of this series and time, with other content, is stored already")

    def _computed(
        self,
        given: Mapping[str, list[Any]],
        ready: Mapping[str, list[Any]],
        failed: dict[int, str],
        kept: dict[int, dict[str, Any]],
    ) -> Mapping[str, list[Any]]:
        return point_columns(self.layout.names, given, failed, kept)

    def _take(self, rows: Sequence[GivenRow], project: str) -> None:
        known, present = known_rows(rows, _POINT_KEYS, self.rejections)
        self.layout = DATA_POINTS.layout(present | MADE_COLUMNS if "value_int" in present else present)
        self._present = present
        raw = gather(known, _TAKEN, present)
        fit = well_formed(known, raw, _SHAPES, self.rejections)
        if len(fit) < len(known):
            known, raw = fit, gather(fit, _TAKEN, present)
        projects = [
            given or _project_of(metric) or project for given, metric in zip(raw["project"], raw["metric"], strict=True)
        ]
        failed: dict[int, str] = {}
        resources = ResourceSet(self.rejections)
        resource_ids = resources.resolve(raw["resource_id"], raw["resource"], projects, failed)
        self.resources = resources.rows
        raw["project"] = projects
        raw["metric_id"] = self._identify_metrics(raw, failed)
        raw["series_id"] = self._identify_series(raw, resource_ids, failed)
        # A time that is missing never comes from the clock, or a replay would be a new point.
        raw["timestamp"] = [
            time if time is not None else start if start is not None else UNIX_EPOCH
            for time, start in zip(raw["timestamp"], raw["start_time"], strict=True)
        ]
        keys = {name: convert_column(column, raw[name], failed, {}) for name, column in _COLUMNS.items()}
        places = self._fold(known, keys, failed)
        for place, reason in failed.items():
            self.rejections.add(known[place], reason)
        taken = take(places)
        self._given = taken(list(known))
        self._keys = {name: taken(column) for name, column in keys.items()}
        self._keys["resource_id"] = taken(resource_ids)

    def _identify_metrics(self, raw: Mapping[str, list[Any]], failed: dict[int, str]) -> list[Any]:
        # Decoders share one object among all points of a metric.
        shared = list(zip(map(id, raw["metric"]), raw["project"], strict=True))
        ids: dict[tuple[int, str], bytes | None] = {}
        reasons: dict[tuple[int, str], str] = {}
        for key, metric in dict(zip(shared, raw["metric"], strict=True)).items():
            if metric is not None:
                try:
                    wire = identify_metric(metric, key[1])
                except RejectedRowError as error:
                    reasons[key] = f"its metric: {error.reason}"
                else:
                    ids[key] = wire[0]
                    self.metrics[wire[0]] = described(wire, self.metrics.get(wire[0]))
        for place, key in enumerate(shared) if reasons else ():
            if key in reasons:
                failed.setdefault(place, reasons[key])
        # An id beside the metric itself says nothing more.
        own = [given if metric is None else None for given, metric in zip(raw["metric_id"], raw["metric"], strict=True)]
        named = convert_column(_METRIC_ID, own, failed, {})
        return [ids.get(key, given) for key, given in zip(shared, named, strict=True)]

    def _identify_series(
        self, raw: Mapping[str, list[Any]], resource_ids: Sequence[bytes | None], failed: dict[int, str]
    ) -> list[Any]:
        ids: list[Any] = []
        columns = (raw[name] for name in ("metric", "metric_id", "series_id", "attributes", "project"))
        for place, (metric, metric_id, own, attributes, project) in enumerate(zip(*columns, strict=True)):
            # Where nothing says what the series is, a point names it by its id.
            named = metric is None and (own is not None or (attributes is None and resource_ids[place] is None))
            if named or metric_id is None or place in failed:
                ids.append(own)
                continue
            attributes = attributes or {}
            try:
                key = series_id(metric_id, resource_ids[place], encode_canonical_json(attributes))
            except RecursionError:
                failed.setdefault(place, "attributes is nested too deeply to be stored as JSON")
                ids.append(None)
                continue
            except Exception as error:  # noqa: BLE001 - the value's own code failed: that costs its row
                failed.setdefault(place, f"attributes cannot be read: {type(error).__name__}")
                ids.append(None)
                continue
            ids.append(key)
            if (metric_id, key) not in self.series:
                self.series[metric_id, key] = Series(metric_id, key, project, attributes, resource_ids[place])
        return ids

    def _fold(self, rows: Sequence[GivenRow], keys: Mapping[str, list[Any]], failed: dict[int, str]) -> list[int]:
        ordered = list(zip(*(keys[name] for name in DATA_POINTS.order), strict=True))
        if not failed and len(set(ordered)) == len(ordered):
            return sorted(range(len(ordered)), key=ordered.__getitem__)
        same: dict[tuple[Any, ...], list[int]] = {}
        for place, key in enumerate(ordered):
            if place not in failed:
                same.setdefault(key, []).append(place)
        several = [place for places in same.values() if len(places) > 1 for place in places]
        contents = self._contents(rows, keys, several, failed)
        folded = []
        for key in sorted(same):
            # One that cannot be stored takes no other's place.
            places = [place for place in same[key] if place not in failed]
            folded += places[:1]
            for place in places[1:]:
                # As text, because what is no number is not equal to itself.
                if repr(contents[place][len(_COLUMNS) :]) == repr(contents[places[0]][len(_COLUMNS) :]):
                    self.rejections.counts["data_points_duplicate"] += 1
                else:
                    wire = contents[place]
                    self.others.setdefault(point_key(wire), []).append((rows[place], wire))
        return folded

    def _contents(
        self, rows: Sequence[GivenRow], keys: Mapping[str, list[Any]], places: Sequence[int], failed: dict[int, str]
    ) -> dict[int, WireRow]:
        """Return what would be stored of some points."""
        bad: dict[int, str] = {}
        given = [rows[place] for place in places]
        kept: dict[int, dict[str, Any]] = {}
        ready = {name: [column[place] for place in places] for name, column in keys.items()}
        ready.update(point_columns(self.layout.names, gather(given, self.layout.names), bad, kept))
        converted = convert_rows(self.layout, given, bad, ready=ready, kept=kept) if places else []
        failed.update({places[at]: reason for at, reason in bad.items()})
        return dict(zip(places, converted, strict=True))


@dataclass(slots=True)
class MetricBatch:
    """Data points, and metrics that were written by themselves with the rows they came from."""

    points: PointBatch
    metrics: dict[bytes, tuple[WireRow, list[GivenRow]]]

    @classmethod
    def from_rows(
        cls, points: Sequence[GivenRow], metrics: Sequence[GivenRow], project: str, rejections: Rejections
    ) -> MetricBatch:
        """Make a batch of rows as they were given."""
        own: dict[bytes, tuple[WireRow, list[GivenRow]]] = {}
        for row in metrics:
            try:
                wire = identify_metric(row, project)
            except RejectedRowError as error:
                rejections.add(row, error.reason)
            else:
                before, sources = own.get(wire[0], (None, []))
                own[wire[0]] = (described(wire, before), [*sources, row])
        return cls(PointBatch.from_rows(points, project, rejections), own)

    def __len__(self) -> int:
        return len(self.points) + len(self.metrics)

    @property
    def size(self) -> int:
        """The rows by whose number COPY or INSERT is chosen."""
        return len(self.points)

    @property
    def rejections(self) -> Rejections:
        """The rows that cannot be stored."""
        return self.points.rejections

    def convert_ahead(self) -> bool:
        """Convert some points before they are to be sent."""
        return self.points.convert_ahead()

    def touched_traces(self) -> tuple[bytes, ...]:
        """Return nothing: points are no part of a trace."""
        return ()

    def times(self) -> Iterator[tuple[Table, list[int]]]:
        """Yield the partitioned table with the times of its rows."""
        yield table_of(MetricDataPoint), self.points.timestamps


def point_key(row: Sequence[Any]) -> bytes:
    """Return the key of a data point as the server computes it. Takes metric id, series id and time."""
    return b"%b%b%b" % (row[0], row[1], row[2].to_bytes(8, signed=True))


def described(metric: WireRow, before: WireRow | None) -> WireRow:
    """Return a metric with the description it was given before, if it has none of its own."""
    return metric if before is None or metric[_DESCRIPTION] is not None else before


def _project_of(metric: GivenRow | None) -> str | None:
    project = None if metric is None else metric.get("project")
    return project if isinstance(project, str) else None


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


_SHAPES: Final = (
    PROJECT_SHAPE,
    RESOURCE_SHAPE,
    ("metric", _is_mapping, "a mapping"),
    ("attributes", _is_mapping, "a mapping"),
)
