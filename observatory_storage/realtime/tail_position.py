"""Where a reader of streams is: in each stream the last entry, and how many events of the one after it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

import orjson

_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_MALFORMED: Final = "the position is malformed"
_FORM: Final = 1
_LARGEST: Final = 2**64 - 1


class Place(NamedTuple):
    """All entries up to `id` were read, and `number` events of the one that follows."""

    id: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class TailPosition:
    """Places by signal and project; a stream that is not named is read from `since` on."""

    since: str
    places: Mapping[tuple[str, str], Place] = field(default_factory=dict)

    def encode(self) -> str:
        """Return the position as text that is safe in a URL."""
        places = [[*key, *place] for key, place in sorted(self.places.items())]
        text = orjson.dumps([_FORM, self.since, places])
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        try:
            form, since, places = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            found = {(str(signal), str(project)): Place(last, number) for signal, project, last, number in places}
        except (binascii.Error, ValueError, TypeError) as error:
            raise ValueError(_MALFORMED) from error
        ids = [since, *(place.id for place in found.values())]
        if (
            form != _FORM
            or not all(isinstance(one, str) and _ID.fullmatch(one) for one in ids)
            or not all(type(place.number) is int and place.number >= 0 for place in found.values())
        ):
            raise ValueError(_MALFORMED)
        return cls(since, found)


def before(entry_id: str) -> str:
    """Return the id that comes right before an entry's."""
    milliseconds, number = map(int, entry_id.split("-"))
    if number:
        return f"{milliseconds}-{number - 1}"
    return f"{max(0, milliseconds - 1)}-{_LARGEST if milliseconds else 0}"
