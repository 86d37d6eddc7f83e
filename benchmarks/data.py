"""Spans as agents leave them, for benchmarks: seeded, skewed, of about 1.6 kB in the COPY stream.

Shapes and shares follow recorded agent runs: of 20 spans one is the agent's, 13 call a model, 6 run a tool. Sixteen
agents work at a time, and spans arrive as they end, as exporters send them: the root of a trace last. Lengths and the
pauses between requests scatter as recorded ones do (`benchmarks.distributions`); models, users and their sessions are
as unevenly popular as in real traffic. With `whole` each call of a model carries the whole conversation so far behind a
long system prompt, as real agents send it; without, its latest message alone.
"""

from __future__ import annotations

import datetime as dt
import heapq
import random
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Final

from benchmarks.distributions import Distribution, Zipf, recorded
from observatory_storage.identity import content_id
from observatory_storage.models import EventRow, ResourceRow, SpanRow

SPANS_PER_TRACE: Final = 20
# Models with their share and their prices in millionths of a dollar for a thousand tokens.
_MODELS: Final = (
    ("openai", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", 55, 150, 600),
    ("openai", "gpt-4o", "gpt-4o-2024-08-06", 20, 2_500, 10_000),
    ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 15, 3_000, 15_000),
    ("google", "gemini-2.5-flash", "gemini-2.5-flash", 7, 300, 2_500),
    ("mistral", "mistral-large-latest", "mistral-large-2411", 3, 2_000, 6_000),
)
_SERVICES: Final = ("support-agent", "booking-agent", "search", "batch-evaluation")
_TOOLS: Final = ("get_reservation_details", "search_direct_flight", "calculate", "get_user_details", "think")
_PROSE: Final = (
    "the customer asked for a refund of the flight from Boston to Seattle because it was delayed by weather and "
    "would like to keep the seats in economy with two checked bags please confirm that the payment goes back to "
    "the gift card which was used for this reservation I can only help with one request at a time according to "
    "policy basic economy cannot be modified but can be cancelled within 24 hours of booking thank you"
)
# How many agents work at a time: so many traces are open at any moment.
_AGENTS: Final = 16
_USERS: Final = 2_000
# Of four traces three go on in the session of the one before.
_GOES_ON: Final = 0.75
_TEXTS: Final = 400
_POLICY: Final = "You are an airline agent. Follow the policy."
# As long as the recorded runs' system prompt.
_POLICY_CHARS: Final = 6_300
# What rows of 1.6 kB take of a recorded length: characters of a prompt, an answer, a tool's arguments and its result.
_PROMPT, _ANSWER, _NOTE, _RESULT = 730, 110, 180, 320


