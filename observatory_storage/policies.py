"""How long telemetry is kept and how wide partitions are, as settings say it; plain values without a database."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from observatory_storage.errors import ConfigurationError

SIGNALS: Final = ("traces", "metrics", "logs", "usage")
"""What policies are about; usage is the sums by the hour, which outlive the spans."""
FOREVER: Final = dt.timedelta.max
"""Keeps what a policy is about, whatever the policy for all other projects says."""

TABLES: Final = {
    "traces": ("trace_spans", "trace_events"),
    "metrics": ("metric_data_points",),
    "logs": ("logs",),
}
"""The partitioned tables of each signal that has some."""

WIDTHS: Final = ("hour", "day", "week", "month")
DEFAULT_PARTITIONS: Final[Mapping[str, str]] = {
    "trace_spans": "day",
    "trace_events": "day",
    "metric_data_points": "day",
    "logs": "hour",
}

_SHORTEST: Final = dt.timedelta(hours=1)
_LONGEST: Final = dt.timedelta(days=36_525)
_UNITS: Final = {"h": dt.timedelta(hours=1), "d": dt.timedelta(days=1), "w": dt.timedelta(weeks=1)}
_KEEP: Final = re.compile(r"([0-9]{1,6})\s*([hdw])", re.ASCII)


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long the telemetry of one signal is kept: `traces`, `metrics`, `logs` or `usage`.

    `usage` is what the model calls of an hour used; no policy about traces removes any of it.

    `project` None stands for every project that has no policy of its own for the signal. `keep` is an hour at
    least, or `FOREVER`. Raises ConfigurationError for anything else.
    """

    signal: str
    project: str | None
    keep: dt.timedelta

    def __post_init__(self) -> None:
        problem = None
        if self.signal not in SIGNALS:
            problem = f"the signal of a retention policy is {self.signal!r}; it may be traces, metrics, logs or usage"
        elif self.project is not None and not 1 <= len(self.project) <= 255:
            problem = "the project of a retention policy may be None or text of 1 to 255 characters"
        elif not (_SHORTEST <= self.keep <= _LONGEST or self.keep == FOREVER):
            problem = f"a retention policy keeps {self.keep}; it may keep an hour to 36,525 days, or FOREVER"
        if problem is not None:
            raise ConfigurationError(problem, problems=(problem,))

    def __str__(self) -> str:
        """Return the policy as settings spell it: `logs:research=7d`."""
        project = "" if self.project is None else f":{self.project}"
        return f"{self.signal}{project}={_spelled(self.keep)}"


def retention_policies(given: Any) -> tuple[RetentionPolicy, ...]:
    """Read policies: text such as `traces=30d, logs:research=7d`, such texts one by one, or policies.

    Raises ValueError where one cannot be read, or where two are about the same.
    """
    found: list[RetentionPolicy] = []
    for item in _items(given):
        if isinstance(item, RetentionPolicy):
            found.append(item)
            continue
        about, sign, keep = (part.strip() for part in item.rpartition("="))
        signal, colon, project = (part.strip() for part in about.partition(":"))
        if not sign or bool(colon) != bool(project):
            raise ValueError(f"{item!r} is no policy")
        try:
            found.append(RetentionPolicy(signal, project or None, _duration(keep)))
        except ConfigurationError:
            raise ValueError(f"{item!r} is no policy") from None
    if len({(policy.signal, policy.project) for policy in found}) < len(found):
        raise ValueError("two policies are about the same")
    return tuple(found)


def partition_widths(given: Any) -> dict[str, str]:
    """Read the widths of partitions, by table or by signal: `logs=day, traces=week`, or a mapping.

    Returns them for all tables. Raises ValueError.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), str(getattr(width, "value", width))) for name, width in given.items()]
    else:
        pairs = []
        for item in _items(given):
            name, sign, width = (part.strip() for part in str(item).partition("="))
            if not sign:
                raise ValueError(f"{item!r} is no width")
            pairs.append((name, width))
    widths: dict[str, str] = {}
    for name, width in pairs:
        tables = TABLES.get(name, (name,))
        if any(table not in DEFAULT_PARTITIONS for table in tables) or width not in WIDTHS:
            raise ValueError(f"{name}={width} is no width")
        if any(widths.get(table, width) != width for table in tables):
            raise ValueError("two widths for one table")
        widths.update(dict.fromkeys(tables, width))
    return {**DEFAULT_PARTITIONS, **widths}


def _items(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [item.strip() for item in given.split(",") if item.strip()]
    if isinstance(given, RetentionPolicy) or not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ValueError("neither text nor a list")
    items = list(given)
    if not all(isinstance(item, (str, RetentionPolicy)) for item in items):
        raise ValueError("not all are text")
    return items


def _duration(text: str) -> dt.timedelta:
    if text == "forever":
        return FOREVER
    match = _KEEP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration")
    return int(match[1]) * _UNITS[match[2]]


def _spelled(keep: dt.timedelta) -> str:
    if keep == FOREVER:
        return "forever"
    days, rest = divmod(keep, _UNITS["d"])
    if not rest:
        return f"{days}d"
    return f"{keep / _UNITS['h']:g}h"
