"""A forked child has connections of its own, and whatever it does leaves the parent's alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from observatory_storage.errors import StorageError, UnavailableError
from observatory_storage.pool import StoragePool

PID = sa.text("SELECT pg_backend_pid()")


def ask(pool: StoragePool) -> int:
    with pool.session() as session:
        return int(session.scalar(PID) or 0)


def in_child(action: Callable[[], object]) -> str:
    """Run the action in a forked child and return what it returned, or its traceback."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns that threads do not come along; they are the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        # One that hangs ends the test, and does not hang it.
        signal.alarm(30)
        try:
            os.write(write_end, str(action()).encode())
        finally:
            # Whatever happened, the child must not go on as a second test run.
            if sys.exc_info()[1] is not None:
                os.write(write_end, traceback.format_exc().encode())
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return answer


@pytest.fixture
def warm_pool(database_url: str) -> StoragePool:
    """A pool of one connection, so that the parent cannot hide a lost one behind another."""
    pool = StoragePool.from_url(database_url, min_connections=1, max_connections=1)
    ask(pool)
    return pool


def test_parent_and_child_each_have_a_connection(warm_pool: StoragePool) -> None:
    with warm_pool as pool:
        parents = ask(pool)
        childs = in_child(lambda: ask(pool))
        assert childs.isdigit(), childs
        assert int(childs) != parents
        assert ask(pool) == parents


def test_a_child_that_closes_the_pool_closes_only_its_own(warm_pool: StoragePool) -> None:
    def use_and_close() -> str:
        ask(pool)
        pool.close()
        try:
            ask(pool)
        except StorageError as error:
            return str(error)
        return "not closed"

    with warm_pool as pool:
        parents = ask(pool)
        assert in_child(use_and_close) == "the pool is closed"
        assert in_child(pool.close) == "None"
        assert ask(pool) == parents


def test_a_transaction_of_the_parent_survives_a_fork_inside_it(warm_pool: StoragePool) -> None:
    with warm_pool as pool:
        with pool.session() as session:
            session.execute(sa.text("INSERT INTO traces (id) VALUES (gen_random_uuid())"))

            def meddle() -> str:
                try:
                    session.scalar(PID)
                except (sa.exc.DBAPIError, StorageError) as error:
                    session.invalidate()
                    return type(error).__name__
                return "it reached the parent's server process"

            assert in_child(meddle) == "OperationalError"
            # What a child gets for such calls is its own affair.
            in_child(session.close)
            in_child(session.commit)
            assert in_child(lambda: ask(pool)).isdigit()
            session.commit()
        with pool.session() as session:
            assert session.scalar(sa.text("SELECT count(*) FROM traces")) == 1


@pytest.mark.parametrize("block", ["pool.session()", "pool.unit_of_work()", "pool.raw_connection()"])
def test_a_child_that_leaves_a_block_it_was_forked_in_does_so_quietly(database_url: str, block: str) -> None:
    program = f"""
import os, sys, warnings, sqlalchemy as sa
from observatory_storage.pool import StoragePool
warnings.simplefilter("ignore", DeprecationWarning)
pool = StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=1)
add = "INSERT INTO traces (id) VALUES (gen_random_uuid())"
with {block} as inside:
    inside = getattr(inside, "session", inside)
    inside.execute(add if {"raw" in block} else sa.text(add))
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        inside.commit()
with pool.session() as session:
    session.execute(sa.text(add))
    session.commit()
    if child:
        print(session.scalar(sa.text("SELECT count(*) FROM traces")))
"""
    done = subprocess.run([sys.executable, "-c", program, database_url], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_forks_while_threads_use_the_pool(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=2, max_connections=4) as pool:
        stop = threading.Event()

        def work() -> int:
            done = 0
            while not stop.is_set():
                ask(pool)
                done += 1
            return done

        with ThreadPoolExecutor(4) as threads:
            workers = [threads.submit(work) for _ in range(4)]
            try:
                answers = [in_child(lambda: ask(pool)) for _ in range(15)]
            finally:
                stop.set()
            assert all(answer.isdigit() for answer in answers), answers
            assert all(worker.result() > 0 for worker in workers)


def test_a_fork_during_another_threads_first_connection(database_url: str) -> None:
    with StoragePool.from_url(database_url, min_connections=1, max_connections=2) as pool:
        connecting, forked = threading.Event(), threading.Event()

        def hold(*_: object) -> None:
            connecting.set()
            forked.wait(20)

        sa.event.listen(pool.engine, "first_connect", hold)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(ask, pool)
            assert connecting.wait(10)
            answer = in_child(lambda: ask(pool))
            forked.set()
            assert answer.isdigit(), answer
            assert first.result() != int(answer)


def _in_process(pool: StoragePool, answers: multiprocessing.Queue[int]) -> None:
    answers.put(ask(pool))


def test_processes_of_multiprocessing(warm_pool: StoragePool) -> None:
    context = multiprocessing.get_context("fork")
    with warm_pool as pool:
        answers = context.Queue()
        processes = [context.Process(target=_in_process, args=(pool, answers)) for _ in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in processes:
                process.start()
        pids = {answers.get(timeout=20) for _ in processes}
        for process in processes:
            process.join(20)
            assert process.exitcode == 0
        answers.close()
        assert len({*pids, ask(pool)}) == 4


def test_a_child_does_not_inherit_its_parents_closing(warm_pool: StoragePool) -> None:
    warm_pool.close()
    with pytest.raises(StorageError, match="closed"):
        ask(warm_pool)
    assert "the pool is closed" in in_child(lambda: ask(warm_pool))


def test_a_child_that_cannot_connect_says_so(warm_pool: StoragePool) -> None:
    with warm_pool as pool:
        parents = ask(pool)

        def fail() -> str:
            with StoragePool.from_url("postgresql://u@127.0.0.1:1/d", initial_delay_ms=1) as other:
                try:
                    ask(other)
                except UnavailableError as error:
                    return type(error).__name__
            return "it connected"

        assert in_child(fail) == "UnavailableError"
        assert ask(pool) == parents
