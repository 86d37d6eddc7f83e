"""What all filters have in common: kinds of fields, and one error that names everything that is wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Self, TypeVar

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
from observatory_storage.text import repair_json, repair_text

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 50
MAX_INT64: Final = 2**63 - 1


_Given = TypeVar("_Given")


def to_utc(value: dt.datetime) -> dt.datetime:
    """Return an aware time in UTC; a naive one is UTC. Raises ValueError outside of the years 1 to 9999."""
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.UTC)
    try:
        return value.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError("the time is not within the years 1 to 9999 in UTC") from error


def check_time(name: str, value: object) -> dt.datetime:
    """Return a datetime in UTC; raises InvalidFilterError, which names it, for anything else."""
    if not isinstance(value, dt.datetime):
        raise refusal(f"{name}: it is {value!r} and must be a datetime")
    try:
        return to_utc(value)
    except ValueError as error:
        raise refusal(f"{name}: {error}") from error


def _read_time(value: object) -> object:
    # Left to itself pydantic takes numbers, and texts such as "2026", for seconds since 1970.
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is no ISO time such as 2026-01-31T12:00Z") from None
    if isinstance(value, (int, float, Decimal, bytes)):
        raise ValueError(f"{value!r} is no time; give a datetime or an ISO time")
    return value


def refusal(*problems: str) -> InvalidFilterError:
    """Return the error that says what is wrong."""
    return InvalidFilterError("; ".join(problems), problems=problems)


def check_text(name: str, value: object) -> str:
    """Return a text as it would be stored; raises InvalidFilterError, which names it, for anything else."""
    if not isinstance(value, str):
        raise refusal(f"{name}: it is {value!r} and must be text")
    return repair_text(value)


def check_given(name: str, value: _Given | None) -> _Given:
    """Return what is searched for; raises InvalidFilterError for None, which would let everything through."""
    if value is None:
        raise refusal(f"{name}: it is None; say what is searched for, or take `list` for all")
    return value


def check_project(value: object) -> str | None:
    """Return a project's name as it would be stored, or None for all projects."""
    return None if value is None else check_text("project", value)


def count_problems(name: str, value: object, least: int) -> Iterator[str]:
    """Say what is wrong with a number that must be `least` or more."""
    if not isinstance(value, int) or not least <= value <= MAX_INT64:
        yield f"{name}: it is {value!r} and must be {least} or more"


def check_limits(limit: int | None, offset: int, *, name: str = "limit") -> None:
    """Raise InvalidFilterError for a limit below 1 or an offset below 0."""
    problems = [] if limit is None else [*count_problems(name, limit, 1)]
    problems += count_problems("offset", offset, 0)
    if problems:
        raise refusal(*problems)


def _repaired(value: object) -> object:
    # As it was before it was stored, or a text with a NUL would not find itself.
    return repair_text(value) if isinstance(value, str) else value


def _repaired_object(value: Mapping[str, Any]) -> dict[str, Any]:
    repaired: dict[str, Any] = repair_json(value)
    return repaired


Text = Annotated[str, BeforeValidator(_repaired)]
Attributes = Annotated[Mapping[str, Any], AfterValidator(_repaired_object)]
Time = Annotated[dt.datetime, BeforeValidator(_read_time), AfterValidator(to_utc)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Field(ge=0, le=MAX_INT64)]


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
            problems = tuple(_problems(error, cls.model_fields))
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(problems)}", problems=problems) from error
        contradictions = tuple(filters._contradictions())
        if contradictions:
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(contradictions)}", problems=contradictions)
        return filters

    def _contradictions(self) -> Iterator[str]:
        yield from ()


_Filters = TypeVar("_Filters", bound=FilterModel)


def check_filters(kind: type[_Filters], value: object) -> _Filters:
    """Return the filters that a call was given; raises InvalidFilterError for those of another kind."""
    if isinstance(value, kind):
        return value
    given = "nothing" if value is None else f"an object of type {type(value).__name__}"
    raise refusal(f"{kind.__name__} is what this call takes, and it was given {given}")


def filters_or_all(kind: type[_Filters], value: object) -> _Filters:
    """Return the filters that a call was given, or those that let all through where it was given none."""
    return kind() if value is None else check_filters(kind, value)


def _problems(error: ValidationError, fields: Iterable[str]) -> Iterator[str]:
    for line in error.errors(include_url=False, include_context=False, include_input=False):
        what = line["msg"].removeprefix("Value error, ")
        if line["type"] == "extra_forbidden" and len(line["loc"]) == 1:
            what = f"there is no such field; there are {', '.join(sorted(fields))}"
        yield f"{'.'.join(map(str, line['loc']))}: {what}"
