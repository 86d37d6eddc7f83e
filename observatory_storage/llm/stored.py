"""What of an `LlmSpan` has no column of its own, and how stored values are read back.

Ids as they were written, where that is not their stored form, stand in the span's attributes under
`observatory.trace_id`, `observatory.span_id` and `observatory.parent_span_id`, as every writer keeps them; the
rest stands under `observatory.llm.`. A user's attribute with such a key is stored as
`observatory.llm.attribute.<key>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from observatory_storage.llm.parts import JsonInput, Latency, LlmInput, LlmOutput, as_input, elapsed_ms
from observatory_storage.models.rows import SpanRow


class Extra:
    """The attributes that hold what has no column."""

    TRACE_ID = "observatory.trace_id"
    SPAN_ID = "observatory.span_id"
    PARENT_SPAN_ID = "observatory.parent_span_id"
    PREFIX = "observatory.llm."
    REQUEST_ID = "observatory.llm.request_id"
    # Milliseconds that the microseconds of the columns do not give back exactly.
    TOTAL_MS = "observatory.llm.total_ms"
    TTFT_MS = "observatory.llm.time_to_first_token_ms"
    # Which of token_usage and cost was given without any value in it.
    EMPTY = "observatory.llm.empty"
    # In front of a user's attribute with a name of this list.
    ATTRIBUTE = "observatory.llm.attribute."

    @classmethod
    def claims(cls, key: str) -> bool:
        """Tell whether an attribute of this name is ours, so that a user's must move aside."""
        return key.startswith(cls.PREFIX) or key in (cls.TRACE_ID, cls.SPAN_ID, cls.PARENT_SPAN_ID)


_INPUT: Final[TypeAdapter[Any]] = TypeAdapter(LlmInput)


def split_attributes(stored: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user's attributes and ours, the latter by their stored names."""
    attributes: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in stored.items():
        if key.startswith(Extra.ATTRIBUTE):
            attributes[key.removeprefix(Extra.ATTRIBUTE)] = from_jsonb(value)
        elif Extra.claims(key):
            extra[key] = value
        else:
            attributes[key] = from_jsonb(value)
    return attributes, extra


def from_jsonb(value: Any) -> Any:
    """Give numbers back the type they had before jsonb, as far as it can be told."""
    # An integer past 64 bits is stored as text; one that comes back as a number was a float such as 1e+22.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, dict):
        return {key: from_jsonb(item) for key, item in value.items()}
    return [from_jsonb(item) for item in value] if isinstance(value, list) else value


def read_input(value: Any) -> Any:
    """Read a stored input; one of unknown form becomes a `JsonInput`."""
    if value is None:
        return None
    for candidate in (value, as_input(value)):
        with suppress(ValidationError):
            return _INPUT.validate_python(candidate)
    return JsonInput(value=value)


def read_output(value: Any, finish_reason: str | None) -> LlmOutput | None:
    """Read a stored output; one of unknown form becomes the additional field `value`."""
    if value is None and finish_reason is None:
        return None
    given = value if isinstance(value, dict) else {} if value is None else {"content": value}
    reason = {} if finish_reason is None else {"finish_reason": finish_reason}
    with suppress(ValidationError):
        return LlmOutput.model_validate({**given, **reason})
    return LlmOutput.model_validate({"value": value, **reason})


def read_latency(row: SpanRow, extra: Mapping[str, Any]) -> Latency:
    """Read times and durations; an exact duration among the attributes wins over its column."""
    start, end, first_token = row["start_time"], row.get("end_time"), row.get("ttft_us")
    default = None if first_token is None else first_token / 1000
    return Latency(
        start_time=start,
        end_time=end,
        total_ms=extra.get(Extra.TOTAL_MS, elapsed_ms(start, end)),
        time_to_first_token_ms=extra.get(Extra.TTFT_MS, default),
    )
