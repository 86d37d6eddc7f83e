"""Column expressions that statements share: counts and sums that cannot overflow."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Dialect, Numeric, cast, func, literal_column, type_coerce
from sqlalchemy.types import TypeDecorator, TypeEngine

_Number = TypeVar("_Number", int, Decimal)


class Whole(TypeDecorator[int]):
    """A sum of integers, which is numeric in PostgreSQL and so cannot overflow, as an integer."""

    impl = Numeric
    cache_ok = True

    def process_result_value(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """Turn to an integer."""
        return None if value is None else int(value)


def counted(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the rows that fulfil all conditions."""
    count = func.count().filter(*conditions) if conditions else func.count()
    # SQLAlchemy takes it for a 32-bit integer.
    return type_coerce(count, BigInteger)


def total(value: ColumnElement[Any], kind: type[TypeEngine[_Number]]) -> ColumnElement[_Number]:
    """Return a sum as what it is a sum of, 0 where there is nothing to sum."""
    return func.coalesce(cast(value, kind), literal_column("0"), type_=kind)
