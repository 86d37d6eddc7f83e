"""How large and how far apart real requests are: drawn from recordings, or from their quantiles.

Where the recordings are on this machine (OBSERVATORY_SHARED_DATA, else `../shared/data`), values are drawn from them;
elsewhere from their quantiles, which stand below. Both take one draw of the dice for each value.
"""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from observatory_storage.otlp import decode_traces

_ROOT: Final = Path(__file__).parent.parent

# Quantiles at 0, 5, … 95 %, and a last value with which the mean is that of the recording. Requests: 19,366 of
# conversations with a production service (Azure, Splitwise); characters of messages and spans: 40 recorded agent runs
# (tau-bench).
# fmt: off
QUANTILES: Final[Mapping[str, Sequence[float]]] = {
    "prompt_tokens": (
        2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2734, 4083,
        4945,
    ),
    "answer_tokens": (
        7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 704,
    ),
    "gap_seconds": (
        0.0, 0.0063, 0.0161, 0.0264, 0.0365, 0.0483, 0.0607, 0.0735, 0.0873, 0.1019, 0.1184, 0.1376, 0.1587, 0.1832,
        0.2136, 0.2467, 0.2888, 0.3459, 0.4207, 0.5652, 0.9487,
    ),
    "message_chars": (
        89, 141, 165, 181, 186, 194, 211, 216, 216, 228, 246, 262, 296, 334, 364, 395, 439, 494, 564, 674, 970,
    ),
    "result_chars": (
        131, 131, 139, 141, 149, 205, 493, 762, 776, 780, 824, 844, 852, 898, 920, 978, 993, 1083, 1115, 1405, 4994,
    ),
    "spans_a_trace": (6, 8, 9, 10, 13, 14, 18, 18, 19, 19, 20, 22, 23, 25, 26, 26, 27, 29, 30, 43, 52),
}
# fmt: on


@dataclass(frozen=True)
class Distribution:
    """Sorted values of which any in between may be drawn."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return self._at(0.5)

    @property
    def mean(self) -> float:
        return sum(self._at((place + 0.5) / 1_000) for place in range(1_000)) / 1_000

    def draw(self, dice: random.Random) -> float:
        return self._at(dice.random())

    def _at(self, share: float) -> float:
        place = share * (len(self.values) - 1)
        lower = int(place)
        upper = min(lower + 1, len(self.values) - 1)
        return self.values[lower] + (self.values[upper] - self.values[lower]) * (place - lower)

    def quantiles(self, steps: int = 20) -> list[float]:
        return [round(self._at(step / steps), 6) for step in range(steps + 1)]


@dataclass(frozen=True)
class Recorded:
    """What spans are made after; `source` says whether recordings were there."""

    prompt_tokens: Distribution
    answer_tokens: Distribution
    gap_seconds: Distribution
    message_chars: Distribution
    result_chars: Distribution
    spans_a_trace: Distribution
    source: str


@cache
def recorded() -> Recorded:
    """Return the distributions, of the recordings where they are."""
    given = os.environ.get("OBSERVATORY_SHARED_DATA")
    folder = Path(given) if given else _ROOT.parent / "shared" / "data"
    requests = folder / "azure-llm-inference" / "AzureLLMInferenceTrace_conv.csv"
    runs = folder / "otlp" / "replay-tau-genai.traces.pb"
    if requests.exists() and runs.exists():
        return Recorded(**_requests(requests), **_runs(runs), source="recordings")
    return Recorded(**{name: Distribution(values) for name, values in QUANTILES.items()}, source="quantiles")


def tau_runs() -> bytes | None:
    """Return the recorded agent runs as one OTLP request, where they are on this machine."""
    given = os.environ.get("OBSERVATORY_SHARED_DATA")
    runs = (Path(given) if given else _ROOT.parent / "shared" / "data") / "otlp" / "replay-tau-genai.traces.pb"
    return runs.read_bytes() if runs.exists() else None


def _requests(path: Path) -> dict[str, Distribution]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["TIMESTAMP"]]
    # Seven digits of a second, of which fromisoformat reads six.
    times = sorted(dt.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows)
    return {
        "prompt_tokens": _sorted(int(row["ContextTokens"]) for row in rows),
        "answer_tokens": _sorted(int(row["GeneratedTokens"]) for row in rows),
        "gap_seconds": _sorted(after - before for before, after in itertools.pairwise(times)),
    }


def _runs(path: Path) -> dict[str, Distribution]:
    spans = decode_traces(path.read_bytes()).spans
    counts: dict[Any, int] = {}
    messages: dict[tuple[Any, str], str] = {}
    for span in spans:
        counts[span["trace_id"]] = counts.get(span["trace_id"], 0) + 1
        for message in _messages(span.get("input")) + _messages(span.get("output")):
            # Runs send the whole conversation with each call: each message counts once.
            messages[span["trace_id"], str(message)] = message["role"]

    def chars(is_one: Callable[[str], bool]) -> Distribution:
        return _sorted(len(text) for (_, text), role in messages.items() if is_one(role))

    return {
        "message_chars": chars(lambda role: role in ("user", "assistant")),
        "result_chars": chars(lambda role: role == "tool"),
        "spans_a_trace": _sorted(counts.values()),
    }


def _messages(content: Any) -> list[dict[str, Any]]:
    return [message for message in content or () if isinstance(message, dict) and "role" in message]


def _sorted(values: Iterable[float]) -> Distribution:
    return Distribution(sorted(values))


class Zipf:
    """Draws 0 … count - 1, the n-th in proportion to 1 / n ** exponent."""

    def __init__(self, count: int, exponent: float = 1.05) -> None:
        total = 0.0
        self._cumulated = [total := total + 1 / place**exponent for place in range(1, count + 1)]
        self._places = range(count)

    def draw(self, dice: random.Random) -> int:
        return dice.choices(self._places, cum_weights=self._cumulated)[0]
