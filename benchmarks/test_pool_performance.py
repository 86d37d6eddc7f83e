"""What it costs to borrow a connection, beside other pools, none, and one that is kept; by one thread and by many."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import psycopg
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text

from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings, Way, quartiles
from benchmarks.latency import Latencies, Operation
from observatory_storage.pool import StoragePool

KEPT: Final = "a connection that is kept"
THREADS: Final = (1, 4, 16)
_CONNECTIONS: Final = 4


def test_borrowing(url: str, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    with ExitStack() as stack:
        operations = _ways(url, stack)
        timings = Latencies(operations)
        benchmark.pedantic(lambda: timings.run(size.pick(2, 40, 500)), rounds=1)
        benchmark.extra_info.update(machine=machine, pools=timings.records())
        report.table(
            "Borrow, SELECT 1, give back; one thread, ms",
            ["", "× kept", "median", "quartiles", "p95"],
            timings.rows(KEPT),
            "StoragePool, psycopg_pool and SQLAlchemy check the connection when it is borrowed, which is a round trip.",
        )
        report.slower(
            f"A borrowed raw connection costs {timings.ratio('StoragePool.raw_connection', KEPT):.1f} × a connection "
            "that is kept: it is checked on the way out, so that none that a restart left stale reaches a caller."
        )
        for ours, other in (("StoragePool.raw_connection", "psycopg_pool"), ("StoragePool.session", _QUEUE_POOL)):
            if (ratio := timings.ratio(ours, other)) > 1:
                report.slower(f"`{ours}` takes {ratio:.2f} × as long as {other}, which checks connections as well.")


def test_contention(url: str, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    calls = size.pick(16, 200, 1_500)
    with ExitStack() as stack:
        operations = {name: run for name, run in _ways(url, stack).items() if name not in (KEPT, _DIRECT)}
        timings = Timings(
            [
                Way(f"{name}, {threads}", calls, _by_threads(run, threads, calls), lambda: None)
                for threads in THREADS
                for name, run in operations.items()
            ]
        )
        timings.run_round(keep=False)
        benchmark.pedantic(timings.run_round, rounds=size.rounds)
        rows = []
        for name in operations:
            cells = [name]
            for threads in THREADS:
                lower, median, upper = quartiles(timings.rates(f"{name}, {threads}"))
                against = timings.ratio(f"{name}, {threads}", f"psycopg_pool, {threads}")
                cells.append(f"{against:.2f} × ({median:,.0f}/s, {lower:,.0f}–{upper:,.0f})")
            rows.append(cells)
        report.table(
            f"The same by several threads on {_CONNECTIONS} connections, against psycopg_pool",
            ["", *(f"{threads} threads" for threads in THREADS)],
            rows,
        )


_DIRECT: Final = "a new connection each time"
_QUEUE_POOL: Final = "SQLAlchemy QueuePool, pre-ping"


def _ways(url: str, stack: ExitStack) -> dict[str, Operation]:
    limits = {"min_connections": _CONNECTIONS, "max_connections": _CONNECTIONS}
    pool = stack.enter_context(StoragePool.from_url(url, **limits))
    kept = stack.enter_context(psycopg.connect(url))
    bare = stack.enter_context(
        ConnectionPool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS, check=ConnectionPool.check_connection)
    )
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url),
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
    )
    stack.callback(engine.dispose)
    one = text("SELECT 1")

    def from_kept() -> None:
        kept.execute("SELECT 1").fetchone()
        kept.rollback()

    def direct() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1").fetchone()

    def raw() -> None:
        with pool.raw_connection() as connection:
            connection.execute("SELECT 1").fetchone()

    def session() -> None:
        with pool.session() as session:
            session.execute(one).scalar_one()

    def unit_of_work() -> None:
        with pool.unit_of_work() as work:
            work.session.execute(one).scalar_one()

    def psycopg_pool() -> None:
        with bare.connection() as connection:
            connection.execute("SELECT 1").fetchone()

    def queue_pool() -> None:
        with engine.connect() as connection:
            connection.execute(one).scalar_one()

    return {
        KEPT: from_kept,
        "psycopg_pool": psycopg_pool,
        "StoragePool.raw_connection": raw,
        _QUEUE_POOL: queue_pool,
        "StoragePool.session": session,
        "StoragePool.unit_of_work": unit_of_work,
        _DIRECT: direct,
    }


def _by_threads(run: Operation, threads: int, calls: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(calls // threads):
            run()

    def together() -> None:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return together
