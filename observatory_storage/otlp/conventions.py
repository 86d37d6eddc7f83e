"""Which attribute of which client fills which column: the one table of all conventions.

For each column the attributes stand in order of preference; the first whose value says something wins, and
stays in the span's attributes. To teach the library another client, add its attributes here, its words to
`vocabulary`, and run the tests, which print the table for `docs/clients.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from observatory_storage.otlp import usage
from observatory_storage.otlp.content import Content, Flattened, Joined, Whole
from observatory_storage.otlp.facts import (
    Reader,
    count,
    finish_reason,
    instant,
    member,
    milliseconds,
    operation,
    provider,
    seconds,
    tags,
    text,
    usd,
    word,
)
from observatory_storage.otlp.vocabulary import (
    LANGFUSE_TYPES,
    LITELLM_CALLS,
    LOGFIRE_SPAN_TYPES,
    OPENINFERENCE_KINDS,
    TRACELOOP_KINDS,
    TRACELOOP_REQUESTS,
    VERCEL_OPERATIONS,
)

OTEL: Final = "OpenTelemetry GenAI"
OPENINFERENCE: Final = "OpenInference"
OPENLLMETRY: Final = "OpenLLMetry"
LANGFUSE: Final = "Langfuse"
LOGFIRE: Final = "Logfire and Pydantic AI"
LITELLM: Final = "LiteLLM"
VERCEL: Final = "Vercel AI SDK"
OTHERS: Final = "Others"

CLIENTS: Final = (OTEL, OPENINFERENCE, OPENLLMETRY, LANGFUSE, LOGFIRE, LITELLM, VERCEL, OTHERS)


@dataclass(frozen=True, slots=True)
class Source:
    """An attribute that may fill a column. With `beside`, it counts only where that attribute is present as well."""

    client: str
    key: str
    read: Reader
    beside: str | None = None


def _each(client: str, read: Reader, *keys: str) -> tuple[Source, ...]:
    return tuple(Source(client, key, read) for key in keys)


COLUMNS: Final[Mapping[str, tuple[Source, ...]]] = {
    "operation": (
        Source(LOGFIRE, "logfire.span_type", word(LOGFIRE_SPAN_TYPES)),
        Source(OTEL, "gen_ai.operation.name", operation),
        Source(VERCEL, "ai.operationId", word(VERCEL_OPERATIONS)),
        Source(OPENINFERENCE, "openinference.span.kind", word(OPENINFERENCE_KINDS)),
        Source(LANGFUSE, "langfuse.observation.type", word(LANGFUSE_TYPES)),
        Source(OPENLLMETRY, "traceloop.span.kind", word(TRACELOOP_KINDS)),
        Source(LITELLM, "llm.request.type", word(LITELLM_CALLS), beside="litellm.call_id"),
        Source(OPENLLMETRY, "llm.request.type", word(TRACELOOP_REQUESTS)),
    ),
    "provider": (
        *_each(OTEL, provider, "gen_ai.provider.name", "gen_ai.system"),
        *_each(OPENINFERENCE, provider, "llm.provider", "llm.system", "decision.provider", "decision.system"),
        Source(VERCEL, "ai.model.provider", provider),
    ),
    "model": (
        Source(OTEL, "gen_ai.request.model", text),
        *_each(OPENINFERENCE, text, "llm.request.model_name", "decision.request.model_name"),
        Source(OPENINFERENCE, "llm.invocation_parameters", member("model", text)),
        Source(OPENINFERENCE, "embedding.invocation_parameters", member("model", text)),
        *_each(OPENINFERENCE, text, "llm.model_name", "embedding.model_name", "reranker.model_name"),
        Source(OPENINFERENCE, "decision.model_name", text),
        Source(OPENLLMETRY, "llm.request.model", text),
        Source(LANGFUSE, "langfuse.observation.model.name", text),
        Source(VERCEL, "ai.model.id", text),
        # Better the model that answered than none.
        Source(OTEL, "gen_ai.response.model", text),
        Source(OPENINFERENCE, "llm.response.model_name", text),
        Source(OPENLLMETRY, "llm.response.model", text),
    ),
    "response_model": (
        Source(OTEL, "gen_ai.response.model", text),
        *_each(OPENINFERENCE, text, "llm.response.model_name", "decision.response.model_name"),
        *_each(OPENINFERENCE, text, "llm.model_name", "embedding.model_name"),
        Source(OPENLLMETRY, "llm.response.model", text),
        Source(VERCEL, "ai.response.model", text),
    ),
    "input_tokens": (
        *_each(OTEL, count, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
        *_each(OPENINFERENCE, count, "llm.token_count.prompt", "decision.token_count.input"),
        Source(OPENLLMETRY, "llm.usage.prompt_tokens", count),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.input_tokens),
        Source(LOGFIRE, "gen_ai.aggregated_usage.input_tokens", count),
        *_each(VERCEL, count, "ai.usage.inputTokens", "ai.usage.promptTokens", "ai.usage.tokens"),
    ),
    "output_tokens": (
        *_each(OTEL, count, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
        *_each(OPENINFERENCE, count, "llm.token_count.completion", "decision.token_count.output"),
        Source(OPENLLMETRY, "llm.usage.completion_tokens", count),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.output_tokens),
        Source(LOGFIRE, "gen_ai.aggregated_usage.output_tokens", count),
        *_each(VERCEL, count, "ai.usage.outputTokens", "ai.usage.completionTokens"),
    ),
    "cached_input_tokens": (
        Source(OTEL, "gen_ai.usage.cache_read.input_tokens", count),
        Source(OPENINFERENCE, "llm.token_count.prompt_details.cache_read", count),
        Source(OPENINFERENCE, "llm.token_count.prompt_details.cache_input", count),
        *_each(OPENLLMETRY, count, "gen_ai.usage.cache_read_input_tokens", "llm.usage.cache_read_input_tokens"),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.cached_input_tokens),
        Source(LOGFIRE, "gen_ai.usage.raw", usage.cached_input_tokens),
        *_each(LOGFIRE, count, "gen_ai.usage.details.cache_read_tokens", "gen_ai.usage.details.cached_tokens"),
        Source(LOGFIRE, "gen_ai.aggregated_usage.cache_read.input_tokens", count),
        Source(LITELLM, "metadata.usage_object", usage.in_repr("cache_read_input_tokens", "cached_tokens")),
        *_each(VERCEL, count, "ai.usage.inputTokenDetails.cacheReadTokens", "ai.usage.cachedInputTokens"),
    ),
    "cache_write_input_tokens": (
        *_each(OTEL, count, "gen_ai.usage.cache_write.input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
        Source(OPENINFERENCE, "llm.token_count.prompt_details.cache_write", count),
        Source(OPENLLMETRY, "gen_ai.usage.cache_creation_input_tokens", count),
        Source(OPENLLMETRY, "llm.usage.cache_creation_input_tokens", count),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.cache_write_input_tokens),
        Source(LOGFIRE, "gen_ai.usage.raw", usage.cache_write_input_tokens),
        Source(LOGFIRE, "gen_ai.usage.details.cache_write_tokens", count),
        Source(LOGFIRE, "gen_ai.aggregated_usage.cache_creation.input_tokens", count),
        Source(LITELLM, "metadata.usage_object", usage.in_repr("cache_creation_input_tokens")),
        Source(VERCEL, "ai.usage.inputTokenDetails.cacheWriteTokens", count),
    ),
    "reasoning_tokens": (
        Source(OTEL, "gen_ai.usage.reasoning.output_tokens", count),
        Source(OPENINFERENCE, "llm.token_count.completion_details.reasoning", count),
        *_each(OPENLLMETRY, count, "gen_ai.usage.reasoning_tokens", "llm.usage.reasoning_tokens"),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.reasoning_tokens),
        Source(LOGFIRE, "gen_ai.usage.raw", usage.reasoning_tokens),
        Source(LOGFIRE, "gen_ai.usage.details.reasoning_tokens", count),
        Source(LOGFIRE, "gen_ai.aggregated_usage.details.reasoning_tokens", count),
        Source(LITELLM, "metadata.usage_object", usage.in_repr("reasoning_tokens")),
        *_each(VERCEL, count, "ai.usage.outputTokenDetails.reasoningTokens", "ai.usage.reasoningTokens"),
    ),
    "total_tokens": (
        Source(OPENINFERENCE, "llm.token_count.total", count),
        *_each(OPENLLMETRY, count, "gen_ai.usage.total_tokens", "llm.usage.total_tokens"),
        Source(LANGFUSE, "langfuse.observation.usage_details", usage.total_tokens),
        Source(VERCEL, "ai.usage.totalTokens", count),
    ),
    "input_cost_usd": (
        Source(OPENINFERENCE, "llm.cost.prompt", usd),
        Source(LANGFUSE, "langfuse.observation.cost_details", member("input", usd)),
        *_each(LITELLM, usd, "gen_ai.cost.input_cost", "litellm.cost.input"),
    ),
    "output_cost_usd": (
        Source(OPENINFERENCE, "llm.cost.completion", usd),
        Source(LANGFUSE, "langfuse.observation.cost_details", member("output", usd)),
        *_each(LITELLM, usd, "gen_ai.cost.output_cost", "litellm.cost.output"),
    ),
    "cost_usd": (
        Source(OPENINFERENCE, "llm.cost.total", usd),
        Source(LANGFUSE, "langfuse.observation.cost_details", usage.total_cost),
        Source(LOGFIRE, "operation.cost", usd),
        *_each(LITELLM, usd, "gen_ai.cost.total_cost", "litellm.cost.total"),
        Source(OTHERS, "gen_ai.usage.cost", usd),
    ),
    "ttft_us": (
        Source(OTEL, "gen_ai.response.time_to_first_chunk", seconds),
        Source(LANGFUSE, "langfuse.observation.completion_start_time", instant),
        Source(VERCEL, "gen_ai.client.operation.time_to_first_chunk", seconds),
        *_each(VERCEL, milliseconds, "ai.response.msToFirstChunk", "ai.stream.msToFirstChunk"),
        Source(OTHERS, "gen_ai.server.time_to_first_token", seconds),
    ),
    "finish_reason": (
        Source(OTEL, "gen_ai.response.finish_reasons", finish_reason),
        Source(OPENINFERENCE, "llm.finish_reason", finish_reason),
        *_each(OPENLLMETRY, finish_reason, "gen_ai.response.finish_reason", "gen_ai.response.stop_reason"),
        *_each(OPENLLMETRY, finish_reason, "llm.response.finish_reason", "llm.response.stop_reason"),
        Source(OPENLLMETRY, "gen_ai.completion.0.finish_reason", finish_reason),
        Source(LANGFUSE, "langfuse.observation.metadata.finish_reason", finish_reason),
        Source(VERCEL, "ai.response.finishReason", finish_reason),
    ),
    "user_id": (
        *_each(OTEL, text, "user.id", "enduser.id"),
        Source(LANGFUSE, "langfuse.user.id", text),
        Source(OPENLLMETRY, "traceloop.association.properties.user_id", text),
        Source(OPENLLMETRY, "gen_ai.user", text),
        Source(LITELLM, "litellm.end_user.id", text),
        Source(LITELLM, "llm.user", text),
        *_each(LITELLM, text, "metadata.user_api_key_end_user_id", "metadata.user_api_key_user_id"),
        Source(VERCEL, "ai.telemetry.metadata.userId", text),
    ),
    "session_id": (
        *_each(OTEL, text, "session.id", "gen_ai.conversation.id"),
        Source(LANGFUSE, "langfuse.session.id", text),
        Source(OPENLLMETRY, "traceloop.association.properties.session_id", text),
        Source(VERCEL, "ai.telemetry.metadata.sessionId", text),
    ),
    "environment": (
        Source(LANGFUSE, "langfuse.environment", text),
        *_each(OTEL, text, "deployment.environment.name", "deployment.environment"),
    ),
    "tags": (
        Source(OPENINFERENCE, "tag.tags", tags),
        Source(OPENLLMETRY, "traceloop.association.properties.tags", tags),
        Source(LANGFUSE, "langfuse.trace.tags", tags),
        Source(LOGFIRE, "logfire.tags", tags),
        Source(VERCEL, "ai.telemetry.metadata.tags", tags),
    ),
}

CONTENT: Final[Mapping[str, tuple[Content, ...]]] = {
    "input": (
        Whole(OTEL, "gen_ai.input.messages"),
        Whole(OTEL, "gen_ai.tool.call.arguments"),
        Whole(OTEL, "gen_ai.retrieval.query.text"),
        Flattened(OPENINFERENCE, "llm.input_messages"),
        Flattened(OPENINFERENCE, "llm.prompts"),
        Flattened(OPENLLMETRY, "gen_ai.prompt"),
        Whole(OTEL, "gen_ai.prompt"),
        Whole(OPENLLMETRY, "traceloop.entity.input"),
        Whole(LANGFUSE, "langfuse.observation.input"),
        Whole(LOGFIRE, "pydantic_ai.all_messages"),
        Whole(LOGFIRE, "all_messages_events"),
        Whole(LOGFIRE, "tool_arguments"),
        Whole(LOGFIRE, "request_data"),
        Whole(VERCEL, "ai.prompt.messages"),
        Whole(VERCEL, "ai.prompt"),
        Whole(VERCEL, "ai.toolCall.args"),
        Whole(VERCEL, "ai.values"),
        Whole(VERCEL, "ai.value"),
        Whole(VERCEL, "ai.documents"),
        Whole(OPENINFERENCE, "input.value", mime_key="input.mime_type"),
    ),
    "output": (
        Whole(OTEL, "gen_ai.output.messages"),
        Whole(OTEL, "gen_ai.tool.call.result"),
        Whole(OTEL, "gen_ai.retrieval.documents"),
        Flattened(OPENINFERENCE, "llm.output_messages"),
        Flattened(OPENINFERENCE, "llm.choices"),
        Flattened(OPENINFERENCE, "retrieval.documents"),
        Flattened(OPENINFERENCE, "reranker.output_documents"),
        Flattened(OPENLLMETRY, "gen_ai.completion"),
        Whole(OTEL, "gen_ai.completion"),
        Flattened(OPENLLMETRY, "llm.completions"),
        Whole(OPENLLMETRY, "traceloop.entity.output"),
        Whole(LANGFUSE, "langfuse.observation.output"),
        Whole(LOGFIRE, "final_result"),
        Whole(LOGFIRE, "tool_response"),
        Whole(LOGFIRE, "response_data"),
        Joined(VERCEL, "ai.response.", ("text", "reasoning", "toolCalls", "object")),
        Whole(VERCEL, "ai.toolCall.result"),
        Whole(VERCEL, "ai.embeddings"),
        Whole(VERCEL, "ai.embedding"),
        Whole(VERCEL, "ai.ranking"),
        Whole(OPENINFERENCE, "output.value", mime_key="output.mime_type"),
    ),
}

FIRST_TOKEN_EVENTS: Final = frozenset(
    {
        "First Token Stream Event",  # OpenInference
        "gen_ai.content.completion.chunk",  # OpenLLMetry, one for each chunk
        "llm.content.completion.chunk",
    }
)
"""Events whose time is that of the first token; `ttft_us` is taken from the first of them where no attribute has it."""

SERVICE_NAME: Final = "service.name"
PROJECT_KEYS: Final = ("observatory.project", "openinference.project.name")
ENVIRONMENT_KEYS: Final = ("deployment.environment.name", "deployment.environment")
"""Resource attributes that fill `project` and `environment`, in order of preference."""
