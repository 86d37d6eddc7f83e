"""Model instances as rows: new ones have the columns that were set, those that were read all that makes their row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase

from observatory_storage.errors import RejectedRowError
from observatory_storage.models import TraceSpan

SERVER_COLUMNS: Final = frozenset({"created_at", "updated_at", "seen_at", "transaction_id"})
"""Columns that the server fills in, whatever a row says."""


def mapping_of(instance: DeclarativeBase) -> Mapping[str, Any]:
    """Return what an instance says as a mapping that can be written, here or to another database.

    Raises RejectedRowError for one that was read without some of its columns, or whose content is still references
    to messages: without them the row would be another one, and nobody would be told.
    """
    row = {name: value for name, value in vars(instance).items() if not name.startswith("_sa_")}
    state = inspect(instance)
    if state.key is not None:
        unread = state.unloaded.intersection(state.mapper.column_attrs.keys()) - SERVER_COLUMNS
        if unread:
            raise RejectedRowError(
                f"this {type(instance).__name__} was read without {', '.join(sorted(unread))}, or stored by a session "
                "that does not know it, and it would be lost; read it again with its content"
            )
    settle = _SETTLED.get(type(instance))
    if settle is not None:
        settle(row)
    return row


def _settle_span(row: dict[str, Any]) -> None:
    """Leave out what is true only in the store that a span was read from."""
    if row.pop("content_refs", None):
        raise RejectedRowError(
            "content_refs refers to messages of the store that the span was read from; "
            "read the span by TraceRepository, which puts them back"
        )
    # Which of a trace's calls repeat others is decided where the trace is stored.
    if row.pop("repeats_usage", None):
        row["counts_usage"] = True


_SETTLED: Final[dict[type[DeclarativeBase], Callable[[dict[str, Any]], None]]] = {TraceSpan: _settle_span}
