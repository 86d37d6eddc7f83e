"""The text index of each partition of logs and of messages, built when the partition is closed.

Why not while rows come in, and the figures: `docs/decisions/log-partitions.md`.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from observatory_storage.errors import StorageError, UnavailableError, translate_errors
from observatory_storage.lifecycle import sql as statements
from observatory_storage.lifecycle.indexes import create_index, index_name
from observatory_storage.lifecycle.session import Configured, maintenance_session
from observatory_storage.models import LogRecord, MessagePack
from observatory_storage.models.base import table_of
from observatory_storage.models.log import SEARCH_VECTOR_SQL
from observatory_storage.models.message import PACK_VECTOR_SQL

_log = logging.getLogger(__name__)

GRACE: Final = dt.timedelta(minutes=5)
"""How long after its last moment a partition counts as closed: most records are stored within seconds."""

# A concurrent build waits for every older transaction of the database, and nobody waits behind it.
_LOCK_TIMEOUT_SECONDS: Final = 60.0
# A partition takes a second or two: a store that was indexed by an older release is through within some hours.
_LEARNED_AT_ONCE: Final = 20
_SUFFIX: Final = "_text_idx"
_DEFINITION: Final = f"USING gin (({SEARCH_VECTOR_SQL}))"
_PACK_DEFINITION: Final = f"USING gin (({PACK_VECTOR_SQL}))"


@dataclass(frozen=True, slots=True)
class TextIndexes:
    """What a build came to, by names of partitions in the order of their turn; `problem` says why some are left."""

    built: tuple[str, ...]
    left: tuple[str, ...]
    problem: str | None = None


class TextIndexer:
    """Builds the text index on the partitions of logs and messages that are closed, and on DEFAULT, which never is.

    DEFAULT has its index from the first build on: every search without bounds reads it, and so few rows come in
    there that they can be indexed as they come. A record that arrives in a closed partition is, too.
    """

    def __init__(
        self, pool: Configured, *, grace: dt.timedelta = GRACE, lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS
    ) -> None:
        self._pool = pool
        self._grace = grace
        self.lock_timeout_seconds = lock_timeout_seconds

    def pending(self, connection: psycopg.Connection[Any]) -> Sequence[str]:
        """Return the closed partitions without the index, logs first, the newest first and DEFAULT last.

        A partition of messages without any needs none.
        """
        names = []
        for table in (LogRecord.__tablename__, MessagePack.__tablename__):
            parameters = {"table": table, "grace": self._grace.total_seconds()}
            rows = connection.execute(statements.CLOSED_PARTITIONS, parameters).fetchall()
            names += [
                name
                for name, indexes, has_pages in rows
                if index_name(name, _SUFFIX) not in indexes and (has_pages or table == LogRecord.__tablename__)
            ]
        return names

    def build(
        self, *, at_most: int | None = None, on_progress: Callable[[int, int], None] | None = None
    ) -> TextIndexes:
        """Build what is missing, one index at a time, beside whoever writes and reads.

        Works on a connection of its own, in autocommit. What an interrupted build left is dropped and built
        anew. The first index that cannot be had ends the build: `left` names it and those after it. Calls
        `on_progress` with the number of indexes done and in all. Raises UnavailableError where another session
        maintains the database.
        """
        with maintenance_session(self._pool.config, lock_timeout_seconds=self.lock_timeout_seconds) as connection:
            if connection is None:
                raise UnavailableError("another session maintains the database; call again when it is done")
            return self.build_on(connection, at_most=at_most, on_progress=on_progress)

    def build_on(
        self,
        connection: psycopg.Connection[Any],
        *,
        at_most: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> TextIndexes:
        """Build on a connection of `maintenance_session`, as `build` does."""
        built: list[str] = []
        tried: set[str] = set()
        # Looked up anew each time: what closes while a backlog is built is what people search.
        while left := [name for name in self.pending(connection) if name not in tried]:
            if len(tried) == at_most:
                break
            if on_progress is not None:
                on_progress(len(tried), len(tried) + len(left))
            partition = left[0]
            tried.add(partition)
            try:
                with translate_errors():
                    # Before the index, which marks the partition as done.
                    connection.execute(statements.SUMMARIZE_BRIN, {"table": partition})
                    if _create_text_index(connection, partition):
                        built.append(partition)
                        _learn_words(connection, partition)
            except StorageError as error:
                if connection.closed:
                    raise
                problem = f"no text index on {partition}: {error}"
                _log.info("%s", problem)
                return TextIndexes(tuple(built), tuple(left), problem)
        given = {"table": LogRecord.__tablename__, "at_most": _LEARNED_AT_ONCE}
        for (partition,) in connection.execute(statements.UNKNOWN_WORDS, given).fetchall():
            _learn_words(connection, partition)
        if on_progress is not None and tried:
            on_progress(len(tried), len(tried) + len(left))
        return TextIndexes(tuple(built), tuple(left))


def _learn_words(connection: psycopg.Connection[Any], partition: str) -> None:
    """Have the server learn how common each word of a partition of logs is; what keeps it from that is logged.

    It does so from the text index alone, and autovacuum looks no more at a partition that nothing is stored in: without
    it the newest records with a common word took 630 ms instead of 40.
    """
    if not partition.startswith(LogRecord.__tablename__):
        return
    table = sql.Identifier(partition)
    try:
        with translate_errors():
            limited = connection.execute(statements.LIMIT_ANALYZED_ROWS, {"table": partition}).fetchone()
            if limited is None:
                return
            connection.execute(sql.SQL(statements.ANALYZE).format(partition=table))
            if limited[0]:
                # What was learned of the columns from so few rows is learned again from as many as usual.
                connection.execute(statements.RESET_ANALYZED_ROWS)
                columns = sql.SQL(", ").join(map(sql.Identifier, table_of(LogRecord).columns.keys()))
                connection.execute(sql.SQL(statements.ANALYZE_COLUMNS).format(partition=table, columns=columns))
    except StorageError as error:
        if connection.closed:
            raise
        _log.info("how common the words of %s are stays unknown until the next run: %s", partition, error)
    finally:
        if not connection.closed:
            connection.execute(statements.RESET_ANALYZED_ROWS)


def _create_text_index(connection: psycopg.Connection[Any], partition: str) -> bool:
    name = index_name(partition, _SUFFIX)
    if not partition.startswith(MessagePack.__tablename__):
        return create_index(connection, partition, name, _DEFINITION)
    # A build that holds all words in memory inserts them in ascending order, which leaves every page half empty. Of
    # several that come one after the other the later ones fill the pages of the first: three quarters of the place.
    connection.execute(statements.LIMIT_BUILD_MEMORY, {"table": partition})
    try:
        return create_index(connection, partition, name, _PACK_DEFINITION)
    finally:
        if not connection.closed:
            connection.execute(statements.RESET_BUILD_MEMORY)
