"""Log records for benchmarks: seeded, of about 250 characters, in hours of which all but the newest have an index.

Words fall off in frequency as in real logs; each record has an id that no other has, and some tell of a rare fault.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Iterator
from typing import Final

import psycopg

from observatory_storage.models.log import SEARCH_VECTOR_SQL

RARE: Final = "deadlock"
COMMON: Final = "request"
_PROSE: Final = (
    "request finished with status in ms for user on route cache connection retry token model completion prompt "
    "upstream latency budget shard worker queue payload schema invoice refund booking session cookie header region "
    "replica"
)
_WORDS: Final = tuple(_PROSE.split())
_WEIGHTS: Final = [1 / (place + 1) for place in range(len(_WORDS))]
_SERVICES: Final = ("gateway", "agent", "billing", "search")
_COLUMNS: Final = "timestamp, route_id, id, project, severity_number, severity_text, body, service_name"
_NEWEST: Final = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
_HOUR: Final = dt.timedelta(hours=1)


def fill(url: str, hours: int, rows_an_hour: int, head_rows: int) -> None:
    """Make a partition for each hour, the newest one last and without an index, and store the same rows each time."""
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(hours):
            lower = _NEWEST - number * _HOUR
            name = f"logs_p{lower:%Y%m%d%H}"
            connection.execute(
                f"CREATE TABLE {name} PARTITION OF logs FOR VALUES FROM ('{lower}') TO ('{lower + _HOUR}')".encode()
            )
            with connection.cursor().copy(f"COPY logs ({_COLUMNS}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
                copy.set_types(["timestamptz", "uuid", "uuid", "text", "int4", "text", "text", "text"])
                for row in _rows(number, lower, rows_an_hour if number else head_rows):
                    copy.write_row(row)
            if number:
                # As maintenance does when the hour is over.
                connection.execute(f"CREATE INDEX {name}_text_idx ON {name} USING gin ({SEARCH_VECTOR_SQL})".encode())
            connection.execute(f"VACUUM ANALYZE {name}".encode())
        connection.execute("CHECKPOINT")


def unique_word(number: int, place: int) -> str:
    """Return a word that only one record of an hour has."""
    return f"r{number:04d}x{place:07d}"


def words(dice: random.Random) -> str:
    """Return some words, frequent ones more often."""
    return " ".join(dice.choices(_WORDS, _WEIGHTS, k=dice.randint(15, 45)))


def _rows(number: int, lower: dt.datetime, count: int) -> Iterator[tuple[object, ...]]:
    dice = random.Random(number)
    step = _HOUR / count
    for place in range(count):
        key = uuid.UUID(bytes=dice.randbytes(16))
        words = dice.choices(_WORDS, _WEIGHTS, k=dice.randint(15, 45))
        if dice.random() < 0.0002:
            words.insert(3, RARE)
        is_error = dice.random() < 0.03
        body = f"{unique_word(number, place)} {' '.join(words)} took {dice.randrange(10_000)} ms"
        yield (
            lower + place * step,
            key,
            key,
            "default",
            17 if is_error else 9,
            "ERROR" if is_error else "INFO",
            body,
            dice.choice(_SERVICES),
        )
