"""The severities of log records as OpenTelemetry defines them: 24 numbers in six levels of four."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Severity(enum.IntEnum):
    """A severity number; the first of each level has the level's name alone."""

    TRACE = 1
    TRACE2 = 2
    TRACE3 = 3
    TRACE4 = 4
    DEBUG = 5
    DEBUG2 = 6
    DEBUG3 = 7
    DEBUG4 = 8
    INFO = 9
    INFO2 = 10
    INFO3 = 11
    INFO4 = 12
    WARN = 13
    WARN2 = 14
    WARN3 = 15
    WARN4 = 16
    ERROR = 17
    ERROR2 = 18
    ERROR3 = 19
    ERROR4 = 20
    FATAL = 21
    FATAL2 = 22
    FATAL3 = 23
    FATAL4 = 24

    @property
    def level(self) -> str:
        """The name of its level: TRACE, DEBUG, INFO, WARN, ERROR or FATAL."""
        return self.name.rstrip("234")


LEVELS: Final = tuple(severity.name for severity in Severity if severity.name == severity.level)
"""The names of the levels, the least severe first."""

# As people and logging libraries write them.
_SYNONYMS: Final = {
    "WARNING": "WARN",
    "ERR": "ERROR",
    "INFORMATION": "INFO",
    "INFORMATIONAL": "INFO",
    "CRITICAL": "FATAL",
}


class SeverityRange(NamedTuple):
    """Severity numbers from `lowest` to `highest`, both included."""

    lowest: int
    highest: int


def severity_range(value: int | str) -> SeverityRange:
    """Return the numbers that a severity means.

    A number is itself; digits are too. A level's name, in any case, is its four numbers (`"warning"` is 13 to 16),
    a name with a digit one number (`"WARN2"` is 14). Raises ValueError for anything else.
    """
    if isinstance(value, str):
        name = value.strip().upper()
        name = _SYNONYMS.get(name, name)
        if name in LEVELS:
            return SeverityRange(Severity[name], Severity[name] + 3)
        number = Severity[name].value if name in Severity.__members__ else int(name) if name.isdecimal() else 0
    else:
        number = value
    if not 1 <= number <= len(Severity):
        raise ValueError(f"{value!r} is no severity; it may be 1 to 24, or a name from TRACE to FATAL4")
    return SeverityRange(number, number)


def level_of(number: int | None) -> str | None:
    """Return the name of a severity number's level; None where there is none, as for 0, OpenTelemetry's unspecified."""
    return Severity(number).level if number else None
