"""The column kinds that the tables share, as annotated types."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Annotated, Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Double,
    Integer,
    LargeBinary,
    Numeric,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import mapped_column
from sqlalchemy.types import TypeDecorator

from observatory_storage.identity import resolve_span_id


class SpanIdType(TypeDecorator[str]):
    """A span id: 8 bytes in the database, 16 hex digits in Python.

    Takes 8 bytes as well, and any other text as `resolve_span_id` does.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | str | None, dialect: Dialect) -> bytes | None:
        """Turn hex digits into bytes."""
        return None if value is None else resolve_span_id(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        """Turn bytes into hex digits."""
        return None if value is None else bytes(value).hex()


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A timestamptz that comes back in UTC, whatever the time zone of the server; naive values are UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Take a naive time for UTC."""
        return value.replace(tzinfo=dt.UTC) if value is not None and value.tzinfo is None else value

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Turn to UTC."""
        return None if value is None else value.astimezone(dt.UTC)


TraceId = Annotated[uuid.UUID, mapped_column(Uuid)]
"""An OpenTelemetry trace id."""

ContentId = Annotated[uuid.UUID, mapped_column(Uuid)]
"""A 128-bit content address (`observatory_storage.identity.content_id`)."""

SpanId = Annotated[str, mapped_column(SpanIdType)]
"""An OpenTelemetry span id as 16 hex digits."""

Timestamp = Annotated[dt.datetime, mapped_column(UtcDateTime)]
"""A point in time with microseconds; OpenTelemetry's nanoseconds are floored."""

CreatedAt = Annotated[dt.datetime, mapped_column(UtcDateTime, server_default=text("now()"))]
"""When the row was first stored: the start of its transaction."""

SeenAt = Annotated[dt.datetime | None, mapped_column(UtcDateTime, server_default=text("now()"))]
"""When a writer last sent the row, to a few minutes; null where that was before this was noted."""

Project = Annotated[str, mapped_column(Text, server_default=text("'default'"))]
"""The project a row belongs to."""

Str = Annotated[str, mapped_column(Text)]
Int = Annotated[int, mapped_column(Integer)]
BigInt = Annotated[int, mapped_column(BigInteger)]
Float = Annotated[float, mapped_column(Double)]
Bool = Annotated[bool, mapped_column(Boolean)]

Counter = Annotated[int, mapped_column(BigInteger, server_default=text("0"))]
"""A sum that starts at zero."""

Flag = Annotated[bool, mapped_column(Boolean, server_default=text("false"))]
"""A truth that holds only where it is stated."""

Usd = Annotated[Decimal, mapped_column(Numeric)]
"""An amount of US dollars, exact: sums do not depend on the order of their terms."""

UsdSum = Annotated[Decimal, mapped_column(Numeric, server_default=text("0"))]
"""A sum of `Usd` that starts at zero."""

Json = Annotated[Any, mapped_column(JSONB(none_as_null=True))]
"""Any JSON value; None is SQL NULL."""

JsonObject = Annotated[dict[str, Any], mapped_column(JSONB(none_as_null=True), server_default=text("'{}'::jsonb"))]
"""A JSON object, empty where nothing was given."""

TextArray = Annotated[list[str], mapped_column(ARRAY(Text))]
FloatArray = Annotated[list[float], mapped_column(ARRAY(Double))]
BigIntArray = Annotated[list[int], mapped_column(ARRAY(BigInteger))]
