"""What a list of log records is narrowed down to."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, TypedDict

from pydantic import AfterValidator, Field

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.models.rows import SpanIdValue, TraceIdValue
from observatory_storage.models.severity import Severity, SeverityRange, severity_range
from observatory_storage.repositories.filter_model import (
    DEFAULT_LIMIT,
    Attributes,
    FilterModel,
    Limit,
    Offset,
    Text,
    Time,
)
from observatory_storage.repositories.log_cursor import LogCursor, RankCursor, check_cursor, decode_cursor
from observatory_storage.text import repair_text

# Longer than any question, and short enough that the server takes it for a query.
MAX_SEARCH_LENGTH: Final = 2000

Level = int | str | tuple[int | str, int | str]
"""A severity by number or name, or the lowest and the highest of a range of them, both included."""


def _severities(value: Level) -> SeverityRange:
    if not isinstance(value, tuple):
        return severity_range(value)
    lowest, highest = value
    numbers = SeverityRange(_lowest(lowest), _highest(highest))
    if numbers.lowest > numbers.highest:
        raise ValueError(f"{lowest!r} is more severe than {highest!r}")
    return numbers


def _lowest(value: int | str) -> int:
    return severity_range(value).lowest


def _highest(value: int | str) -> int:
    return severity_range(value).highest


def _trace_key(value: TraceIdValue) -> uuid.UUID:
    try:
        return resolve_trace_id(value)
    except RejectedRowError as error:
        raise ValueError(error.reason) from error


def _span_key(value: SpanIdValue) -> str:
    try:
        return resolve_span_id(value).hex()
    except RejectedRowError as error:
        raise ValueError(error.reason) from error


class LogFilters(FilterModel):
    """Which log records, and which page of them; every filter that is given must hold.

    Texts are compared exactly. `timestamp_from <= timestamp < timestamp_before`; a naive time is UTC. `severity`
    is a number from 1 to 24, a name from TRACE to FATAL4 in any case (a level's name is all four of its numbers),
    or a pair of those, the lowest and the highest; `min_severity` and `max_severity` give one end, which is
    included. Records without a severity number have none of them. Ids are given in any form that
    `observatory_storage.identity` reads. `attributes` are compared by jsonb containment: each key with its value,
    nested objects and lists by their parts.

    `search` finds words in bodies, structured ones too, in the syntax of search engines: words must all be there
    (in any case, whole: no word endings are cut off), `"a phrase"` as it stands, `a OR b` either, `-word` not.
    It must hold a word that is not excluded. The first 125,000 characters of a body are searched.

    `limit` is 1 to 1,000. Pages follow by `cursor`, the `next_cursor` of the page before; `offset` works too, and
    costs more the larger it is. Raises InvalidFilterError for what cannot hold.
    """

    project: Text | None = None
    service_name: Text | None = None
    severity: Annotated[Level, AfterValidator(_severities)] | None = None
    min_severity: Annotated[int | str, AfterValidator(_lowest)] | None = None
    max_severity: Annotated[int | str, AfterValidator(_highest)] | None = None
    timestamp_from: Time | None = None
    timestamp_before: Time | None = None
    trace_id: Annotated[TraceIdValue, AfterValidator(_trace_key)] | None = None
    span_id: Annotated[SpanIdValue, AfterValidator(_span_key)] | None = None
    event_name: Text | None = None
    scope_name: Text | None = None
    attributes: Attributes | None = None
    search: Annotated[str, Field(max_length=MAX_SEARCH_LENGTH), AfterValidator(repair_text)] | None = None
    limit: Limit = DEFAULT_LIMIT
    offset: Offset = 0
    cursor: Annotated[str, AfterValidator(check_cursor)] | None = None

    @property
    def after(self) -> LogCursor | RankCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else decode_cursor(self.cursor)

    @property
    def severities(self) -> SeverityRange | None:
        """The severity numbers that all filters on severity leave; None where there is no such filter."""
        if self.severity is None and self.min_severity is None and self.max_severity is None:
            return None
        lowest, highest = SeverityRange(1, len(Severity)) if self.severity is None else _severities(self.severity)
        if self.min_severity is not None:
            lowest = max(lowest, _lowest(self.min_severity))
        if self.max_severity is not None:
            highest = min(highest, _highest(self.max_severity))
        return SeverityRange(lowest, highest)

    def _contradictions(self) -> Iterator[str]:
        start, before = self.timestamp_from, self.timestamp_before
        if start is not None and before is not None and start > before:
            yield "timestamp_from is later than timestamp_before"
        severities = self.severities
        if severities is not None and severities.lowest > severities.highest:
            yield "the filters on severity exclude each other"
        if self.cursor is not None and self.offset:
            yield "offset cannot be combined with cursor"


class _EveryOption(TypedDict, total=False):
    project: str | None
    min_severity: int | str | None
    max_severity: int | str | None
    span_id: SpanIdValue | None
    event_name: str | None
    scope_name: str | None
    attributes: Mapping[str, Any] | None
    limit: int
    offset: int
    cursor: str | None


class _Times(TypedDict, total=False):
    timestamp_from: dt.datetime | None
    timestamp_before: dt.datetime | None


class _Service(TypedDict, total=False):
    service_name: str | None


class _Severity(TypedDict, total=False):
    severity: Level | None


class _Trace(TypedDict, total=False):
    trace_id: TraceIdValue | None


class _Search(TypedDict, total=False):
    search: str | None


class LogPageOptions(_EveryOption, _Service, _Severity, _Trace, _Search):
    """What narrows a list of log records in a time range down, as in `LogFilters`."""


class LogServiceOptions(_EveryOption, _Times, _Severity, _Trace, _Search):
    """What narrows the records of a service down, as in `LogFilters`."""


class LogTraceOptions(_EveryOption, _Times, _Service, _Severity, _Search):
    """What narrows the records of a trace down, as in `LogFilters`."""


class LogLevelOptions(_EveryOption, _Times, _Service, _Trace, _Search):
    """What narrows the records of a severity down, as in `LogFilters`."""


class LogTextOptions(_EveryOption, _Times, _Service, _Severity, _Trace):
    """What narrows a search for a text down, as in `LogFilters`."""
