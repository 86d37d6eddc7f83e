"""What a call says that was given something else than it takes: one sentence, and an error of this package."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from observatory_storage.config import StorageConfig
from observatory_storage.errors import ConfigurationError, InvalidFilterError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import (
    LogFilters,
    LogRepository,
    MetricRepository,
    TraceFilters,
    TraceRepository,
    UsageRepository,
)
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriterConfig

START = dt.datetime(2026, 3, 10, tzinfo=dt.UTC)


class Calls:
    """Every repository, without its types."""

    def __init__(self, pool: StoragePool) -> None:
        self.traces: Any = TraceRepository(pool)
        self.metrics: Any = MetricRepository(pool)
        self.logs: Any = LogRepository(pool)
        self.usage: Any = UsageRepository(pool)


OPTIONAL: dict[str, Callable[[Calls, Any], Any]] = {
    "traces.list": lambda on, given: on.traces.list(given),
    "traces.list_spans": lambda on, given: on.traces.list_spans(given),
    "traces.get_stats": lambda on, given: on.traces.get_stats(given),
    "traces.search_content": lambda on, given: on.traces.search_content("word", given),
    "metrics.list": lambda on, given: on.metrics.list(given),
    "metrics.get_data_points": lambda on, given: on.metrics.get_data_points(given),
    "logs.list": lambda on, given: on.logs.list(given),
    "logs.get_stats": lambda on, given: on.logs.get_stats(given),
    "logs.count_by_level": lambda on, given: on.logs.count_by_level(given),
    "logs.stream_logs": lambda on, given: on.logs.stream_logs(given),
}
NEEDED: dict[str, Callable[[Calls, Any], Any]] = {
    "metrics.get_latest_data_point": lambda on, given: on.metrics.get_latest_data_point(given),
    "metrics.query_time_series": lambda on, given: on.metrics.query_time_series(given),
    "metrics.get_metric_aggregates": lambda on, given: on.metrics.get_metric_aggregates(given),
    "metrics.get_cost_summary": lambda on, given: on.metrics.get_cost_summary(given),
    "metrics.get_latency_percentiles": lambda on, given: on.metrics.get_latency_percentiles(given),
    "logs.search_logs": lambda on, given: on.logs.search_logs(given),
    "usage.get_totals": lambda on, given: on.usage.get_totals(given),
    "usage.get_series": lambda on, given: on.usage.get_series(given),
    "usage.get_percentiles": lambda on, given: on.usage.get_percentiles(given),
    "usage.get_top_users": lambda on, given: on.usage.get_top_users(given),
    "usage.get_top_sessions": lambda on, given: on.usage.get_top_sessions(given),
}
TEXTS: dict[str, Callable[[Calls, Any], Any]] = {
    "traces.search_content": lambda on, given: on.traces.search_content(given),
    "metrics.get_by_name": lambda on, given: on.metrics.get_by_name(given),
}
SEARCHES: dict[str, Callable[[Calls, Any], Any]] = {
    "traces.search_by_service": lambda on, given: on.traces.search_by_service(given),
    "traces.search_traces": lambda on, given: on.traces.search_traces(given),
    "metrics.search_by_name": lambda on, given: on.metrics.search_by_name(given),
    "logs.search_by_service": lambda on, given: on.logs.search_by_service(given),
    "logs.search_by_trace": lambda on, given: on.logs.search_by_trace(given),
    "logs.search_by_level": lambda on, given: on.logs.search_by_level(given),
    "logs.search_text": lambda on, given: on.logs.search_text(given),
}
PROJECTS: dict[str, Callable[[Calls, Any], Any]] = {
    "traces.delete_before": lambda on, given: on.traces.delete_before(START, project=given),
    "metrics.delete_before": lambda on, given: on.metrics.delete_before(START, project=given),
    "metrics.get_by_name": lambda on, given: on.metrics.get_by_name("requests", project=given),
    "metrics.get_stats": lambda on, given: on.metrics.get_stats(project=given),
    "logs.delete_before": lambda on, given: on.logs.delete_before(START, project=given),
}


@pytest.mark.parametrize("call", [*OPTIONAL, *NEEDED])
def test_filters_of_another_kind_are_refused(pool: StoragePool, call: str) -> None:
    other = LogFilters() if call.startswith("traces") else TraceFilters()
    wrong: list[Any] = ["x", 5, {"limit": 1}, other]
    if call in NEEDED:
        wrong.append(None)
    for given in wrong:
        with pytest.raises(
            InvalidFilterError, match=r"^[A-Za-z]+ is what this call takes, and it was given "
        ) as caught:
            {**OPTIONAL, **NEEDED}[call](Calls(pool), given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", TEXTS)
def test_what_is_no_text_is_refused(pool: StoragePool, call: str) -> None:
    for given in (None, 5):
        with pytest.raises(InvalidFilterError, match=r"must be text$"):
            TEXTS[call](Calls(pool), given)


@pytest.mark.parametrize("call", SEARCHES)
def test_a_search_for_nothing_does_not_return_everything(pool: StoragePool, call: str) -> None:
    with pytest.raises(InvalidFilterError, match="it is None; say what is searched for"):
        SEARCHES[call](Calls(pool), None)


@pytest.mark.parametrize("call", PROJECTS)
def test_a_project_that_is_no_text_is_refused(pool: StoragePool, call: str) -> None:
    with pytest.raises(InvalidFilterError, match=r"^project: it is 5 and must be text$"):
        PROJECTS[call](Calls(pool), 5)


def test_a_time_range_that_holds_no_times_is_refused(pool: StoragePool) -> None:
    metrics: Any = MetricRepository(pool)
    with pytest.raises(InvalidFilterError, match=r"^start: it is 'x' and must be a datetime$"):
        metrics.get_stats(start="x")
    with pytest.raises(InvalidFilterError, match=r"^end: it is 5 and must be a datetime$"):
        metrics.get_activity([], end=5)


def test_a_batch_size_that_cannot_be_is_named(pool: StoragePool) -> None:
    for repository in (TraceRepository(pool), MetricRepository(pool)):
        with pytest.raises(InvalidFilterError, match=r"^batch_size: it is 0"):
            repository.delete_before(START, batch_size=0)


@pytest.mark.parametrize("kind", [TraceRepository, MetricRepository, LogRepository, UsageRepository])
def test_a_repository_says_what_it_reads_on(kind: Any) -> None:
    for given in (None, "postgresql://app:s3cret@db/x"):
        with pytest.raises(
            ConfigurationError, match=f"^{kind.__name__} reads on a StoragePool or a SQLAlchemy"
        ) as caught:
            kind(given)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("kind", [TraceWriter, MetricWriter, LogWriter])
def test_a_writer_says_what_it_writes_on(kind: Any, pool: StoragePool) -> None:
    with pytest.raises(ConfigurationError, match=f"^{kind.__name__} writes on a StoragePool, and was given a str$"):
        kind("postgresql://app:s3cret@db/x")
    with pytest.raises(ConfigurationError, match=r"^config is a str and must be a WriterConfig$"):
        kind(pool, "copy")


def test_a_pool_says_how_it_takes_a_url() -> None:
    given: Any = "postgresql://app:s3cret@db/x"
    with pytest.raises(ConfigurationError, match=r"for a URL there is StoragePool\.from_url$") as caught:
        StoragePool(given)
    assert "s3cret" not in str(caught.value)
    assert isinstance(StoragePool.from_url(given).config, StorageConfig)


def test_all_wrong_settings_of_a_writer_are_named_at_once() -> None:
    wrong: Any = {"batch_size": 0, "method": "bogus", "batchsize": 5}
    with pytest.raises(ConfigurationError) as caught:
        WriterConfig(**wrong)
    assert [problem.split(" is ")[0] for problem in caught.value.problems] == ["batch_size", "method", "batchsize"]
    assert "\n" not in str(caught.value)
