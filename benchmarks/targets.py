"""What the project is meant to reach, and what each figure is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Target:
    """A bound, from below or from above; `suite` measures it."""

    key: str
    suite: str
    what: str
    bound: float
    is_least: bool
    unit: str = ""

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound

    @property
    def asked(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:.3g}{self.unit}"

    def verdict(self, value: float, *, partial: bool) -> str:
        """Whether it is met; where less was measured than asked, only so far."""
        return f"{'met' if self.is_met(value) else 'NOT MET'}{' so far' if partial else ''}"

    def found(self, measure: Mapping[str, Any]) -> str:
        """What was measured, with its quartiles where it has some."""
        spread = "–".join(map(shown, measure.get("spread", ())))
        return f"{shown(measure['value'])}{self.unit}{f' ({spread})' if spread else ''}"

    def line(self, measure: Mapping[str, Any]) -> str:
        """The target with what was measured, for a terminal."""
        met = self.verdict(measure["value"], partial=measure["partial"])
        note = f" ({measure['note']})" if measure["note"] else ""
        return f"target: {self.what}: {self.found(measure)}, asked {self.asked}: {met}{note}"


def shown(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _least(key: str, suite: str, what: str, bound: float, unit: str = "") -> Target:
    return Target(key, suite, what, bound, True, unit)


def _most(key: str, suite: str, what: str, bound: float, unit: str = "") -> Target:
    return Target(key, suite, what, bound, False, unit)


_MORE: Final = "p95 at 100 times as many spans, "

TARGETS: Final = (
    _least("copy_writer_spans", "copy_vs_insert", "CopyWriter, spans, 5,000 a batch, of the server limit", 0.92),
    _least("copy_writer_logs", "log_ingest", "CopyWriter, logs, 5,000 a batch, of the server limit", 0.92),
    _least(
        "trace_writer_copy",
        "copy_vs_insert",
        "TraceWriter by COPY, rows to committed with summaries, exact under replay, of the limit",
        0.80,
    ),
    _least("replay", "copy_vs_insert", "replay of all spans, of the first delivery", 0.8),
    _least("replay_of_logs", "log_ingest", "replay of all log records, of the first delivery", 0.8),
    _least("insert_against_values", "copy_vs_insert", "TraceWriter by INSERT against `insert().values()`", 15.0, " ×"),
    _least(
        "insert_against_executemany",
        "copy_vs_insert",
        "TraceWriter by INSERT against Core executemany, with ON CONFLICT",
        1.2,
        " ×",
    ),
    _least("otlp", "otlp_ingest", "OTLP bytes to committed, one process, of the limit on the same spans", 0.40),
    _least("two_processes", "concurrent_writes", "two writer processes against one", 1.2, " ×"),
    _least("ingest_when_large", "growth", "ingest at 5,000,000 spans against empty", 0.9),
    _most("newest_when_large", "growth", f"{_MORE}newest 50 traces with filters", 1.5, " ×"),
    _most("one_trace_when_large", "growth", f"{_MORE}one trace with spans and events", 1.5, " ×"),
    _most("name_search_when_large", "growth", f"{_MORE}text search in traces' names", 1.5, " ×"),
    _most(
        "text_search_when_large",
        "log_search",
        "text search in logs, worst kind, p95 at 20 times as many records",
        1.5,
        " ×",
    ),
    _most(
        "one_trace",
        "query_performance",
        "one trace with 20 spans, against one primary-key SELECT by SQLAlchemy on the same connection",
        8.0,
        " ×",
    ),
    _most("writer_memory", "growth", "growth of the writer's memory after the first 100,000 spans", 50.0, " MB"),
    _most(
        "import_time",
        "footprint",
        "import of the package against `import sqlalchemy.orm`",
        2.0,
        " ×",
    ),
    _least("usage_rollups", "usage_rollups", "usage by model over 30 days, from rollups against spans", 50.0, " ×"),
    _least("retention_writers", "retention", "four writers beside retention, of their rate before it", 0.7),
    # As much as a writer's: batches are bounded, so that memory may not follow what goes.
    _most(
        "maintainer_memory",
        "retention",
        "growth of the maintainer's memory while it removes what is expired",
        50.0,
        " MB",
    ),
    _most("storage_bytes", "storage_size", "bytes with messages stored once, of those with copies", 1 / 3),
    _least("storage_rate", "storage_size", "spans/s with messages stored once, of those with copies", 1.0),
    _most("storage_latency", "storage_size", "p95 of one trace with messages stored once, of that with copies", 1.3),
    _least(
        "late_indexes",
        "late_indexes",
        "experiment: ingest with late indexes, of the limit of the same table without any index",
        0.7,
    ),
)

BY_KEY: Final = {target.key: target for target in TARGETS}