class SpanSource:
    """Makes spans, the same ones for one seed and start, as an OTLP decoder would; with `events` some have an event."""

    def __init__(
        self, seed: int = 1, start: dt.datetime | None = None, *, whole: bool = False, events: bool = False
    ) -> None:
        """Begin at `start`, which is today's midnight in UTC where it is left out."""
        self._dice = random.Random(seed)
        self._whole = whole
        self._events = events
        self._recorded = recorded()
        self._users = Zipf(_USERS)
        # All times lie in one day: one partition, as live traffic has.
        begin = start or dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self._resources = [_resource(name, host) for name in _SERVICES for host in range(3)]
        self._texts = [self._text() for _ in range(_TEXTS)]
        self._policy = self._texts[0][:_POLICY_CHARS] if whole else _POLICY
        self._arrivals = heapq.merge(*(self._agent(begin) for _ in range(_AGENTS)), key=_end)

    def spans(self, count: int) -> list[SpanRow]:
        """Return the next spans, in the order in which they end."""
        return list(islice(self._arrivals, count))

    def _agent(self, clock: dt.datetime) -> Iterator[SpanRow]:
        dice = self._dice
        user, session, history = "", "", list[dict[str, str]]()
        while True:
            clock += dt.timedelta(microseconds=int(self._recorded.gap_seconds.draw(dice) * 1e6) + 1)
            started = clock
            trace_id = dice.randbytes(16)
            root, *ids = (dice.randbytes(8) for _ in range(SPANS_PER_TRACE))
            resource = dice.choices(self._resources, range(len(self._resources), 0, -1))[0]
            if not session or dice.random() > _GOES_ON:
                user, session, history = f"user_{self._users.draw(dice):05d}", f"session_{trace_id.hex()[:12]}", []
            history.append({"role": "user", "content": self._some(self._recorded.prompt_tokens, _PROMPT)})
            # Each span is made when it ends, so that spans lie in memory in the order in which they come.
            for place, span_id in enumerate(ids, 1):
                operation = "chat" if place % 3 else "execute_tool"
                ended = clock + dt.timedelta(microseconds=int(dice.lognormvariate(13.0, 0.8)) + 1)
                row = self._span(operation, trace_id, span_id, root, resource, (user, session), clock, ended)
                row.update(self._model_call(history) if operation == "chat" else self._step(operation))
                history.append({"role": "tool" if operation == "execute_tool" else "assistant", "content": _said(row)})
                yield row
                clock = ended
            row = self._span("invoke_agent", trace_id, root, None, resource, (user, session), started, clock)
            row.update(self._step("invoke_agent"))
            yield row

    def _span(
        self,
        operation: str,
        trace_id: bytes,
        span_id: bytes,
        parent_id: bytes | None,
        resource: ResourceRow,
        who: tuple[str, str],
        start: dt.datetime,
        end: dt.datetime,
    ) -> SpanRow:
        status = self._dice.choices(("unset", "ok", "error"), (90, 7, 3))[0]
        row: SpanRow = {
            "resource": resource,
            "service_name": resource["service_name"],
            "environment": "production",
            "scope_name": "opentelemetry.instrumentation.genai.openai",
            "scope_version": "1.3b0",
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_span_id": parent_id,
            "name": operation,
            "kind": "client" if operation == "chat" else "internal",
            "start_time": start,
            "end_time": end,
            "duration_us": (end - start) // dt.timedelta(microseconds=1),
            "status": status,
            "flags": 256,
            "operation": operation,
            "user_id": who[0],
            "session_id": who[1],
            "counts_usage": operation == "chat",
        }
        if status == "error":
            row["status_message"] = "Error code: 429 - rate limit reached for requests"
        if self._events and (status == "error" or self._dice.random() < 0.1):
            row["events"] = [_event(end, status)]
        return row

    def _model_call(self, history: list[dict[str, str]]) -> SpanRow:
        dice = self._dice
        provider, model, response_model, _, price_in, price_out = dice.choices(_MODELS, [m[3] for m in _MODELS])[0]
        # What was said, before the answer of this call is added to it.
        said = history[:] if self._whole else [{"role": "user", "content": self._prompt()}]
        answer = self._some(self._recorded.answer_tokens, _ANSWER)
        tokens_in, tokens_out = int(self._recorded.prompt_tokens.draw(dice)), len(answer) // 4 + 8
        return {
            "name": f"chat {model}",
            "provider": provider,
            "model": model,
            "response_model": response_model,
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "cached_input_tokens": tokens_in // 2 if dice.random() < 0.3 else 0,
            "total_tokens": tokens_in + tokens_out,
            "cost_usd": Decimal(tokens_in * price_in + tokens_out * price_out).scaleb(-9),
            "ttft_us": int(dice.lognormvariate(12.2, 0.5)),
            "finish_reason": "stop" if dice.random() < 0.7 else "tool_calls",
            "input": [{"role": "system", "content": self._policy}, *said],
            "output": [{"role": "assistant", "content": answer}],
            "attributes": {
                "server.address": "api.example.com",
                "server.port": 443,
                "gen_ai.request.temperature": 0.2,
                "gen_ai.request.max_tokens": 1024,
                "gen_ai.response.id": f"chatcmpl-{dice.randbytes(15).hex()}",
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.request.is_stream": dice.random() < 0.5,
            },
        }

    def _step(self, operation: str) -> SpanRow:
        tool = self._dice.choice(_TOOLS)
        return {
            "name": f"{operation} {tool}" if operation == "execute_tool" else "invoke_agent airline",
            "input": {
                "arguments": {
                    "reservation_id": self._dice.randbytes(3).hex(),
                    "note": self._some(self._recorded.message_chars, _NOTE),
                }
            },
            "output": {"result": self._some(self._recorded.result_chars, _RESULT)},
            "attributes": {"gen_ai.tool.name": tool, "gen_ai.tool.call.id": f"call_{self._dice.randbytes(12).hex()}"},
        }

    def _text(self) -> str:
        text = " ".join(self._dice.choices(_PROSE.split(), k=2_000))
        return text.replace("flight", "flight «à bientôt»", 3) if self._dice.random() < 0.2 else text

    def _prompt(self) -> str:
        return self._some(self._recorded.prompt_tokens, _PROMPT)

    def _some(self, lengths: Distribution, median: int) -> str:
        """Text that scatters in length as recorded text does, around a median of so many characters."""
        length = min(int(lengths.draw(self._dice) / lengths.median * median) + 10, 6_000)
        text = self._dice.choice(self._texts)
        first = self._dice.randrange(max(1, len(text) - length))
        return text[first : first + length]


def _event(time: dt.datetime, status: str) -> EventRow:
    if status == "error":
        return {"timestamp": time, "name": "exception", "attributes": {"exception.type": "openai.RateLimitError"}}
    return {"timestamp": time, "name": "gen_ai.content.filtered", "attributes": {"filter": "none", "index": 0}}


def _said(row: SpanRow) -> str:
    """What a call or a tool adds to the conversation."""
    output: Any = row["output"]
    return str(output["result"] if isinstance(output, dict) else output[0]["content"])


def _end(span: SpanRow) -> dt.datetime:
    end = span["end_time"]
    assert end is not None
    return end


def bare(spans: list[SpanRow], project: str = "default") -> list[dict[str, Any]]:
    """Return the same spans as rows of trace_spans alone: the resource as its id."""
    ids = {id(span["resource"]): _resource_id(span["resource"], project) for span in spans}
    return [
        {
            **{k: v for k, v in span.items() if k not in ("resource", "events")},
            "project": project,
            "resource_id": ids[id(span["resource"])],
        }
        for span in spans
    ]


def _resource(service: str, host: int) -> ResourceRow:
    return {
        "service_name": service,
        "attributes": {
            "service.name": service,
            "service.version": "4.2.0",
            "host.name": f"{service}-{host}.internal",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": "1.39.0",
        },
    }


def _resource_id(resource: ResourceRow | None, project: str) -> bytes:
    assert resource is not None
    return content_id("resource", project, resource.get("schema_url"), resource["attributes"])
