"""REPORT.md, made of stored figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import spans, ways
from benchmarks.targets import TARGETS

# What the field's saying promises at least, in rows a second.
_CLAIMED_RATE: Final = 50_000
_TITLES: Final = {
    "copy_vs_insert": "COPY against INSERT",
    "writer_throughput": "Batches, rows, callers",
    "otlp_ingest": "OTLP bytes to committed",
    "concurrent_writes": "Writers at once",
    "mixed_workload": "Reads and writes at once",
    "query_performance": "Reads",
    "growth": "Growth",
    "retention": "Retention beside writers",
    "usage_rollups": "Usage from rollups",
    "storage_size": "Messages stored once",
    "footprint": "Import, memory, a single row",
    "pool_performance": "Connections",
    "late_indexes": "Experiment: late indexes",
    "log_ingest": "Log records",
    "log_search": "Search in logs",
    "auto_crossover": "Where AUTO takes COPY",
}
"""The suites in the report's order; others follow."""


def report(suites: Mapping[str, Any], charts: Mapping[str, Path], root: Path) -> str:
    """Return the report's text; `charts` are the drawn ones by name."""
    suites = dict(sorted(suites.items()))
    lines = [
        "# Benchmarks: what was measured",
        "",
        "Made by `python -m benchmarks --report` from `benchmarks/figures.json`; [README.md](README.md) says how to "
        "run it and what each suite does. Ratios come first, because absolute figures do not travel. Of writes each is "
        "the median of the ratios of single rounds, in which all ways of a table took turns, or in which each ran "
        "between two runs of what it is compared with, where the table says so; with quartiles in brackets. Of reads "
        "and other calls it is the ratio of two medians or of two 95th percentiles; where those are judged, the "
        "quartiles are of a bootstrap.",
        "",
        *_machines(suites),
        *_targets(suites),
        *_claim(suites),
        *_slower(suites),
    ]
    for name in (*(name for name in _TITLES if name in suites), *sorted(set(suites) - set(_TITLES))):
        lines += _suite(name, suites[name], charts, root)
    return "\n".join(lines).rstrip() + "\n"


def _machines(suites: Mapping[str, Any]) -> Iterator[str]:
    """Each machine with the suites that ran on it."""
    runs: dict[str, list[str]] = {}
    for name, suite in suites.items():
        # Figures of before it was noted have no commit.
        when = ", ".join(filter(None, (suite["size"], suite["date"], suite.get("commit"))))
        runs.setdefault(_machine(suite["machine"]), []).append(f"{name} ({when})")
    for machine, names in runs.items():
        yield from (machine, "", f"Ran there: {', '.join(names)}.", "")
    yield from (
        "Before each timed run tables are emptied or settled and a CHECKPOINT is done (in quick runs at most every "
        "four seconds; in growth once before all writes of a size), for all ways alike; autovacuum is off on the "
        "wheel's server, because it would fall on one way and not on another, and suites that read run VACUUM "
        "ANALYZE first. fsync is on and commits are flushed to disk, in a data directory of the run's own. In suites "
        "with one writer, client and server are kept on cores of their own, for all ways alike. Rows are seeded; "
        "their lengths and the pauses between them are drawn from recorded traffic or its quantiles "
        "(`benchmarks/distributions.py`).",
        "",
    )


def _machine(facts: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in facts["settings"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
    memory = f", {facts['memory_gb']} GB" if facts["memory_gb"] else ""
    # Figures of before it was noted do not have it.
    socket_kb = facts.get("socket_kb")
    socket = f", net.core.wmem_max {socket_kb:,} kB" if socket_kb else ""
    psql = f"; {facts['psql']}" if facts["psql"] else "; no psql on this machine, so that `\\copy` is not measured"
    return (
        f"**Machine**: {facts['cpus']} CPUs ({facts['cpu']}){memory}, {facts['system']}{socket}. "
        f"**Server**: PostgreSQL {facts['postgresql']}, data on {facts['file_system']}: {settings}. "
        f"**Client**: Python {facts['python']}, libpq by psycopg's `{facts['libpq']}`, {libraries}{psql}."
    )


def _targets(suites: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Targets", "", *_row(["what", "asked", "measured", "", "note"]), *_row(["---"] * 5))
    for target in TARGETS:
        found = suites.get(target.suite, {}).get("measures", {}).get(target.key)
        if found is None:
            yield from _row([target.what, target.asked, "–", "not measured", f"suite `{target.suite}`"])
            continue
        met = target.verdict(found["value"], partial=found["partial"]).replace("NOT MET", "**not met**")
        yield from _row([target.what, target.asked, target.found(found), met, found["note"]])
    yield ""


def _claim(suites: Mapping[str, Any]) -> Iterator[str]:
    claim = suites.get("copy_vs_insert", {}).get("claim")
    if claim is None:
        return
    rates = claim["rows_per_second"]
    yield from (
        '## "COPY is 10–100 × as fast as INSERT, 50,000–100,000 rows/s"',
        "",
        "The field's saying, held against each INSERT in this run:",
        "",
        *_row(["against", "CopyWriter", "TraceWriter, COPY", "10–100 ×"]),
        *_row(["---", "---:", "---:", "---"]),
    )
    names = [name for name in claim if name != "rows_per_second"]
    for name in names:
        bare, exact = claim[name]
        holds = "holds" if min(bare, exact) >= 10 else "holds for bare COPY alone" if bare >= 10 else "does not hold"
        yield from _row([name, f"{bare:.1f} ×", f"{exact:.1f} ×", holds])
    in_range = [
        f"{name} {rates[name]:,}, {'holds' if rates[name] >= _CLAIMED_RATE else 'does not hold'}"
        for name in (ways.LIMIT, ways.COPY_WRITER, spans.TRACE_WRITER_COPY)
        if name in rates
    ]
    true_of = [name for name in names if claim[name][0] >= 10]
    not_of = [name for name in names if claim[name][0] < 10]
    yield from (
        "",
        f"So it is true of {_listed(true_of)}. A commit for each row, the compiling of a statement of a thousand rows "
        "and the ORM's unit of work (its objects are made beforehand) are what those spend their time on. It is not "
        f"true of {_listed(not_of)}. 50,000 to 100,000 rows/s, of spans of the size above: {'; '.join(in_range)}.",
        "",
    )


def _slower(suites: Mapping[str, Any]) -> Iterator[str]:
    found = [line for suite in suites.values() for line in suite["slower"]]
    if found:
        yield from ("## What the project is slower at, or takes more of", "", *(f"- {line}" for line in found), "")


def _suite(name: str, suite: Mapping[str, Any], charts: Mapping[str, Path], root: Path) -> Iterator[str]:
    title = _TITLES.get(name)
    yield from (f"## {title} (`{name}`)" if title else f"## `{name}`", "")
    for block in suite["blocks"]:
        yield from (f"**{block['title']}**", "")
        if "lines" in block:
            yield from ("```text", *block["lines"], "```", "")
            continue
        yield from _row(block["columns"])
        yield from _row(["---", *["---:"] * (len(block["columns"]) - 1)])
        for cells in block["rows"]:
            yield from _row(cells)
        yield from ("", *([block["note"], ""] if block["note"] else []))
    for chart in suite["charts"]:
        path = charts.get(chart["name"])
        if path is not None:
            yield from (f"![{chart['title']}]({path.relative_to(root).as_posix()})", "")


def _row(cells: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _listed(names: Iterable[str]) -> str:
    quoted = [f"`{name}`" if "(" in name else name for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted) or "none of them"
