"""Agent conversations: the recorded ones where this machine has them, else made by a seeded generator."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from observatory_storage.otlp import decode_traces

Row = dict[str, Any]

_RECORDED: Final = Path("otlp") / "replay-tau-genai.traces.pb"
_KEPT: Final = frozenset({"role", "type", "finish_reason"})
_CONSONANTS: Final = "bcdfghjklmnpqrstvwxz"
_VOWELS: Final = "aeiou"
_WORDS: Final = 400


def recorded(shared_data: Path) -> list[Row] | None:
    """Return the recorded spans; None where they are not on this machine."""
    path = shared_data / _RECORDED
    if not path.is_file():
        return None
    rows: list[Row] = [dict(span) for span in decode_traces(path.read_bytes()).spans]
    return rows


def generated(traces: int, seed: int = 1) -> list[Row]:
    """Return the spans of agents that call a model and tools in turns, each call with the whole conversation."""
    dice = random.Random(seed)
    words = ["".join(dice.choices(string.ascii_lowercase, k=dice.randrange(2, 11))) for _ in range(_WORDS)]

    def text(least: int, most: int) -> str:
        return " ".join(dice.choices(words, k=dice.randrange(least, most)))

    system = _message("system", text(900, 1_000))
    start = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=1)
    rows: list[Row] = []
    for number in range(traces):
        trace_id, root = dice.randbytes(16), dice.randbytes(8)
        at = start + dt.timedelta(seconds=number)
        rows.append(_span(trace_id, root, None, at, 30.0, "invoke_agent", None))
        conversation = [system, _message("user", text(10, 60))]
        for call in range(dice.randrange(4, 24)):
            at += dt.timedelta(seconds=1)
            uses_tool = dice.random() < 0.6
            answer = _message("assistant", text(10, 80))
            row = _span(trace_id, dice.randbytes(8), root, at, 0.4, "chat", "gpt-4o")
            reason = "tool_call" if uses_tool else "stop"
            row |= {
                "input": list(conversation),
                "output": [{**answer, "finish_reason": reason}],
                "finish_reason": reason,
                "input_tokens": 1_000 + 100 * call,
                "output_tokens": 60,
            }
            rows.append(row)
            conversation.append(answer)
            result = text(20, 200)
            conversation.append(_message("tool" if uses_tool else "user", result))
            if uses_tool:
                tool = _span(
                    trace_id, dice.randbytes(8), root, at + dt.timedelta(milliseconds=500), 0.1, "execute_tool"
                )
                rows.append(tool | {"input": {"query": text(2, 6)}, "output": {"found": result}})
    return rows


def _message(role: str, content: str) -> Row:
    return {"role": role, "parts": [{"content": content, "type": "text"}], "name": None}


def _span(
    trace_id: bytes,
    span_id: bytes,
    parent: bytes | None,
    start: dt.datetime,
    seconds: float,
    operation: str,
    model: str | None = None,
) -> Row:
    row: Row = {
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": parent,
        "name": f"{operation} {model or ''}".strip(),
        "kind": "client" if model else "internal",
        "service_name": "agent",
        "start_time": start,
        "end_time": start + dt.timedelta(seconds=seconds),
        "operation": operation,
        "attributes": {
            "gen_ai.operation.name": operation,
            "gen_ai.response.id": f"chatcmpl-{span_id.hex()}",
            "server.address": "api.example.com",
            "server.port": 443,
        },
    }
    return row | {"model": model, "provider": "openai", "counts_usage": True} if model else row


class Repeated:
    """Spans under new ids and with changed text, as often as wanted; system prompts and definitions stay the same.

    The text of each copy is that of the first with other letters and digits, so that it compresses as well as that.
    The copies lie on three days in turns.
    """

    def __init__(self, rows: Sequence[Row], first_day: dt.datetime) -> None:
        self._rows = rows
        earliest = min(row["start_time"] for row in rows)
        self._shift = first_day - earliest.replace(hour=0, minute=0, second=0, microsecond=0)

    def __len__(self) -> int:
        return len(self._rows)

    def copy(self, number: int) -> list[Row]:
        """Return one copy."""
        table = _letters(number)
        shift = self._shift + dt.timedelta(days=number % 3)
        return [self._changed(row, number, table, shift) for row in self._rows]

    def _changed(self, row: Row, number: int, table: dict[int, int], shift: dt.timedelta) -> Row:
        changed = {
            **row,
            "trace_id": _id(row["trace_id"], number),
            "span_id": _id(row["span_id"], number)[:8],
            "start_time": row["start_time"] + shift,
            "end_time": row["end_time"] + shift,
        }
        if row["parent_span_id"] is not None:
            changed["parent_span_id"] = _id(row["parent_span_id"], number)[:8]
        for column in ("input", "output"):
            if row.get(column) is not None:
                changed[column] = _translated(row[column], table)
        return changed


def _translated(value: Any, table: dict[int, int]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, list):
        return [_translated(item, table) for item in value]
    if isinstance(value, dict):
        if value.get("role") == "system":
            return value
        return {name: item if name in _KEPT else _translated(item, table) for name, item in value.items()}
    return value


def _letters(number: int) -> dict[int, int]:
    dice = random.Random(number)
    changed = ["".join(dice.sample(signs, len(signs))) for signs in (_CONSONANTS, _VOWELS, string.digits)]
    consonants, vowels, digits = changed
    return str.maketrans(
        _CONSONANTS + _CONSONANTS.upper() + _VOWELS + _VOWELS.upper() + string.digits,
        consonants + consonants.upper() + vowels + vowels.upper() + digits,
    )


def _id(key: bytes, number: int) -> bytes:
    return hashlib.blake2b(key + number.to_bytes(4), digest_size=16).digest()
