"""MetricWriter: metrics and data points from application code to committed rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from observatory_storage.errors import StorageError, describe
from observatory_storage.models import DataPointRow, Metric, MetricDataPoint, MetricRow
from observatory_storage.writers.buffered import BufferedWriter, CommitStats
from observatory_storage.writers.convert import GivenRow, Rejections
from observatory_storage.writers.metric_batch import MetricBatch, PointBatch
from observatory_storage.writers.metric_transaction import MetricTransaction
from observatory_storage.writers.rows import Connection
from observatory_storage.writers.store import BatchStore, Outcome, Prepared, Terms


@dataclass(frozen=True, slots=True)
class MetricWriteStats(CommitStats):
    """What a `MetricWriter` has committed since it was made.

    Each data point given is counted once: as written (new), as duplicate (stored already, or twice in a batch), as
    conflicting (something else is stored for its series and time) or as rejected for its content; `rows_rejected`
    has both of the last. `metrics_written` counts metrics given to `write_metric`.
    """

    data_points_written: int = 0
    data_points_duplicate: int = 0
    data_points_conflicting: int = 0
    metrics_written: int = 0


class MetricWriter(BufferedWriter[MetricWriteStats]):
    """Writes metrics and data points, from application code to committed rows; exact under replay.

    A point carries its metric, attributes and resource; who they are follows from their content, and rows for
    them appear where they are missing. A point that is sent twice is stored once; one with other content for the
    same series and time is not stored but handed to `on_rejected` and counted. How it buffers, what it promises
    and when: `BufferedWriter`.
    """

    _kinds = ("data_point", "metric")

    def _make_store(self) -> MetricStore:
        return MetricStore(self._pool, self._config, self._project, self._pool.config.retry)

    def _no_stats(self) -> MetricWriteStats:
        return MetricWriteStats()

    def write_metric(self, metric: MetricRow | Mapping[str, object] | Metric) -> None:
        """Write a metric by itself, as to give it another description; points bring theirs with them."""
        self._put("metric", [metric], copy=True)

    def write_metrics(self, metrics: Iterable[MetricRow | Mapping[str, object] | Metric]) -> None:
        """Write several metrics, as `write_metric` does; their mappings are not to be changed afterwards."""
        self._put("metric", metrics)

    def write_data_point(self, point: DataPointRow | Mapping[str, object] | MetricDataPoint) -> None:
        """Write a data point; for many `write_data_points` costs less.

        Instead of `metric` a point may have the `metric_id` of one that is stored, and instead of `attributes`
        and `resource` a `series_id`. Both are taken on trust: nothing looks whether they are stored, and a point
        of which they are not is seen by no read.
        """
        self._put("data_point", [point], copy=True)

    def write_data_points(self, points: Iterable[DataPointRow | Mapping[str, object] | MetricDataPoint]) -> None:
        """Write data points, as `write_data_point` does; their mappings are not to be changed afterwards.

        Ids that are given instead of content are taken on trust here too.
        """
        self._put("data_point", points)


class MetricStore(BatchStore[MetricBatch]):
    """Stores rows of the kinds `data_point` and `metric`."""

    signal = "metrics"
    landed_count = "data_points_written"

    def prepare(self, rows: Mapping[str, Sequence[GivenRow]]) -> Prepared[MetricBatch]:
        """Identify, fold and order rows."""
        points, metrics = rows["data_point"], rows["metric"]
        batch = MetricBatch.from_rows(points, metrics, self._project, Rejections())
        return Prepared(len(points) + len(metrics), [batch])

    def transact(self, connection: Connection, batch: MetricBatch, terms: Terms) -> Outcome:
        """Run the protocol of `metric_transaction`."""
        return MetricTransaction(connection, terms).write(batch)

    def parts(self, batch: MetricBatch, error: StorageError) -> Iterator[MetricBatch]:
        """Tell points from metrics, then half from half."""
        points, metrics = batch.points, batch.metrics
        nothing = PointBatch(batch.rejections)
        if len(points) and metrics:
            yield MetricBatch(points, {})
            yield MetricBatch(nothing, metrics)
        elif len(points) > 1:
            for half in points.halves():
                yield MetricBatch(half, {})
        elif len(points):
            points.reject_all(describe(error), error.sqlstate)
        elif len(metrics) > 1:
            keys = list(metrics)
            for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
                yield MetricBatch(nothing, {key: metrics[key] for key in part})
        else:
            for _, rows in metrics.values():
                for row in rows:
                    batch.rejections.add(row, describe(error), error.sqlstate)
