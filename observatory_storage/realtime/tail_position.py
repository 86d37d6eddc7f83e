"""Where a reader of streams is: in each stream the last entry, and how many events of it."""

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
_FORM: Final = 2
_LARGEST: Final = 2**64 - 1


class Place(NamedTuple):
    """All entries up to `id` were read, of the last one `number` events; 0 stands for all of them."""

    id: str
    number: int = 0


class Counted(NamedTuple):
    """What is known of a publisher of a stream: the number of its next event, and how many it had dropped."""

    next: int
    dropped: int


@dataclass(frozen=True, slots=True)
class TailPosition:
    """Places by signal and project; a stream that is not named is read from `since` on.

    `counted` says by publisher what is known at each place, so that whoever goes on from there can tell what is
    missing.
    """

    since: str
    places: Mapping[tuple[str, str], Place] = field(default_factory=dict)
    counted: Mapping[tuple[str, str], Mapping[bytes, Counted]] = field(default_factory=dict)

    def encode(self) -> str:
        """Return the position as text that is safe in a URL."""
        places = [[*key, *place, self._publishers(key)] for key, place in sorted(self.places.items())]
        text = orjson.dumps([_FORM, self.since, places])
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode("ascii")

    def _publishers(self, key: tuple[str, str]) -> list[tuple[str, int, int]]:
        return [(name.decode("latin-1"), *counted) for name, counted in self.counted.get(key, {}).items()]

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        try:
            form, since, given = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            found: dict[tuple[str, str], Place] = {}
            counted: dict[tuple[str, str], dict[bytes, Counted]] = {}
            for signal, project, last, number, publishers in given:
                key = (str(signal), str(project))
                found[key] = Place(last, number)
                counted[key] = {name.encode("latin-1"): Counted(after, lost) for name, after, lost in publishers}
        except (binascii.Error, ValueError, TypeError, AttributeError) as error:
            raise ValueError(_MALFORMED) from error
        ids = [since, *(place.id for place in found.values())]
        numbers = [place.number for place in found.values()]
        numbers += [number for by_name in counted.values() for one in by_name.values() for number in one]
        if (
            form != _FORM
            or not all(isinstance(one, str) and _is_id(one) for one in ids)
            or not all(type(number) is int and number >= 0 for number in numbers)
        ):
            raise ValueError(_MALFORMED)
        return cls(since, found, counted)


def _is_id(text: str) -> bool:
    found = _ID.fullmatch(text)
    return found is not None and all(int(part) <= _LARGEST for part in found.groups())


def before(entry_id: str) -> str:
    """Return the id that comes right before an entry's."""
    milliseconds, number = map(int, entry_id.split("-"))
    if number:
        return f"{milliseconds}-{number - 1}"
    return f"{max(0, milliseconds - 1)}-{_LARGEST if milliseconds else 0}"
