"""What the project takes besides time on the write path: import, memory, and a single row's latency."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import insert

from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.data import SpanSource
from benchmarks.interleaved import Benchmark, quartiles
from benchmarks.latency import Latencies, ms
from benchmarks.spans import SpanWays
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig

SQLALCHEMY: Final = "import sqlalchemy.orm"
PACKAGE: Final = "import observatory_storage"
EVERYTHING: Final = "from observatory_storage import *"
IMPORTS: Final = (SQLALCHEMY, "import psycopg", "import pydantic", PACKAGE, EVERYTHING)
# Prints how long an import took within the process, and what it left in memory (kB).
_PROBE: Final = """
import time, psutil
own = psutil.Process()
before, started = own.memory_info().rss, time.perf_counter()
{statement}
print(time.perf_counter() - started, own.memory_info().rss - before)
"""
# Writes the same rows by one way each, in a process of its own, and prints what they took beyond the rows.
_WRITE: Final = """
import gc, os, sys, threading, time, psutil
from benchmarks.spans import SpanWays
from observatory_storage.pool import StoragePool
url, rows, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with StoragePool.from_url(url, min_connections=1, max_connections=1) as pool:
    ways = SpanWays(pool, rows)
    run = {one.name: one for one in [ways.limit(), *ways.own(), *ways.by_sqlalchemy()]}[way]
    run.prepare()
    gc.collect()
    own, peak, done = psutil.Process(), [0], threading.Event()
    before = own.memory_info().rss
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], own.memory_info().rss - before)
    watcher = threading.Thread(target=watch)
    watcher.start()
    run.run()
    done.set()
    watcher.join()
    print(peak[0])
    ways.close()
"""


def test_import_time(size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    imports = IMPORTS if size.is_judged else (SQLALCHEMY, PACKAGE, EVERYTHING)
    dice = random.Random(2)
    seconds: dict[str, list[float]] = {name: [] for name in imports}
    memory: dict[str, list[float]] = {name: [] for name in imports}

    def run_round() -> None:
        for name in dice.sample(imports, len(imports)):
            output = subprocess.run(
                [sys.executable, "-c", _PROBE.format(statement=name)], capture_output=True, text=True, check=True
            ).stdout.split()
            seconds[name].append(float(output[0]))
            memory[name].append(float(output[1]) / 1e6)

    benchmark.pedantic(run_round, rounds=size.pick(1, 1, 9))
    base = statistics.median(seconds[SQLALCHEMY])
    rows = []
    for name in imports:
        lower, median, upper = quartiles(seconds[name])
        rows.append(
            [
                f"`{name}`",
                f"{median / base:.2f}",
                ms(median),
                f"{ms(lower)}–{ms(upper)}",
                f"{statistics.median(memory[name]):.1f}",
            ]
        )
    report.table("Import, in a new process, ms", ["", "× SQLAlchemy's ORM", "median", "quartiles", "MB"], rows)
    ratio = statistics.median(seconds[EVERYTHING]) / base
    alone = statistics.median(seconds[PACKAGE]) / base
    report.measure("import_time", alone, f"names are loaded when they are first used: all of them take {ratio:.1f} ×")
    report.slower(
        f"Importing the package with all its names takes {ratio:.1f} × as long as `import sqlalchemy.orm`, which it "
        "needs itself, and "
        f"{statistics.median(memory[EVERYTHING]) / statistics.median(memory[SQLALCHEMY]):.1f} × the memory."
    )


@pytest.fixture
def span_ways(pool: StoragePool) -> Iterator[SpanWays]:
    made = SpanWays(pool, 100)
    yield made
    made.close()


def test_memory_while_writing(url: str, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    rows = size.pick(200, 2_500, 30_000)
    names = ["server limit: encoded blob", "CopyWriter", "TraceWriter, COPY", "TraceWriter, INSERT"]
    names.append(ways.EXECUTEMANY)
    if size.name in ("smoke", "quick"):
        names = names[2:3]
    dice = random.Random(3)
    taken: dict[str, list[float]] = {name: [] for name in names}

    def run_round() -> None:
        for name in dice.sample(names, len(names)):
            command = [sys.executable, "-c", _WRITE, url, str(rows), name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            taken[name].append(int(output) / 1e6)

    benchmark.pedantic(run_round, rounds=size.pick(1, 1, 3))
    report.table(
        f"Memory beyond the rows themselves while {rows:,} spans are written, peak, MB",
        ["", "median"],
        [[name, f"{statistics.median(values):.1f}"] for name, values in taken.items()],
    )
    most = {name: statistics.median(values) for name, values in taken.items()}
    ours, core = most["TraceWriter, COPY"], most.get(ways.EXECUTEMANY, 0.0)
    if ours > core > 0:
        report.slower(
            f"`TraceWriter` by COPY takes {ours:.0f} MB beyond its rows at the peak, Core executemany {core:.0f} MB."
        )


def test_single_row(span_ways: SpanWays, pool: StoragePool, size: Size, benchmark: Benchmark, report: Report) -> None:
    spans = iter(SpanSource(seed=5).spans(size.pick(50, 500, 2_000)))
    columns = list(span_ways.columns)
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    statement = f"INSERT INTO trace_spans ({names}) VALUES ({places})".encode()

    def values() -> dict[str, object]:
        """Another span's values, as psycopg and SQLAlchemy take them."""
        row: SpanRow = next(spans)
        complete = dict(span_ways.complete[0])
        return {**complete, "trace_id": resolve_trace_id(row["trace_id"]), "span_id": row["span_id"]}

    def by_hand() -> None:
        given = [Jsonb(value) if isinstance(value, (dict, list)) else value for value in values().values()]
        with pool.raw_connection() as connection:
            connection.execute(statement, given)
            connection.commit()

    def core() -> None:
        with pool.session() as session:
            session.connection().execute(insert(TraceSpan), [values()])
            session.commit()

    def orm() -> None:
        given = {name: value.hex() if isinstance(value, bytes) else value for name, value in values().items()}
        with pool.session() as session:
            session.add(TraceSpan(**given))
            session.commit()

    with TraceWriter(pool, WriterConfig(flush_interval_seconds=60)) as writer:

        def flushed() -> None:
            writer.write_span(next(spans))
            writer.flush()

        def buffered() -> None:
            writer.write_span(next(spans))

        timings = Latencies(
            {
                "psycopg INSERT": by_hand,
                "Core insert": core,
                "ORM add": orm,
                "TraceWriter, write_span and flush": flushed,
                "TraceWriter, write_span alone": buffered,
            }
        )
        benchmark.pedantic(lambda: timings.run(size.pick(2, 40, 300)), rounds=1)
        writer.flush()
    report.table(
        "A single span to committed, ms (the last line returns before the commit, as callers do)",
        ["", "× psycopg", "median", "quartiles", "p95"],
        timings.rows("psycopg INSERT"),
    )
    ratio = timings.ratio("TraceWriter, write_span and flush", "psycopg INSERT")
    report.slower(
        f"One span flushed by itself takes {ratio:.1f} × a bare INSERT: five statements keep the summary of its trace "
        "exact. Callers that do not flush wait for nothing."
    )
