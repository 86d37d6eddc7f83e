"""What suites found, as plain data: what is printed, written as JSON and drawn in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import targets

STORE: Final = Path(__file__).parent / "figures.json"

Value = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""


class Suite:
    """What one suite found; `data` is all of it."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        for name in ("blocks", "charts", "slower"):
            data.setdefault(name, [])
        data.setdefault("measures", {})

    def add(self, title: str, *lines: str) -> None:
        """Add lines of text as they are."""
        self.data["blocks"].append({"title": title, "lines": list(lines)})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
        """Add a table, its first column to the left and the others to the right."""
        block = {"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "note": note}
        self.data["blocks"].append(block)

    def ways(self, title: str, records: Sequence[Mapping[str, Any]], note: str = "", *, unit: str = "rows") -> None:
        """Add a table of ways as `Timings.summary` has them: ratios with their quartiles first, rates last."""
        labels = list(records[0]["ratios"])
        rows = [
            [
                record["way"],
                *(_spread(record["ratios"][label], record["ratio_quartiles"][label]) for label in labels),
                f"{record['rows_per_second']:,}",
                "–".join(f"{rate:,}" for rate in record["quartiles"]),
                f"{record['rows']:,}",
            ]
            for record in records
        ]
        self.table(title, ["", *labels, f"{unit}/s", "quartiles", f"{unit} a round"], rows, note)
        self.data.setdefault("records", {})[title] = [dict(record) for record in records]

    def bars(self, name: str, title: str, values: Mapping[str, Value]) -> None:
        """Add a bar chart with quartiles; `name` is its file's."""
        self.data["charts"].append({"kind": "bars", "name": name, "title": title, "values": dict(values)})

    def lines(
        self,
        name: str,
        title: str,
        places: Sequence[str],
        series: Mapping[str, Sequence[float | None]],
        *,
        x_title: str = "",
        logarithmic: bool = False,
    ) -> None:
        """Add a line chart, a line for each of `series` over the same places."""
        self.data["charts"].append(
            {
                "kind": "lines",
                "name": name,
                "title": title,
                "places": list(places),
                "series": {label: list(values) for label, values in series.items()},
                "x_title": x_title,
                "logarithmic": logarithmic,
            }
        )

    def measure(
        self, key: str, value: float, note: str = "", *, spread: Sequence[float] = (), partial: bool = False
    ) -> None:
        """Add what a target is judged by, with its quartiles; `partial` where less was measured than it asks for."""
        assert key in targets.BY_KEY, key
        quartiles = [round(quartile, 4) for quartile in spread]
        self.data["measures"][key] = {"value": round(value, 4), "spread": quartiles, "note": note, "partial": partial}

    def slower(self, what: str) -> None:
        """Add a sentence about what the project is slower at, or takes more of."""
        self.data["slower"].append(what)


def text_of(data: Mapping[str, Any]) -> list[str]:
    """A suite as lines for a terminal."""
    lines: list[str] = []
    for block in data["blocks"]:
        lines += ["", block["title"], *(block["lines"] if "lines" in block else _aligned(block))]
    for key, measure in data["measures"].items():
        lines.append(targets.BY_KEY[key].line(measure))
    return lines


def ratio_bars(records: Sequence[Mapping[str, Any]], label: str) -> dict[str, Value]:
    """One of the ratios of ways, for a bar chart."""
    return {
        record["way"]: (
            record["ratio_quartiles"][label][0],
            record["ratios"][label],
            record["ratio_quartiles"][label][1],
        )
        for record in records
    }


def read(path: Path) -> dict[str, Any]:
    """Read stored figures: suites by name; none where there is no such file."""
    if not path.exists():
        return {}
    suites: dict[str, Any] = json.loads(path.read_text())["suites"]
    return suites


def write(path: Path, suites: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({"suites": dict(sorted(suites.items()))}, indent=1, ensure_ascii=False) + "\n")


def _spread(median: float, quartiles: Sequence[float]) -> str:
    digits = 2 if median < 10 else 1
    return f"{median:.{digits}f} ({quartiles[0]:.{digits}f}–{quartiles[1]:.{digits}f})"


def _aligned(block: Mapping[str, Any]) -> list[str]:
    rows = [block["columns"], *block["rows"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(block["columns"]))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    ]
    return [*lines, *([block["note"]] if block["note"] else [])]
