"""Values of attributes as typed facts: what is nonsense becomes null, what counts otherwise is counted by one rule."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from tests.otlp_requests import decode_one

CALL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


class TestTokens:
    @pytest.mark.parametrize("value", [-1, True, "many", 1.5, math.nan, 10**13, 10**30, "", [1], {"a": 1}, None])
    def test_nonsense_is_null_and_stays_an_attribute(self, value: Any) -> None:
        span = decode_one(CALL | {"gen_ai.usage.input_tokens": value})
        assert "input_tokens" not in span
        assert "gen_ai.usage.input_tokens" in (span["attributes"] or {})

    @pytest.mark.parametrize("value", [7, 7.0, "7"])
    def test_spellings(self, value: Any) -> None:
        assert decode_one(CALL | {"gen_ai.usage.input_tokens": value})["input_tokens"] == 7

    def test_a_second_name_serves_where_the_first_says_nothing(self) -> None:
        span = decode_one(CALL | {"gen_ai.usage.input_tokens": "?", "gen_ai.usage.prompt_tokens": 7})
        assert span["input_tokens"] == 7

    @pytest.mark.parametrize(
        ("sent", "counted"),
        [
            # (input, cached, written to the cache, output, reasoning, total) -> (input, output, total)
            ((100, 60, None, 20, 10, None), (100, 20, 120)),
            ((100, 60, None, 20, 10, 120), (100, 20, 120)),
            ((10, 60, 30, 20, None, None), (100, 20, 120)),
            ((100, None, None, 10, 50, None), (100, 60, 160)),
            ((100, 60, None, 50, 10, 160), (100, 60, 160)),
            ((100, 60, None, 50, 10, 210), (160, 50, 210)),
            ((100, 60, None, 50, 10, 220), (160, 60, 220)),
            ((100, 10, None, 50, 10, 160), (100, 60, 160)),
            ((100, None, None, 50, None, 400), (100, 50, 400)),
        ],
    )
    def test_parts_that_are_counted_apart_are_added(self, sent: tuple[Any, ...], counted: tuple[int, ...]) -> None:
        names = (
            "input_tokens",
            "cache_read.input_tokens",
            "cache_creation.input_tokens",
            "output_tokens",
            "reasoning.output_tokens",
            "total_tokens",
        )
        usage = {f"gen_ai.usage.{name}": value for name, value in zip(names, sent, strict=True) if value is not None}
        span = decode_one(CALL | usage)
        assert (span["input_tokens"], span["output_tokens"], span["total_tokens"]) == counted

    def test_parts_without_their_whole_invent_none(self) -> None:
        span = decode_one(CALL | {"gen_ai.usage.cache_read.input_tokens": 5, "gen_ai.usage.output_tokens": 2})
        assert "input_tokens" not in span
        assert span["total_tokens"] == 2


class TestFacts:
    @pytest.mark.parametrize(
        ("sent", "provider"),
        [
            ("openai", "openai"),
            ("OpenAI", "openai"),
            ("openai.responses", "openai"),
            ("azure-openai.chat", "azure.ai.openai"),
            ("az.ai.openai", "azure.ai.openai"),
            ("vertex.anthropic.messages", "gcp.vertex_ai"),
            ("google.generative-ai", "gcp.gemini"),
            ("amazon-bedrock", "aws.bedrock"),
            ("MistralAI", "mistral_ai"),
            ("xai.chat", "x_ai"),
            ("togetherai.chat", "togetherai"),
            ("my.own.server", "my.own.server"),
            ("Unknown", None),
            ("", None),
            (7, None),
        ],
    )
    def test_provider(self, sent: Any, provider: str | None) -> None:
        assert decode_one({"gen_ai.system": sent}).get("provider") == provider

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (["stop", "length"], "stop"),
            ('["tool_calls"]', "tool_call"),
            ("MAX_TOKENS", "length"),
            ("FinishReason.SAFETY", "content_filter"),
            ("end_turn", "stop"),
            ("pause_turn", "pause_turn"),
            ([], None),
            ("[]", None),
            ("", None),
            (7, None),
        ],
    )
    def test_finish_reason(self, sent: Any, reason: str | None) -> None:
        assert decode_one({"gen_ai.response.finish_reasons": sent}).get("finish_reason") == reason

    @pytest.mark.parametrize(
        ("sent", "cost"),
        [
            (0.1, Decimal("0.1")),
            (1e-7, Decimal("1E-7")),
            (2, Decimal(2)),
            ("0.25", Decimal("0.25")),
            (math.nan, None),
            (math.inf, None),
            ("NaN", None),
            (-0.5, None),
            (1e300, None),
            (True, None),
            ("free", None),
        ],
    )
    def test_cost(self, sent: Any, cost: Decimal | None) -> None:
        assert decode_one({"operation.cost": sent}).get("cost_usd") == cost

    @pytest.mark.parametrize(
        ("sent", "waited"), [(0.055239171, 55_239), (2, 2_000_000), ("0.5", 500_000), (-1, None), (math.nan, None)]
    )
    def test_time_to_first_token_in_seconds(self, sent: Any, waited: int | None) -> None:
        assert decode_one({"gen_ai.response.time_to_first_chunk": sent}).get("ttft_us") == waited

    @pytest.mark.parametrize(("sent", "tags"), [(["a", 1, ""], ["a", "1"]), ('["a"]', ["a"]), ("a", ["a"]), ([], None)])
    def test_tags(self, sent: Any, tags: Any) -> None:
        assert decode_one({"tag.tags": sent}).get("tags") == tags

    @pytest.mark.parametrize(("sent", "user"), [("u", "u"), (42, "42"), ("", None), (True, None), (["u"], None)])
    def test_user(self, sent: Any, user: str | None) -> None:
        assert decode_one({"user.id": sent}).get("user_id") == user

    def test_an_operation_of_no_convention_counts_where_it_names_model_and_tokens(self) -> None:
        call = {"gen_ai.operation.name": "my_call", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 1}
        assert (decode_one(call)["operation"], decode_one(call)["counts_usage"]) == ("my_call", True)
        assert decode_one(call | {"gen_ai.operation.name": "plan"})["counts_usage"] is False
        unnamed = {key: value for key, value in call.items() if key != "gen_ai.operation.name"}
        assert decode_one(unnamed)["counts_usage"] is True
        assert decode_one({"gen_ai.usage.input_tokens": 1})["counts_usage"] is False


class TestContent:
    @pytest.mark.parametrize(
        ("sent", "stored"),
        [
            ('[{"role": "user"}]', [{"role": "user"}]),
            ('"quoted"', "quoted"),
            ("plain", "plain"),
            ('[{"role": "user"', '[{"role": "user"'),
            ("42", "42"),
            ("null", "null"),
            ("[]", []),
            (r'["\ud800"]', ["\ufffd"]),
            ("[" * 300 + "]" * 300, "[" * 300 + "]" * 300),
            ([{"role": "user"}], [{"role": "user"}]),
            (7, 7),
        ],
    )
    def test_json_text_becomes_json(self, sent: Any, stored: Any) -> None:
        span = decode_one({"gen_ai.input.messages": sent, "other": 1})
        assert span["input"] == stored
        assert span["attributes"] == {"other": 1}

    @pytest.mark.parametrize("nothing", ["", None])
    def test_what_is_not_used_stays_an_attribute(self, nothing: Any) -> None:
        first = {"gen_ai.input.messages": "new", "input.value": "old"}
        assert decode_one(first)["input"] == "new"
        assert decode_one(first)["attributes"] == {"input.value": "old"}
        second = decode_one({"gen_ai.input.messages": nothing, "input.value": "old"})
        assert second["input"] == "old"
        assert second["attributes"] == {"gen_ai.input.messages": nothing}

    def test_plain_text_is_not_parsed(self) -> None:
        plain = {"input.value": '["a"]', "input.mime_type": "text/plain"}
        assert decode_one(plain)["input"] == '["a"]'
        assert decode_one(plain | {"input.mime_type": "application/json"})["input"] == ["a"]

    def test_flattened_keys_that_make_no_list_stay(self) -> None:
        prefix = "llm.input_messages."
        odd = {
            f"{prefix}0.message.content": "kept",
            f"{prefix}0.message.content.deeper": "contradicts",
            f"{prefix}x.message.content": "no index",
            f"{prefix}1." + ".".join("a" * 50): "too deep",
            f"{prefix}99999999999.message.content": "no such index",
        }
        span = decode_one({f"{prefix}7.message.content": "later", **odd})
        assert span["input"] == [{"content": "kept"}, {"content": "later"}]
        assert set(span["attributes"] or {}) == set(odd) - {f"{prefix}0.message.content"}

    def test_a_long_conversation_of_flattened_keys(self) -> None:
        said = {f"llm.input_messages.{place}.message.content": f"turn {place}" for place in range(100)}
        span = decode_one({**said, "llm.model_name": "m", "other": 1})
        assert span["input"] == [{"content": f"turn {place}"} for place in range(100)]
        assert span["model"] == "m"
        assert span["attributes"] == {"llm.model_name": "m", "other": 1}
