"""What the log repository returns besides records."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from observatory_storage.models import LogRecord
from observatory_storage.text import repair_text

# PostgreSQL takes no piece of less than two words. The upper ends are more than a snippet, which is cut, can show.
_WORDS: Final = (2, 1_000)
_FRAGMENTS: Final = (1, 100)


class LogMatch(NamedTuple):
    """A record that a search found; `rank` only where it was ranked, `snippet` only where snippets were asked for."""

    log: LogRecord
    rank: float | None = None
    snippet: str | None = None


class SnippetStyle(NamedTuple):
    """How a snippet shows what was found.

    Each word that was found stands between `start_mark` and `end_mark`. The rest of the body is as it was stored:
    escape it before it is shown as HTML, so take marks that survive that. A snippet is of up to `max_fragments`
    pieces (1 to 100) of up to `max_words` words (2 to 1,000), which `delimiter` joins.
    """

    start_mark: str = "«"
    end_mark: str = "»"
    max_words: int = 24
    max_fragments: int = 2
    delimiter: str = " … "


def style_problems(style: SnippetStyle) -> Iterator[str]:
    """Say what of a style the server would not take."""
    numbers: tuple[tuple[str, object, tuple[int, int]], ...] = (
        ("max_words", style.max_words, _WORDS),
        ("max_fragments", style.max_fragments, _FRAGMENTS),
    )
    for name, value, (least, most) in numbers:
        if not isinstance(value, int) or not least <= value <= most:
            yield f"snippets: {name} is {value!r} and must be {least} to {most:,}"
    for name in ("start_mark", "end_mark", "delimiter"):
        text = getattr(style, name)
        if not isinstance(text, str):
            yield f"snippets: {name} is {text!r} and must be text"
        elif repair_text(text) != text:
            yield f"snippets: {name} holds a character that PostgreSQL cannot take: {text!r}"


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
