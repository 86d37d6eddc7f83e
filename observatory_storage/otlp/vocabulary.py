"""The words that clients use for operations, providers and finish reasons, and OpenTelemetry's word for each."""

from __future__ import annotations

from typing import Final

NO_OPERATION: Final = ""
"""Says that a span is known to be none of OpenTelemetry's operations, so that no other attribute is asked."""

MODEL_CALLS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings", "rerank", "decide"})
"""Operations that are calls of a model: their tokens and cost count. `rerank` and `decide` are not OpenTelemetry's."""

WRAPPERS: Final = frozenset(
    {
        "agent_step",
        "create_agent",
        "create_memory",
        "create_memory_store",
        "delete_memory",
        "delete_memory_store",
        "execute_task",
        "execute_tool",
        # The call that started the response counts; asking for it again repeats its usage.
        "fetch_response",
        "invoke_agent",
        "invoke_workflow",
        "plan",
        "retrieval",
        "search_memory",
        "update_memory",
        "upsert_memory",
    }
)
"""Operations that are no model calls: usage on such a span repeats that of calls below it."""

OPERATIONS: Final = {
    "completion": "text_completion",
    "completions": "text_completion",
    "atext_completion": "text_completion",
    "acompletion": "chat",
    "chat_completion": "chat",
    "chat.completions": "chat",
    "responses": "chat",
    "aresponses": "chat",
    "anthropic_messages": "chat",
    "llm_request": "chat",
    "agenerate_content": "generate_content",
    "image_generation": "generate_content",
    "aimage_generation": "generate_content",
    "speech": "generate_content",
    "aspeech": "generate_content",
    "transcription": "generate_content",
    "atranscription": "generate_content",
    "embedding": "embeddings",
    "aembedding": "embeddings",
    "arerank": "rerank",
    "vector_db_retrieve": "retrieval",
    "call_mcp_tool": "execute_tool",
}
"""Values of `gen_ai.operation.name` that are spelled otherwise; all others stay as they are."""

OPENINFERENCE_KINDS: Final = {
    "llm": "chat",
    "embedding": "embeddings",
    "retriever": "retrieval",
    "reranker": "rerank",
    "decision": "decide",
    "tool": "execute_tool",
    "agent": "invoke_agent",
    "chain": NO_OPERATION,
    "guardrail": NO_OPERATION,
    "evaluator": NO_OPERATION,
    "prompt": NO_OPERATION,
    "unknown": NO_OPERATION,
}

TRACELOOP_KINDS: Final = {
    "workflow": "invoke_workflow",
    "agent": "invoke_agent",
    "tool": "execute_tool",
    "task": NO_OPERATION,
}

TRACELOOP_REQUESTS: Final = {
    "chat": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
    "rerank": "rerank",
}

LITELLM_CALLS: Final = {
    "completion": "chat",
    "acompletion": "chat",
    "completion_with_retries": "chat",
    "responses": "chat",
    "aresponses": "chat",
    "text_completion": "text_completion",
    "atext_completion": "text_completion",
    "embedding": "embeddings",
    "aembedding": "embeddings",
    "rerank": "rerank",
    "arerank": "rerank",
    "call_mcp_tool": "execute_tool",
}

LANGFUSE_TYPES: Final = {
    "generation": "chat",
    "embedding": "embeddings",
    "retriever": "retrieval",
    "tool": "execute_tool",
    "agent": "invoke_agent",
    "span": NO_OPERATION,
    "event": NO_OPERATION,
    "chain": NO_OPERATION,
    "evaluator": NO_OPERATION,
    "guardrail": NO_OPERATION,
}

VERCEL_OPERATIONS: Final = {
    # The parents run a loop of model calls and tools, and repeat the sum of the usage below them.
    "ai.generatetext": "invoke_agent",
    "ai.streamtext": "invoke_agent",
    "ai.generateobject": "invoke_agent",
    "ai.streamobject": "invoke_agent",
    "ai.embed": NO_OPERATION,
    "ai.embedmany": NO_OPERATION,
    "ai.rerank": NO_OPERATION,
    "ai.generatetext.dogenerate": "chat",
    "ai.streamtext.dostream": "chat",
    "ai.generateobject.dogenerate": "chat",
    "ai.streamobject.dostream": "chat",
    "ai.embed.doembed": "embeddings",
    "ai.embedmany.doembed": "embeddings",
    "ai.rerank.dorerank": "rerank",
    "ai.toolcall": "execute_tool",
}

LOGFIRE_SPAN_TYPES: Final = {
    # Sent when a span starts, under an id of its own; the span itself follows.
    "pending_span": NO_OPERATION,
}

PROVIDERS: Final = {
    "anthropic": "anthropic",
    "aws": "aws.bedrock",
    "aws.bedrock": "aws.bedrock",
    "amazon": "aws.bedrock",
    "amazon-bedrock": "aws.bedrock",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "azure": "azure.ai.openai",
    "azure-openai": "azure.ai.openai",
    "azure.ai.openai": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "az.ai.openai": "azure.ai.openai",
    "azure.ai.inference": "azure.ai.inference",
    "azure_ai": "azure.ai.inference",
    "az.ai.inference": "azure.ai.inference",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "deepseek": "deepseek",
    "gcp.gemini": "gcp.gemini",
    "gemini": "gcp.gemini",
    "google-gla": "gcp.gemini",
    "google.generative-ai": "gcp.gemini",
    "gcp.gen_ai": "gcp.gen_ai",
    "google": "gcp.gen_ai",
    "google-genai": "gcp.gen_ai",
    "google_genai": "gcp.gen_ai",
    "gcp.vertex_ai": "gcp.vertex_ai",
    "google-vertex": "gcp.vertex_ai",
    "google.vertex": "gcp.vertex_ai",
    "google_vertexai": "gcp.vertex_ai",
    "vertex": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "groq": "groq",
    "ibm": "ibm.watsonx.ai",
    "ibm.watsonx.ai": "ibm.watsonx.ai",
    "watsonx": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "mistral_ai": "mistral_ai",
    "mistralai": "mistral_ai",
    "moonshot": "moonshot_ai",
    "moonshot_ai": "moonshot_ai",
    "moonshotai": "moonshot_ai",
    "openai": "openai",
    "text-completion-openai": "openai",
    "perplexity": "perplexity",
    "x_ai": "x_ai",
    "xai": "x_ai",
}
"""Providers by any of their names, in lower case; all others keep their own name in lower case."""

PROVIDER_SUFFIXES: Final = frozenset(
    {"chat", "completion", "completions", "embedding", "embeddings", "image", "messages", "responses"}
)
"""What the Vercel SDK writes after a provider and a dot, as in `openai.chat`."""

FINISH_REASONS: Final = {
    "stop": "stop",
    "complete": "stop",
    "completed": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "function_call": "tool_call",
    "tool-calls": "tool_call",
    "tool_call": "tool_call",
    "tool_calls": "tool_call",
    "tool_use": "tool_call",
    "blocklist": "content_filter",
    "content-filter": "content_filter",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "prohibited_content": "content_filter",
    "recitation": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "spii": "content_filter",
    "error": "error",
    "failed": "error",
    "malformed_function_call": "error",
}
"""OpenTelemetry's five reasons by any of their names, in lower case; all others stay as they are."""
