"""Clients of which there is no capture: their attributes, as their sources write them, fill the typed columns."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from observatory_storage.models.rows import SpanRow
from tests.otlp_requests import START, decode_one

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


def facts(span: SpanRow, *columns: str) -> tuple[Any, ...]:
    return tuple(span.get(column) for column in columns)


def tokens(span: SpanRow) -> tuple[Any, ...]:
    return facts(
        span,
        "input_tokens",
        "output_tokens",
        "cached_input_tokens",
        "cache_write_input_tokens",
        "reasoning_tokens",
        "total_tokens",
    )


class TestLangfuse:
    GENERATION: ClassVar[dict[str, Any]] = {
        "langfuse.observation.type": "generation",
        "langfuse.observation.model.name": "gpt-4o",
        "langfuse.observation.input": '[{"role": "user", "content": "hi"}]',
        "langfuse.observation.output": "hello",
        "langfuse.observation.usage_details": json.dumps(
            {
                "prompt_tokens": 1117,
                "completion_tokens": 146,
                "total_tokens": 1263,
                "prompt_tokens_details": {"cached_tokens": 1024},
                "completion_tokens_details": {"reasoning_tokens": 128},
            }
        ),
        "langfuse.observation.cost_details": '{"input": 0.0028, "output": 0.00146}',
        "langfuse.observation.completion_start_time": '"2023-11-14T22:13:20.250000Z"',
        "langfuse.observation.metadata.finish_reason": '"stop"',
        "langfuse.environment": "staging",
        "langfuse.trace.tags": ["a", "b"],
        "user.id": "user-42",
        "session.id": "sess-7",
    }

    def test_generation(self) -> None:
        span = decode_one(self.GENERATION)
        assert facts(span, "operation", "counts_usage", "model", "provider") == ("chat", True, "gpt-4o", None)
        assert tokens(span) == (1117, 146, 1024, None, 128, 1263)
        assert facts(span, "input_cost_usd", "output_cost_usd", "cost_usd") == (
            Decimal("0.0028"),
            Decimal("0.00146"),
            Decimal("0.00426"),
        )
        assert facts(span, "ttft_us", "finish_reason", "environment") == (250_000, "stop", "staging")
        assert facts(span, "user_id", "session_id", "tags") == ("user-42", "sess-7", ["a", "b"])
        assert facts(span, "input", "output") == ([{"role": "user", "content": "hi"}], "hello")

    def test_its_split_counts_are_summed(self) -> None:
        usage = {"input": 93, "input_cached_tokens": 1024, "output": 18, "output_reasoning": 128, "total": 1263}
        span = decode_one(self.GENERATION | {"langfuse.observation.usage_details": json.dumps(usage)})
        assert tokens(span) == (1117, 146, 1024, None, 128, 1263)

    def test_its_priority_tier_is_no_part_of_the_sum(self) -> None:
        usage = json.dumps({"input": 100, "input_priority": 100, "output": 20, "output_priority_tokens": 20})
        span = decode_one(self.GENERATION | {"langfuse.observation.usage_details": usage})
        assert tokens(span) == (100, 20, None, None, None, 120)

    def test_anthropics_own_counts_are_summed(self) -> None:
        usage = {
            "input_tokens": 2000,
            "output_tokens": 5,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 80,
        }
        span = decode_one(self.GENERATION | {"langfuse.observation.usage_details": json.dumps(usage)})
        assert tokens(span) == (3080, 5, 1000, 80, None, 3085)

    @pytest.mark.parametrize(
        ("kind", "operation"),
        [
            ("span", None),
            ("chain", None),
            ("agent", "invoke_agent"),
            ("tool", "execute_tool"),
            ("retriever", "retrieval"),
        ],
    )
    def test_other_observations_do_not_count(self, kind: str, operation: str | None) -> None:
        span = decode_one(self.GENERATION | {"langfuse.observation.type": kind})
        assert facts(span, "operation", "counts_usage") == (operation, False)


class TestLogfireAndPydanticAi:
    CALL: ClassVar[dict[str, Any]] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.usage.input_tokens": 1117,
        "gen_ai.usage.output_tokens": 146,
        "gen_ai.response.finish_reasons": '["stop"]',
        "gen_ai.usage.raw": json.dumps(
            {
                "prompt_tokens": 1117,
                "prompt_tokens_details": {"cached_tokens": 1024},
                "completion_tokens_details": {"reasoning_tokens": 128},
            }
        ),
        "operation.cost": 0.0042525,
        "logfire.span_type": "span",
    }

    def test_call(self) -> None:
        span = decode_one(self.CALL)
        assert tokens(span) == (1117, 146, 1024, None, 128, 1263)
        assert facts(span, "cost_usd", "finish_reason", "counts_usage") == (Decimal("0.0042525"), "stop", True)

    def test_a_pending_span_is_no_call(self) -> None:
        span = decode_one(self.CALL | {"logfire.span_type": "pending_span"})
        assert facts(span, "operation", "counts_usage") == (None, False)

    def test_the_sum_on_an_agent_does_not_count(self) -> None:
        span = decode_one(
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.aggregated_usage.input_tokens": 200,
                "gen_ai.aggregated_usage.output_tokens": 20,
                "pydantic_ai.all_messages": '[{"role": "user"}]',
                "final_result": '{"city": "Paris"}',
                "gen_ai.conversation.id": "conv-9",
            }
        )
        assert facts(span, "input_tokens", "output_tokens", "counts_usage") == (200, 20, False)
        assert facts(span, "input", "output", "session_id") == ([{"role": "user"}], {"city": "Paris"}, "conv-9")

    def test_an_agent_of_older_versions_does_not_count(self) -> None:
        span = decode_one({"agent_name": "a", "model_name": "gpt-4o", "gen_ai.usage.input_tokens": 3})
        assert facts(span, "operation", "counts_usage") == (None, False)

    def test_details(self) -> None:
        details = {"gen_ai.usage.details.cache_read_tokens": 10, "gen_ai.usage.details.reasoning_tokens": 7}
        span = decode_one(CHAT | {"gen_ai.usage.input_tokens": 50, "gen_ai.usage.output_tokens": 9} | details)
        assert tokens(span) == (50, 9, 10, None, 7, 59)


class TestLiteLlm:
    CALL: ClassVar[dict[str, Any]] = {
        "gen_ai.operation.name": "chat",
        "llm.request.type": "completion",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.usage.input_tokens": 1117,
        "gen_ai.usage.output_tokens": 146,
        "gen_ai.usage.total_tokens": 1263,
        "gen_ai.cost.input_cost": 0.0028,
        "gen_ai.cost.output_cost": 0.00146,
        "gen_ai.cost.total_cost": 0.00426,
        "gen_ai.response.finish_reasons": '["tool_calls"]',
        "litellm.call_id": "c-1",
        "llm.user": "user-42",
        "metadata.user_api_key_user_id": "",
        "metadata.usage_object": "{'completion_tokens': 146, 'prompt_tokens_details': "
        "PromptTokensDetailsWrapper(audio_tokens=None, cached_tokens=1024), "
        "'completion_tokens_details': {'reasoning_tokens': 128}}",
    }

    def test_call(self) -> None:
        span = decode_one(self.CALL)
        assert tokens(span) == (1117, 146, 1024, None, 128, 1263)
        assert facts(span, "cost_usd", "finish_reason", "user_id") == (Decimal("0.00426"), "tool_call", "user-42")

    def test_without_content_the_operation_is_the_call_type(self) -> None:
        silent = {key: value for key, value in self.CALL.items() if key != "gen_ai.operation.name"}
        assert decode_one(silent)["operation"] == "chat"
        # The same word of OpenLLMetry means OpenAI's older interface.
        openllmetry = {key: value for key, value in silent.items() if key != "litellm.call_id"}
        assert decode_one(openllmetry)["operation"] == "text_completion"

    @pytest.mark.parametrize(
        ("sent", "operation"), [("acompletion", "chat"), ("aembedding", "embeddings"), ("aresponses", "chat")]
    )
    def test_call_types_as_operations(self, sent: str, operation: str) -> None:
        span = decode_one(self.CALL | {"gen_ai.operation.name": sent})
        assert facts(span, "operation", "counts_usage") == (operation, True)


class TestVercel:
    CALL: ClassVar[dict[str, Any]] = {
        "ai.operationId": "ai.streamText.doStream",
        "ai.model.provider": "openai.chat",
        "ai.model.id": "gpt-4o",
        "gen_ai.system": "openai.chat",
        "gen_ai.request.model": "gpt-4o",
        "ai.response.model": "gpt-4o-2024-08-06",
        "ai.response.text": '{"not": "parsed"}',
        "ai.response.toolCalls": '[{"toolName": "get_weather"}]',
        "ai.response.finishReason": "tool-calls",
        "ai.response.msToFirstChunk": 56.75,
        "ai.prompt.messages": '[{"role": "user", "content": "hi"}]',
        "ai.prompt.tools": ['{"type": "function"}'],
        "ai.usage.inputTokens": 1117,
        "ai.usage.outputTokens": 146,
        "ai.usage.totalTokens": 1263,
        "ai.usage.cachedInputTokens": 1024,
        "ai.usage.reasoningTokens": 128,
        "ai.telemetry.metadata.userId": "user-42",
        "ai.telemetry.metadata.sessionId": "sess-7",
    }

    def test_call(self) -> None:
        span = decode_one(self.CALL)
        assert facts(span, "operation", "counts_usage", "provider", "model") == ("chat", True, "openai", "gpt-4o")
        assert tokens(span) == (1117, 146, 1024, None, 128, 1263)
        assert facts(span, "finish_reason", "ttft_us", "response_model") == ("tool_call", 56_750, "gpt-4o-2024-08-06")
        assert facts(span, "user_id", "session_id") == ("user-42", "sess-7")
        assert span["input"] == [{"role": "user", "content": "hi"}]
        assert span["output"] == {"text": '{"not": "parsed"}', "toolCalls": [{"toolName": "get_weather"}]}
        assert (span["attributes"] or {})["ai.prompt.tools"] == ['{"type": "function"}']

    @pytest.mark.parametrize(
        ("name", "operation"),
        [("ai.streamText", "invoke_agent"), ("ai.generateObject", "invoke_agent"), ("ai.embedMany", None)],
    )
    def test_parents_repeat_usage_and_do_not_count(self, name: str, operation: str | None) -> None:
        span = decode_one(self.CALL | {"ai.operationId": name})
        assert facts(span, "operation", "counts_usage", "input_tokens") == (operation, False, 1117)

    def test_tool_call(self) -> None:
        attributes = {"ai.operationId": "ai.toolCall", "ai.toolCall.args": '{"a": 1}', "ai.toolCall.result": "42"}
        span = decode_one(attributes)
        # A number as text stays text: nobody can tell that it was meant as a number.
        assert facts(span, "operation", "input", "output") == ("execute_tool", {"a": 1}, "42")

    def test_embedding(self) -> None:
        attributes = {"ai.operationId": "ai.embed.doEmbed", "ai.values": ['"a"', '"b"'], "ai.usage.tokens": 8}
        span = decode_one(attributes | {"ai.model.id": "e"})
        assert facts(span, "operation", "input", "input_tokens", "counts_usage") == ("embeddings", ["a", "b"], 8, True)

    def test_before_version_6_anthropic_counted_the_cache_apart(self) -> None:
        counts = {"ai.usage.inputTokens": 1000, "ai.usage.outputTokens": 5, "ai.usage.cachedInputTokens": 900}
        old = {"ai.operationId": "ai.generateText.doGenerate", "gen_ai.system": "anthropic.messages"} | counts
        assert decode_one(old)["input_tokens"] == 1900
        assert decode_one(old | {"ai.usage.inputTokenDetails.noCacheTokens": 100})["input_tokens"] == 1000


class TestOpenLlmetry:
    def test_older_flattened_messages(self) -> None:
        span = decode_one(
            {
                "llm.request.type": "chat",
                "gen_ai.system": "OpenAI",
                "gen_ai.request.model": "gpt-4o",
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": "hi",
                "gen_ai.completion.0.role": "assistant",
                "gen_ai.completion.0.content": "hello",
                "gen_ai.completion.0.finish_reason": "stop",
                "gen_ai.usage.prompt_tokens": 3,
                "gen_ai.usage.completion_tokens": 4,
                "llm.usage.total_tokens": 7,
                "traceloop.association.properties.session_id": "sess-7",
                "traceloop.association.properties.user_id": "user-42",
            }
        )
        assert facts(span, "operation", "provider", "finish_reason") == ("chat", "openai", "stop")
        assert tokens(span) == (3, 4, None, None, None, 7)
        assert span["input"] == [{"role": "user", "content": "hi"}]
        assert span["output"] == [{"role": "assistant", "content": "hello", "finish_reason": "stop"}]
        assert facts(span, "user_id", "session_id") == ("user-42", "sess-7")

    @pytest.mark.parametrize(
        ("kind", "operation"), [("workflow", "invoke_workflow"), ("task", None), ("agent", "invoke_agent")]
    )
    def test_decorated_functions(self, kind: str, operation: str | None) -> None:
        span = decode_one({"traceloop.span.kind": kind, "traceloop.entity.input": '{"args": [1]}'})
        assert facts(span, "operation", "counts_usage", "input") == (operation, False, {"args": [1]})


class TestOpenInference:
    def test_a_chain_with_usage_does_not_count(self) -> None:
        attributes = {"openinference.span.kind": "CHAIN", "llm.model_name": "m", "llm.token_count.prompt": 5}
        assert facts(decode_one(attributes), "operation", "counts_usage") == (None, False)

    def test_retrieved_documents(self) -> None:
        attributes = {
            "openinference.span.kind": "RETRIEVER",
            "input.value": "query",
            "retrieval.documents.0.document.content": "one",
            "retrieval.documents.1.document.content": "two",
            "retrieval.documents.1.document.score": 0.5,
        }
        span = decode_one(attributes)
        assert facts(span, "operation", "input") == ("retrieval", "query")
        assert span["output"] == [{"content": "one"}, {"content": "two", "score": 0.5}]

    def test_host_and_maker_of_the_model(self) -> None:
        attributes = {"openinference.span.kind": "LLM", "llm.provider": "azure", "llm.system": "openai"}
        assert decode_one(attributes)["provider"] == "azure.ai.openai"

    def test_cost(self) -> None:
        span = decode_one({"llm.cost.prompt": 0.25, "llm.cost.completion": 0.5, "llm.cost.total": 0.75})
        assert facts(span, "input_cost_usd", "output_cost_usd", "cost_usd") == (
            Decimal("0.25"),
            Decimal("0.5"),
            Decimal("0.75"),
        )


def test_a_stream_without_a_duration_uses_its_first_chunk() -> None:
    events = [
        {"timeUnixNano": START + 40_000_000, "name": "gen_ai.content.completion.chunk"},
        {"timeUnixNano": START + 50_000_000, "name": "gen_ai.content.completion.chunk"},
    ]
    assert decode_one(CHAT, events=events)["ttft_us"] == 40_000
    early = [{"timeUnixNano": START - 1000, "name": "gen_ai.content.completion.chunk"}]
    assert decode_one(CHAT, events=early)["ttft_us"] is None
