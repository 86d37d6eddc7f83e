"""`LlmSpan` and its parts: what an application says of a call of a language model.

Nothing of it is lost on its way to the database and back; `observatory_storage.llm.stored` says where what has
no column is kept. What PostgreSQL refuses is repaired when the models are made, as `observatory_storage.text`
says, so that they show what will be stored. One thing jsonb changes: a float from 1e16 on, among attributes or
in additional fields, comes back as an integer.
"""

from observatory_storage.llm.parts import (
    ChatInput,
    ChatMessage,
    ContentPart,
    Cost,
    JsonInput,
    Latency,
    LlmEvent,
    LlmInput,
    LlmMetadata,
    LlmOutput,
    MultimodalInput,
    TextInput,
    TokenUsage,
    ToolCall,
)
from observatory_storage.llm.span import LlmSpan

__all__ = [
    "ChatInput",
    "ChatMessage",
    "ContentPart",
    "Cost",
    "JsonInput",
    "Latency",
    "LlmEvent",
    "LlmInput",
    "LlmMetadata",
    "LlmOutput",
    "LlmSpan",
    "MultimodalInput",
    "TextInput",
    "TokenUsage",
    "ToolCall",
]
