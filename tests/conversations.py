"""Agent conversations for tests, and what is stored of them."""

from __future__ import annotations

import datetime as dt
import json
import random
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository

Row = dict[str, Any]
NOON = dt.datetime.now(dt.UTC).replace(hour=12, minute=0, second=0, microsecond=0)
SYSTEM = {"role": "system", "parts": [{"type": "text", "content": "Be brief and kind. " * 80}]}
TOOLS = [{"type": "function", "name": f"tool_{number}", "description": "Looks up. " * 10} for number in range(8)]


def message(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "parts": [{"type": "text", "content": content}], **more}


def conversation(seed: int = 1, *, calls: int = 5, start: dt.datetime = NOON, project: str | None = None) -> list[Row]:
    """The model calls of one agent run: each sends all that was said before."""
    dice = random.Random(seed)
    trace_id = dice.randbytes(16)
    said: list[Row] = [SYSTEM, message("user", f"question {seed} {dice.random()}")]
    rows = []
    for call in range(calls):
        answer = message("assistant", f"answer {call} of {seed} {dice.random()}", name=None)
        at = start + dt.timedelta(seconds=call)
        row: Row = {
            "trace_id": trace_id,
            "span_id": dice.randbytes(8),
            "name": "chat",
            "operation": "chat",
            "model": "gpt-4o",
            "start_time": at,
            "end_time": at + dt.timedelta(milliseconds=500),
            "input": list(said),
            "output": [{**answer, "finish_reason": "stop"}],
            "finish_reason": "stop",
            "attributes": {"gen_ai.tool.definitions": TOOLS, "call": call},
        }
        rows.append(row | ({"project": project} if project else {}))
        said += [answer, message("user", f"and then {call} of {seed}?")]
    return rows


def key_of(row: Row) -> tuple[str, str]:
    return uuid.UUID(bytes=row["trace_id"]).hex, row["span_id"].hex()


def contents(rows: Iterable[Row]) -> dict[tuple[str, str], Any]:
    """What was given, by trace and span, as JSON has it."""
    return {
        key_of(row): json.loads(json.dumps([row.get("input"), row.get("output"), row.get("attributes") or {}]))
        for row in rows
    }


def read_back(pool: StoragePool, rows: Iterable[Row]) -> dict[tuple[str, str], Any]:
    """What the repository gives back of the spans' traces."""
    found = {}
    repository = TraceRepository(pool)
    for trace_id in {row["trace_id"] for row in rows}:
        for span in repository.get_trace_by_id(trace_id).spans:
            found[span.trace_id.hex, span.span_id] = [span.input, span.output, span.attributes]
    return found


def seen_by_sql(url: str) -> dict[tuple[str, str], Any]:
    """What the view gives back of all spans."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT trace_id, span_id, input, output, attributes FROM span_content").fetchall()
    return {(row[0].hex, bytes(row[1]).hex()): list(row[2:]) for row in rows}


def stored_messages(url: str) -> list[Any]:
    """Every message that is stored once, as often as it is."""
    query = "SELECT message FROM message_packs, jsonb_array_elements(messages) AS message WHERE message <> 'null'"
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query)]


def different(rows: Sequence[Row]) -> int:
    """How many different messages and attributes some conversations share out."""
    texts = set()
    for row in rows:
        for said in (*row["input"], *row["output"]):
            texts.add(json.dumps({name: value for name, value in said.items() if name != "finish_reason"}))
        texts.add(json.dumps(row["attributes"]["gen_ai.tool.definitions"]))
    return len(texts)
