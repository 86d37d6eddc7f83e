"""Series and metrics without points, deleted when no writer can still rely on them.

A writer remembers for ten minutes that a series is stored and sends points of it alone; when it last sent the series
itself stands in `seen_at`. What was sent since the cutoff, which is an hour ago at least, stays.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import psycopg

from observatory_storage.lifecycle import retention_sql as statements
from observatory_storage.lifecycle.expiry import Remover, Terms

_BATCH_SIZE: Final = 500


def prune_parents(remover: Remover, terms: Terms) -> Counter[str]:
    """Delete the series and metrics of projects with a policy that have no points; returns how many rows went."""
    gone: Counter[str] = Counter()
    for (project,) in remover.fetch(statements.PROJECTS_OF_METRICS):
        cutoff = terms.cutoff(project)
        if cutoff is not None:
            given = {"project": project, "cutoff": cutoff}
            gone["metric_series"] += _delete(remover, statements.NEXT_SERIES, statements.DELETE_SERIES, given)
            gone["metrics"] += _delete(remover, statements.NEXT_METRICS, statements.DELETE_METRICS, given)
    return gone


def _delete(remover: Remover, following: str, statement: str, given: dict[str, Any]) -> int:
    deleted = 0
    after: tuple[Any, Any] | None = (None, None)
    while after is not None:
        parameters = {**given, "after_metric": after[0], "after_id": after[1], "limit": _BATCH_SIZE}

        def work(
            connection: psycopg.Connection[Any], parameters: dict[str, Any] = parameters
        ) -> tuple[int, list[tuple[Any, Any]]]:
            keys = connection.execute(following.encode(), parameters).fetchall()
            ids = {"metrics": [key[0] for key in keys], "ids": [key[1] for key in keys]}
            # A statement of its own: points that were committed before the locks were granted count.
            return connection.execute(statement.encode(), ids).rowcount if keys else 0, keys

        rows, keys = remover.attempt(work)
        deleted += rows
        after = keys[-1] if len(keys) == _BATCH_SIZE else None
    return deleted
