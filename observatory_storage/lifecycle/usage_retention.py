"""Retention of the rollups of usage: hours that are older than their policy go, part by part.

Safe beside writers, who only append parts, and beside whoever folds: what another session holds the next run takes.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg

from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.expiry import Progress, Removed, Remover, Terms
from observatory_storage.lifecycle.widths import PartitionWidth

# Keys that one transaction looks at, though it deletes less than a batch of rows: each takes a tenth of a millisecond.
_KEYS_AT_ONCE: Final = 500
_TABLE: Final = "usage_rollups"


class _Key(NamedTuple):
    """A combination of dimensions, and before which hour its rollups go."""

    id: uuid.UUID
    border: dt.datetime


class UsageRetention:
    """Removes the expired hours of all projects."""

    def __init__(self, remover: Remover, terms: Terms, batch_size: int, on_progress: Progress) -> None:
        self._remover = remover
        self._terms = terms
        self._batch_size = batch_size
        self._on_progress = on_progress

    def preview(self, removed: Removed) -> None:
        """Count the parts that would go."""
        keys = self._expired()
        given = {"key_ids": [key.id for key in keys], "borders": [key.border for key in keys]}
        removed.rows[_TABLE] += self._remover.fetch(statements.COUNT_USAGE, given)[0][0]

    def run(self, removed: Removed) -> None:
        """Delete what is expired, in the order of its keys."""
        keys = self._expired()
        place = 0
        while place < len(keys):
            self._on_progress("retention of usage", place, len(keys))

            def work(
                connection: psycopg.Connection[Any], following: Sequence[_Key] = keys[place : place + _KEYS_AT_ONCE]
            ) -> tuple[int, int]:
                return self._delete(connection, following)

            done, rows = self._remover.attempt(work)
            place += done
            removed.rows[_TABLE] += rows
        if keys:
            self._on_progress("retention of usage", len(keys), len(keys))

    def _delete(self, connection: psycopg.Connection[Any], keys: Sequence[_Key]) -> tuple[int, int]:
        """Delete up to a batch of parts; returns with how many of the keys it is done, and the number of parts."""
        room = self._batch_size
        for place, key in enumerate(keys):
            given = {"key_id": key.id, "border": key.border, "limit": room}
            room -= connection.execute(statements.DELETE_USAGE.encode(), given).rowcount
            if not room:
                return place, self._batch_size
        return len(keys), self._batch_size - room

    def _expired(self) -> list[_Key]:
        """Find the keys with expired hours, in order."""
        horizon = max(map(PartitionWidth.HOUR.floor, self._terms.cutoffs))
        keys = []
        for key_id, project, earliest in self._remover.fetch(statements.KEYS_OF_USAGE, {"horizon": horizon}):
            cutoff = self._terms.cutoff(project)
            if cutoff is not None and earliest < (border := PartitionWidth.HOUR.floor(cutoff)):
                keys.append(_Key(key_id, border))
        return keys
