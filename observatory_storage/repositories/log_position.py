"""Where a follower of log records is: between which two snapshots of the database, and how far in between."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from observatory_storage.repositories.log_cursor import LogCursor

_SNAPSHOT: Final = re.compile(r"(\d{1,19}):(\d{1,19}):((?:\d{1,19}(?:,\d{1,19})*)?)", re.ASCII)
_MALFORMED: Final = "the position is malformed"
_FORM: Final = "1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions were over at a moment: those below `end` that were not `open`.

    `lowest` is the first that was not over: the first of the open ones, or `end`.
    """

    lowest: int
    end: int
    open: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pg_snapshot's text; raises ValueError for any other."""
        match = _SNAPSHOT.fullmatch(text)
        if match is None:
            raise ValueError(_MALFORMED)
        found = tuple(int(number) for number in match[3].split(",") if number)
        return cls(int(match[1]), int(match[2]), found)

    def __str__(self) -> str:
        return f"{self.lowest}:{self.end}:{','.join(map(str, self.open))}"


class Step(NamedTuple):
    """What was committed from one snapshot to the next."""

    before: Snapshot
    now: Snapshot


@dataclass(frozen=True, slots=True)
class Position:
    """Everything up to `before` has been seen, and of what came until `now` everything up to `after`, in time order."""

    before: Snapshot
    now: Snapshot | None = None
    after: LogCursor | None = None

    def encode(self) -> str:
        """Return the position as text that is safe in a URL."""
        after = self.after.encode() if self.after is not None else ""
        text = "|".join([_FORM, str(self.before), str(self.now or ""), after])
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        try:
            form, before, now, after = (
                base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii").split("|")
            )
        except (binascii.Error, ValueError) as error:
            raise ValueError(_MALFORMED) from error
        position = cls(
            Snapshot.parse(before),
            Snapshot.parse(now) if now else None,
            LogCursor.decode(after) if after else None,
        )
        # The decoder skips characters that are no base64; only text that is written back alike is a position.
        if form != _FORM or position.encode() != text:
            raise ValueError(_MALFORMED)
        return position
