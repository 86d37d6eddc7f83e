"""The guide to clients says what the table of conventions says."""

from __future__ import annotations

from pathlib import Path

from observatory_storage.models.metric import METRIC_TYPES, TEMPORALITIES
from observatory_storage.otlp import GENAI_EVENT_NAMES
from observatory_storage.otlp.content import Content, Flattened, Joined
from observatory_storage.otlp.conventions import CLIENTS, COLUMNS, CONTENT, FIRST_TOKEN_EVENTS
from observatory_storage.otlp.log_records import EVENT_NAME_KEYS, KEPT
from observatory_storage.otlp.vocabulary import MODEL_CALLS

GUIDE = Path(__file__).parent.parent / "docs" / "clients.md"


def tables() -> str:
    """The table of each client: its attributes for each column, in order of preference."""
    return "\n\n".join(f"### {client}\n\n{table(client)}" for client in CLIENTS)


def table(client: str) -> str:
    keys = {
        column: [source.key for source in sources if source.client == client] for column, sources in COLUMNS.items()
    } | {
        column: [name(content) for content in contents if content.client == client]
        for column, contents in CONTENT.items()
    }
    rows = [f"| `{column}` | {', '.join(f'`{key}`' for key in found)} |" for column, found in keys.items() if found]
    return "\n".join(["| column | attributes |", "| --- | --- |", *rows])


def name(content: Content) -> str:
    if isinstance(content, Flattened):
        return f"{content.prefix}.<n>.…"
    if isinstance(content, Joined):
        return f"{content.prefix}{{{','.join(content.names)}}}"
    return content.key


def test_the_guide_holds_the_tables() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert tables() in guide, f"docs/clients.md should hold:\n\n{tables()}"


def test_the_guide_names_model_calls_and_first_token_events() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for word in MODEL_CALLS | FIRST_TOKEN_EVENTS:
        assert f"`{word}`" in guide


def test_the_guide_names_what_metrics_and_logs_have() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    kept = [f"{KEPT}{column}" for column in ("trace_id", "span_id", "severity_number")]
    for word in (*GENAI_EVENT_NAMES, *EVENT_NAME_KEYS, *kept, *TEMPORALITIES, "counter"):
        assert f"`{word}`" in guide
    for word in METRIC_TYPES:
        assert word.replace("_", " ") in guide
