"""What all filters have in common: kinds of fields, and one error that names everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from observatory_storage.errors import InvalidFilterError
from observatory_storage.repositories.filters import DEFAULT_LIMIT, MAX_LIMIT, Time, problems_of
from observatory_storage.text import repair_json, repair_text


def _repaired(value: object) -> object:
    # As it was before it was stored, or a text with a NUL would not find itself.
    return repair_text(value) if isinstance(value, str) else value


def _repaired_object(value: Mapping[str, Any]) -> dict[str, Any]:
    repaired: dict[str, Any] = repair_json(value)
    return repaired


Text = Annotated[str, BeforeValidator(_repaired)]
Attributes = Annotated[Mapping[str, Any], AfterValidator(_repaired_object)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Field(ge=0, le=2**63 - 1)]

__all__ = ["DEFAULT_LIMIT", "Attributes", "FilterModel", "Limit", "Offset", "Text", "Time"]


class FilterModel(BaseModel):
    """Filters that raise InvalidFilterError for what cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Not as a ValueError, which pydantic would make a ValidationError of.
        try:
            filters = handler(data)
        except ValidationError as error:
            problems = problems_of(error)
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(problems)}", problems=problems) from error
        contradictions = tuple(filters._contradictions())
        if contradictions:
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(contradictions)}", problems=contradictions)
        return filters

    def _contradictions(self) -> Iterator[str]:
        yield from ()
