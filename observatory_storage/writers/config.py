"""How a writer is told to work."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from observatory_storage.errors import ConfigurationError

# Below this many rows one INSERT … SELECT FROM unnest is as fast as COPY with its extra round trips, to a server in the
# same network (docs/decisions/copy-and-insert.md).
AUTO_COPY_ROWS: Final = 50


class WriteMethod(StrEnum):
    """How rows reach the server; both store the same rows with the same guarantees."""

    INSERT = "insert"
    COPY = "copy"
    AUTO = "auto"
    """COPY for large batches, INSERT for small ones."""


class WriterConfig(BaseModel):
    """Settings of a writer.

    `batch_size` is the number of rows a transaction writes at most; `flush_interval_seconds` the age at
    which a buffered row is written though its batch is not full. A writer that holds `max_buffered_rows`
    makes its callers wait up to `full_buffer_timeout_seconds`. Partitions are made on demand for days not
    older than `partition_days_back`; older rows go to the DEFAULT partition. Without `share_messages` each span
    holds a copy of its messages, which its columns then show to any query (docs/messages.md).

    Raises ConfigurationError, with one line for each setting that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=5_000, ge=1, le=100_000)
    flush_interval_seconds: float = Field(default=1.0, gt=0, le=3_600, allow_inf_nan=False)
    method: WriteMethod = WriteMethod.AUTO
    project: str | None = Field(default=None, min_length=1, max_length=255)
    """The project of rows that name none; None takes the one of the pool's configuration."""
    max_buffered_rows: int = Field(default=20_000, ge=1)
    full_buffer_timeout_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    lock_timeout_seconds: float = Field(default=10.0, gt=0, le=600, allow_inf_nan=False)
    partition_days_back: int = Field(default=90, ge=0, le=36_500)
    share_messages: bool = True

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Not as a ValueError, which pydantic would make a ValidationError of.
        try:
            return handler(data)
        except ValidationError as error:
            problems = tuple(
                f"{'.'.join(map(str, line['loc']))} is {line['input']!r}: {line['msg']}"
                for line in error.errors(include_url=False, include_context=False)
            )
            raise ConfigurationError(f"WriterConfig: {'; '.join(problems)}", problems=problems) from error
