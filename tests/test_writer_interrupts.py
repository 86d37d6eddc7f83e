"""A signal handler that raises, as Ctrl-C does, strikes anywhere: nothing is lost, nothing hangs."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator

import pytest

from observatory_storage.errors import WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from observatory_storage.writers.buffer import RowBuffer
from tests.telemetry import assert_summaries_exact, count, make_spans


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Make the alarm raise KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# An interrupt that strikes inside a weak reference's callback is reported and not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_the_buffer_whole_and_its_lock_free() -> None:
    rng = random.Random(3)
    buffer = RowBuffer(["span"], 1_000_000, 1.0)

    def wait() -> None:
        while buffer.wait_for_batch(10_000, 0.01):
            pass

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    struck = 0
    for _ in range(2_000):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + rng.random() * 0.0003)
            for _ in range(30):
                buffer.put("span", [{"name": "a"}] * rng.randint(1, 5))
                buffer.drop(min(len(buffer), rng.randint(0, 4)))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            struck += 1
        assert len(buffer) == sum(buffer.stats().kinds.values())
    assert struck > 100
    buffer.close()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_loses_nothing(database_url: str) -> None:
    spans = make_spans(traces=60, spans=10)
    struck = 0
    # One that strikes between the pool's giving a connection and our taking it costs that connection.
    with StoragePool.from_url(database_url, min_connections=1, max_connections=10) as pool:
        writer = TraceWriter(pool, WriterConfig(batch_size=20, flush_interval_seconds=3_600))
        writer.write_spans(spans)
        for number in range(60):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + number * 0.0007)
            try:
                writer.flush()
            except (KeyboardInterrupt, WriteError):
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        writer.close()
    assert struck > 5
    assert count(database_url, "trace_spans") == len(spans)
    assert_summaries_exact(database_url)


def test_a_flush_within_a_flush_is_refused_and_not_a_deadlock(pool: StoragePool) -> None:
    writer = TraceWriter(pool, WriterConfig(batch_size=5, flush_interval_seconds=3_600))
    refused: list[str] = []

    def close(*_: object) -> None:
        try:
            writer.close()
        except WriteError as error:
            refused.append(str(error))

    before = signal.signal(signal.SIGALRM, close)
    try:
        writer.write_spans(make_spans(traces=40, spans=10))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        writer.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    writer.close()
    assert all("flushing already" in text for text in refused)
