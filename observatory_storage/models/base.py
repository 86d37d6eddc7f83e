"""The declarative base: constraint names, and how a time-partitioned table is declared."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import MetaData, Table, inspect
from sqlalchemy.orm import DeclarativeBase

# PostgreSQL's own default names, so that partitions, whose names it chooses, follow the same pattern.
_NAMING_CONVENTION: Final = {
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
}


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=_NAMING_CONVENTION)

    def __repr__(self) -> str:
        # The key, and the name where there is one: never content, which can be long or private.
        key = [column.key for column in inspect(type(self)).primary_key]
        shown = [name for name in (*key, "name") if name in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{name}={str(vars(self)[name])[:80]!r}' for name in shown)})"


def partitioned_by(column: str) -> dict[str, Any]:
    """Return the table arguments of a table that is partitioned by ranges of a time column."""
    return {"postgresql_partition_by": f"RANGE ({column})", "info": {"partition_column": column}}


def table_of(model: type[Base]) -> Table:
    """Return a model's table, typed as the table it is."""
    table = model.__table__
    assert isinstance(table, Table)
    return table


def one_of(column: str, *values: str) -> str:
    """Return the CHECK expression of a short text column with a closed set of values."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"
