"""What model calls used, summed up by the hour."""

from __future__ import annotations

import uuid
from typing import Annotated

from sqlalchemy import ARRAY, BigInteger, Index, Integer, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from observatory_storage.models.base import Base
from observatory_storage.models.types import ContentId, Counter, Flag, Project, Timestamp, UsdSum

_Dimension = Annotated[str, mapped_column(Text, server_default=text("''"))]
_Buckets = Annotated[list[int], mapped_column(ARRAY(Integer), server_default=text("'{}'::integer[]"))]
_Counts = Annotated[list[int], mapped_column(ARRAY(BigInteger), server_default=text("'{}'::bigint[]"))]


class UsageRollup(Base):
    """A part of what the model calls of an hour used; the sum over all parts is exact at any moment.

    Writers append a part for each batch, with signed amounts, in the transaction that stores the spans; parts
    that are not `is_folded` wait for maintenance to merge them. `hour` is that of the calls' start. `key_id` is the
    content address of the five dimensions, of which one that is absent is empty text. A histogram is two arrays:
    numbers of buckets, ascending, and how many calls lie in each (`observatory_storage.usage.buckets`).
    """

    __tablename__ = "usage_rollups"

    key_id: Mapped[ContentId] = mapped_column(primary_key=True)
    hour: Mapped[Timestamp] = mapped_column(primary_key=True)
    part: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    is_folded: Mapped[Flag]
    project: Mapped[Project]
    service_name: Mapped[_Dimension]
    provider: Mapped[_Dimension]
    model: Mapped[_Dimension]
    operation: Mapped[_Dimension]
    calls: Mapped[Counter]
    errors: Mapped[Counter]
    unpriced_calls: Mapped[Counter]
    input_tokens: Mapped[Counter]
    cached_input_tokens: Mapped[Counter]
    cache_write_input_tokens: Mapped[Counter]
    output_tokens: Mapped[Counter]
    reasoning_tokens: Mapped[Counter]
    total_tokens: Mapped[Counter]
    cost_usd: Mapped[UsdSum]
    latency_buckets: Mapped[_Buckets]
    latency_counts: Mapped[_Counts]
    ttft_buckets: Mapped[_Buckets]
    ttft_counts: Mapped[_Counts]

    __table_args__ = (
        Index("usage_rollups_hour_idx", "hour"),
        # Holds what waits for maintenance, and nothing else.
        Index("usage_rollups_unfolded_idx", "key_id", "hour", postgresql_where=text("NOT is_folded")),
    )
