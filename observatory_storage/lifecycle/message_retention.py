"""Retention of messages: they go with the partition of the spans that refer to them.

Spans refer to messages of their own period alone, so a partition of messages is dropped when it is expired and there is
no span within its times, nor a later trace that uses it: that happens where partitions were removed, and made anew with
another width, while a writer lived. What nobody refers to any more, because its spans were deleted, stays until then.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psycopg
from sqlalchemy import Table

from observatory_storage.errors import StorageError, describe
from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.expiry import STATEMENT_TIMEOUT, Borders, Removed, Remover, Terms, run
from observatory_storage.lifecycle.partitions import Partition, PartitionManager
from observatory_storage.models import Message, MessagePack, MessageUse, TraceSpan
from observatory_storage.models.base import table_of

_log = logging.getLogger(__name__)

# Where messages are is told before their packs go, so that no writer takes one for stored that is not. Who uses a pack
# is known until it is gone: what a writer remembers of uses, it remembers as long as there is the pack.
_TABLES: Final = tuple(table_of(model) for model in (Message, MessagePack, MessageUse))
# Who may still refer to the messages of a partition.
_USED: Final = (statements.HAS_SPANS, statements.HAS_LATER_USES)
# No period is longer.
_LONGEST: Final = dt.timedelta(days=31)


class MessageRetention:
    """Drops the partitions of messages that no span is left for."""

    def __init__(self, remover: Remover, manager: PartitionManager, terms: Terms, settle: dt.timedelta) -> None:
        self._remover = remover
        self._manager = manager
        self._terms = terms
        self._settle = settle

    def preview(self, removed: Removed, would_go: Callable[[Partition], bool]) -> None:
        """Find what would go; `would_go` tells whether no span would be left within a partition's times."""
        spans = self._manager.list(table_of(TraceSpan))
        for table in _TABLES:
            names = [
                partition.name
                for partition in self._borders(table).due()
                if would_go(partition) and not self._is(statements.HAS_LATER_USES, _times_of(partition, spans))
            ]
            removed.partitions += names
            removed.bytes += self._remover.size(table, names)

    def run(self, removed: Removed) -> None:
        """Drop what is expired and has no spans, and clear it out of DEFAULT."""
        spans = self._manager.list(table_of(TraceSpan))
        for table in _TABLES:
            for partition in self._borders(table).due():
                try:
                    self._drop(table, partition, spans, removed)
                except StorageError as error:
                    if error.sqlstate != STATEMENT_TIMEOUT:
                        raise
                    # One that takes longer to look at than the role may take must not keep all others for ever.
                    problem = f"partition {partition.name} of messages was left: {describe(error)}"
                    _log.info("%s", problem)
                    removed.problems.append(problem)
        self._clear_default(removed)

    def _borders(self, table: Table) -> Borders:
        return Borders(self._manager, table, self._terms, self._settle)

    def _drop(self, table: Table, partition: Partition, spans: Sequence[Partition], removed: Removed) -> None:
        bounds = _times_of(partition, spans)
        if any(self._is(query, bounds) for query in _USED):
            return

        def is_free(connection: psycopg.Connection[Any]) -> bool:
            # Nobody can store messages of this period now: what refers to them is committed, and seen here.
            queries = (*_USED, statements.HAS_PACKS) if table is _TABLES[-1] else _USED
            # One by one: all wait who write messages, and the second look reads every use of the partition.
            return not any(run(connection, query, bounds).fetchall()[0][0] for query in queries)

        self._remover.drop(table, partition, is_free, removed)

    def _is(self, query: str, bounds: Mapping[str, dt.datetime | None]) -> bool:
        return bool(self._remover.fetch(query, bounds)[0][0])

    def _clear_default(self, removed: Removed) -> None:
        """Delete expired packs that no trace uses any more, and then what tells where their messages were."""
        borders = self._borders(table_of(MessagePack))
        if borders.default is None:
            return
        given = {}
        for project in self._remover.fetch(statements.EVENT_PROJECTS, relation=borders.default.name):
            border = borders.of(project[0])
            if border is not None and border > dt.datetime.min.replace(tzinfo=dt.UTC) + _LONGEST:
                given[project[0]] = border - _LONGEST
        if not given:
            return
        gone = self._remover.in_blocks(borders.default.name, statements.DELETE_UNUSED_PACKS, "period", given)
        removed.rows[borders.table.name] += gone
        for table in _TABLES if gone else ():
            default = self._borders(table).default
            if default is not None and table is not borders.table:
                removed.rows[table.name] += self._remover.in_blocks(
                    default.name, statements.DELETE_WITHOUT_PACK, "period", given
                )


def _times_of(partition: Partition, spans: Sequence[Partition]) -> dict[str, dt.datetime | None]:
    """Return the times of the spans that may refer to a partition of messages.

    Its own, and those of wider partitions of spans that begin in it, where the widths were changed.
    """
    lower, upper = partition.lower or dt.datetime.min.replace(tzinfo=dt.UTC), partition.upper
    assert upper is not None
    uppers = [found.upper for found in spans if found.upper is not None and found.overlaps(lower, upper)]
    return {"lower": lower, "upper": max([upper, *uppers]), "end": upper}
