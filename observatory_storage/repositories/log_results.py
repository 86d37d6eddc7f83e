"""What the log repository returns besides records."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import NamedTuple

from observatory_storage.models import LogRecord


class LogMatch(NamedTuple):
    """A record that a search found; `rank` only where it was ranked, `snippet` only where snippets were asked for."""

    log: LogRecord
    rank: float | None = None
    snippet: str | None = None


class SnippetStyle(NamedTuple):
    """How a snippet shows what was found.

    Each word that was found stands between `start_mark` and `end_mark`. The rest of the body is as it was stored:
    escape it before it is shown as HTML, so take marks that survive that. A snippet is of up to `max_fragments`
    pieces of up to `max_words` words, which `delimiter` joins.
    """

    start_mark: str = "«"
    end_mark: str = "»"
    max_words: int = 24
    max_fragments: int = 2
    delimiter: str = " … "


class LogStats(NamedTuple):
    """Totals over many records.

    `error_count` counts those of the levels ERROR and FATAL; the first and the last timestamp are absent where
    there is no record. `by_level` is as `LogRepository.count_by_level` returns it, `by_service` the counts of each
    service, None for records without one, the largest first.
    """

    log_count: int
    error_count: int
    first_timestamp: dt.datetime | None
    last_timestamp: dt.datetime | None
    by_level: Mapping[str | None, int]
    by_service: Mapping[str | None, int]
