"""An example of each statement that reads usage, and what the statements that keep it return."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import Select

from observatory_storage.models import Trace
from observatory_storage.repositories import usage_statements as statements
from observatory_storage.repositories.usage_filters import (
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageSeriesQuery,
)
from tests.trace_rows import at

WINDOW: dict[str, Any] = {"start": at(), "end": at(7200), "project": "default", "service_name": "api"}
FULL: dict[str, Any] = {
    **WINDOW,
    "provider": "openai",
    "model": "gpt",
    "operation": "chat",
    "group_by": ("project", "service", "provider", "model", "operation"),
}
TIMES: dict[str, Any] = {"start": at(), "end": at(7200)}

USAGE_MODULES = (statements,)
USAGE_EXAMPLES: list[tuple[str, Select[*tuple[Any, ...]]]] = [
    ("usage_totals", statements.usage_totals(UsageQuery(**FULL))),
    ("usage_totals", statements.usage_totals(UsageQuery(**TIMES))),
    ("usage_series", statements.usage_series(UsageSeriesQuery(**FULL, bucket=dt.timedelta(days=1)))),
    ("usage_series", statements.usage_series(UsageSeriesQuery(**TIMES))),
    ("usage_buckets", statements.usage_buckets(UsagePercentileQuery(**FULL))),
    ("usage_buckets", statements.usage_buckets(UsagePercentileQuery(**TIMES, measure="time_to_first_token"))),
    ("top_usage", statements.top_usage(TopUsageQuery(**WINDOW), Trace.user_id)),
    ("top_usage", statements.top_usage(TopUsageQuery(**TIMES, order_by="trace_count"), Trace.session_id)),
]

# What a span is counted with: dimensions, status, six kinds of tokens, cost, duration, time to the first token.
MARKED_SPAN = (*["text"] * 6, *["bigint"] * 6, "numeric", "bigint", "bigint")
USAGE_RETURNS: dict[str, tuple[str, ...]] = {
    "usage.statements.INSERT_PARTS": (),
    "usage.statements.SPANS_OF_TRACES": (
        "bytea",
        "bytea",
        "timestamp with time zone",
        "bytea",
        "boolean",
        "boolean",
        "boolean",
    ),
    "usage.statements.MARK_SPANS": ("bytea", "bytea", "timestamp with time zone", *MARKED_SPAN),
    "usage.statements.RECOUNT_TRACES": (),
    "usage.statements.FOLD": ("bigint",),
    "usage.statements.UNROLLED_TRACES": ("uuid",),
    "usage.statements.LOCK_TRACES": ("uuid",),
    "usage.statements.COUNT_WAITING": ("bigint",),
    "usage.statements.COUNT_UNROLLED": ("bigint",),
}
