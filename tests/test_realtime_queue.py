"""The queue for ingest: nothing lost, nothing stored twice, whatever becomes of workers, Redis and the database."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import redis

from observatory_storage import IngestWorker, RedisIngestQueue, StorageError
from observatory_storage.errors import ConfigurationError, QueueFullError, UnavailableError
from observatory_storage.otlp import Signal
from observatory_storage.pool import StoragePool
from observatory_storage.writers import WorkerStats
from tests.command_line import environment, invoke, program
from tests.servers import RedisProcess, database_name
from tests.telemetry import assert_summaries_exact, count, stored

# The spans of the test that kills workers; all of them with OBSERVATORY_TEST_LONG=1.
SPANS, KILLS = (100_000, 20) if os.environ.get("OBSERVATORY_TEST_LONG") == "1" else (10_000, 6)


@pytest.fixture
def queue(redis_url: str, database_url: str) -> Iterator[RedisIngestQueue]:
    """A queue of the test's own."""
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        yield RedisIngestQueue(client, name=database_name(database_url))


def request(trace: int, spans: int, first: int = 0, *, of: int | None = None) -> bytes:
    """A request with spans of one trace, in OTLP/JSON, always the same for the same numbers."""
    start = 1_770_000_000_000_000_000 + trace * 1_000_000_000
    rows = [
        {
            "traceId": f"{trace + 1:032x}",
            "spanId": f"{number + 1:016x}",
            "parentSpanId": "" if number == 0 else f"{1:016x}",
            "name": f"step {number}",
            "startTimeUnixNano": str(start + number * 1000),
            "endTimeUnixNano": str(start + number * 1000 + 500_000),
            "attributes": [{"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o"}}],
        }
        for number in range(first, min(first + spans, of or first + spans))
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": f"service {trace % 3}"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": rows}]}]}).encode()


def work(pool: StoragePool, queue: RedisIngestQueue, **options: Any) -> WorkerStats:
    """Store what is in the queue."""
    settings: dict[str, Any] = {"claim_idle_seconds": 0.3, **options}
    return IngestWorker(pool, queue, **settings).run(lambda: False, idle_timeout_seconds=0.5)


@pytest.mark.every_redis
def test_what_is_put_in_is_stored_and_gone(queue: RedisIngestQueue, pool: StoragePool, database_url: str) -> None:
    for trace in range(10):
        queue.put(request(trace, 5), project="shop" if trace % 2 else None)
    log = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "hi"}}] * 2}]}]}
    queue.put(json.dumps(log).encode(), Signal.LOGS, content_type="application/json")
    point = {"name": "m", "gauge": {"dataPoints": [{"timeUnixNano": "1770000000000000000", "asInt": "3"}]}}
    metrics = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [point]}]}]}
    queue.put(json.dumps(metrics).encode(), "metrics", project="shop")
    before = queue.stats()
    assert (before.depth, before.lag, before.pending, before.dead) == (12, 12, 0, 0)
    assert before.bytes > 1000
    assert before.oldest_seconds is not None
    assert work(pool, queue) == WorkerStats(batches=12, rows=53)
    after = queue.stats()
    assert (after.depth, after.lag, after.pending, after.bytes, after.oldest_seconds) == (0, 0, 0, 0, None)
    assert after.consumers == 0
    tables = stored(database_url, ("traces", "trace_spans", "logs", "metric_data_points", "metrics"))
    assert [len(rows) for rows in tables.values()] == [10, 50, 2, 1, 1]
    assert sorted(trace["project"] for trace in tables["traces"]) == ["default"] * 5 + ["shop"] * 5
    assert {tables["metric_data_points"][0]["project"], tables["metrics"][0]["project"]} == {"shop"}
    assert_summaries_exact(database_url)


def test_a_request_that_is_put_in_twice_is_stored_once(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    for _ in range(3):
        queue.put(request(1, 5))
        work(pool, queue)
    assert count(database_url, "trace_spans") == 5


@pytest.mark.every_redis
def test_a_full_queue_pushes_back(queue: RedisIngestQueue, pool: StoragePool, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        small = RedisIngestQueue(client, namespace=f"small{os.urandom(4).hex()}", max_entries=3, max_bytes=10_000)
        for trace in range(3):
            small.put(request(trace, 1))
        started = time.monotonic()
        with pytest.raises(QueueFullError, match="full"):
            small.put(request(9, 1), timeout_seconds=0.3)
        assert 0.3 <= time.monotonic() - started < 2
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(small.put, request(9, 1), timeout_seconds=10)
            time.sleep(0.1)
            work(pool, small)
            assert waiting.result()
        work(pool, small)
        small.put(b"x" * 9_000)
        with pytest.raises(QueueFullError):
            small.put(b"x" * 2_000)
        with pytest.raises(StorageError, match="more than the queue holds"):
            small.put(b"x" * 10_001)
        assert small.stats().bytes == 9_000


# --- Workers that die ---


def test_what_a_dead_worker_had_taken_is_taken_over(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    for trace in range(4):
        queue.put(request(trace, 5))
    # It died before it wrote, and another one after its COMMIT.
    assert len(queue.take("dead before", 2, 0.1)) == 2
    taken = queue.take("dead after", 2, 0.1)
    IngestWorker(pool, queue)._write(taken)
    assert queue.stats().pending == 4
    time.sleep(0.3)
    stats = work(pool, queue)
    assert (stats.batches, stats.claimed) == (4, 4)
    assert count(database_url, "trace_spans") == 20
    assert_summaries_exact(database_url)
    assert queue.stats().depth == 0


@pytest.mark.every_redis
def test_workers_killed_at_random_points_lose_and_repeat_nothing(
    queue: RedisIngestQueue, database_url: str, redis_url: str
) -> None:
    """Two workers are there at any time; each kill hits one of them wherever it is."""
    dice = random.Random(7)
    per_trace, per_request = 100, 40
    requests = [
        request(trace, per_request, first, of=per_trace)
        for trace in range(SPANS // per_trace)
        for first in range(0, per_trace, per_request)
    ]
    dice.shuffle(requests)
    command = program(
        *("worker", "--database-url", database_url, "--redis-url", redis_url, "--queue", queue.name),
        *("--requests", 8, "--claim-idle", 1),
    )

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)

    workers = [start(), start()]
    share = len(requests) // KILLS + 1
    interrupted = 0
    try:
        for kill in range(KILLS):
            for payload in requests[kill * share : (kill + 1) * share]:
                queue.put(payload, timeout_seconds=60)
            # In the middle of it, mostly, and mostly the one that is up for longer.
            deadline = time.monotonic() + 5
            while not queue.stats().pending and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.1))
            victim = workers.pop(0 if dice.random() < 0.8 else 1)
            victim.kill()
            victim.wait()
            interrupted += queue.stats().pending > 0
            workers.append(start())
            time.sleep(dice.uniform(0.5, 1.5))
        assert interrupted >= KILLS // 2
        deadline = time.monotonic() + 120
        while queue.stats().depth:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            # One may have hardly started.
            assert worker.wait(30) in (0, -signal.SIGTERM)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert queue.stats().dead == 0
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT trace_id, span_id FROM trace_spans").fetchall()
    expected = {(f"{trace + 1:032x}", f"{n + 1:016x}") for trace in range(SPANS // per_trace) for n in range(per_trace)}
    assert len(rows) == SPANS
    assert {(key.hex, span.hex()) for key, span in rows} == expected
    assert_summaries_exact(database_url)


def test_a_worker_that_is_told_to_end_finishes_first(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    for trace in range(50):
        queue.put(request(trace, 20))
    told = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        worker = IngestWorker(pool, queue, batches=5)
        done = threads.submit(worker.run, told.is_set)
        while worker.stats().batches < 5:
            time.sleep(0.005)
        told.set()
        stats = done.result()
    left = queue.stats()
    assert left.pending == 0
    assert left.depth == 50 - stats.batches
    assert count(database_url, "trace_spans") == stats.batches * 20


# --- Requests that cannot be stored ---


@pytest.mark.every_redis
def test_poison_goes_to_the_dead_letters_with_its_reason(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    queue.put(b'{"resourceSpans": 7}', project="shop")
    queue.put(request(1, 5))
    queue.put(b"\x0a\xff\xff\xff\xff\xff", content_type="text/html")
    stats = work(pool, queue)
    assert (stats.batches, stats.buried) == (1, 2)
    assert count(database_url, "trace_spans") == 5
    letters = queue.dead_letters()
    assert len(letters) == queue.stats().dead == 2
    assert "text/html" in letters[0].reason
    assert "no OTLP/JSON of traces" in letters[1].reason
    assert (letters[1].batch.payload, letters[1].batch.project) == (b'{"resourceSpans": 7}', "shop")
    assert queue.stats().bytes == 0
    # Who mended what was wrong gives it again.
    queue.revive(letters[1])
    assert (queue.stats().depth, queue.stats().dead) == (1, 1)


def test_a_request_that_kills_its_workers_is_given_up(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    queue.put(request(1, 5))
    queue.take("first", 1, 0.1)
    for _ in range(3):
        time.sleep(0.05)
        queue.claim("next", 0.02)
    time.sleep(0.3)
    queue.put(request(2, 5))
    stats = work(pool, queue, max_attempts=3)
    assert (stats.batches, stats.buried) == (1, 1)
    assert "taken 5 times" in queue.dead_letters()[0].reason
    assert count(database_url, "trace_spans") == 5


def test_a_request_that_fails_alone_is_told_from_its_neighbours(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    """Something is wrong with the whole of a request, so that no row of it is to blame."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF NEW.service_name = 'service 1' THEN RAISE EXCEPTION 'not you' USING ERRCODE = 'P0001'; "
            "END IF; RETURN NEW; END $$"
        )
        connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON traces FOR EACH ROW EXECUTE FUNCTION refuse()")
    for trace in range(3):
        queue.put(request(trace, 5))
    stats = work(pool, queue, max_attempts=2, claim_idle_seconds=30)
    assert (stats.batches, stats.buried) == (2, 1)
    assert "not you" in queue.dead_letters()[0].reason
    assert count(database_url, "trace_spans") == 10
    assert queue.stats().depth == 0


def test_rows_that_are_rejected_are_counted_and_the_rest_is_stored(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    sent = json.loads(request(1, 3))
    sent["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["spanId"] = "00"
    queue.put(json.dumps(sent).encode())
    reasons: list[str] = []
    stats = work(pool, queue, on_rejected=lambda error: reasons.append(error.reason))
    assert (stats.batches, stats.rows, stats.rejected, len(reasons)) == (1, 2, 1, 1)
    assert count(database_url, "trace_spans") == 2


# --- Outages ---


def test_while_the_database_refuses_requests_are_held(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE trace_spans RENAME TO elsewhere")
    queue.put(request(1, 5))
    told = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        worker = IngestWorker(pool, queue, claim_idle_seconds=0.3, max_attempts=1)
        done = threads.submit(worker.run, told.is_set)
        while worker.stats().failures < 2:
            time.sleep(0.02)
        assert (queue.stats().pending, queue.stats().dead) == (1, 0)
        with psycopg.connect(database_url) as connection:
            connection.execute("ALTER TABLE elsewhere RENAME TO trace_spans")
        while queue.stats().depth:
            time.sleep(0.02)
        told.set()
        assert done.result().batches == 1
    assert count(database_url, "trace_spans") == 5


def test_redis_may_come_and_go(pool: StoragePool, database_url: str) -> None:
    with RedisProcess() as server, redis.Redis.from_url(server.url, socket_timeout=0.7, protocol=2) as client:
        queue = RedisIngestQueue(client)
        queue.put(request(1, 5))
        told = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            worker = IngestWorker(pool, queue, claim_idle_seconds=2)
            done = threads.submit(worker.run, told.is_set)
            while worker.stats().batches < 1:
                time.sleep(0.01)
            server.kill()
            with pytest.raises(UnavailableError):
                queue.put(request(2, 5))
            server.start()
            queue.put(request(2, 5))
            while worker.stats().batches < 2:
                time.sleep(0.01)
            client.flushall()
            queue.put(request(3, 5))
            while worker.stats().batches < 3:
                time.sleep(0.01)
            server.pause()
            time.sleep(1)
            server.resume()
            queue.put(request(4, 5))
            while worker.stats().batches < 4:
                time.sleep(0.01)
            told.set()
            done.result()
    assert count(database_url, "trace_spans") == 20


# --- The command line ---


def test_the_commands_store_and_say_what_is_there(database_url: str, redis_url: str) -> None:
    name = f"q{os.urandom(4).hex()}"
    where = ("--database-url", database_url, "--redis-url", redis_url, "--queue", name)
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        queue = RedisIngestQueue(client, name=name)
        queue.put(request(1, 5))
        queue.put(b"no otlp", content_type="application/json")
        assert invoke("queue", "--json", *where).json["depth"] == 2
        done = invoke("worker", "--exit-when-idle", 0.3, "--claim-idle", 1, *where)
        assert (done.status, done.stdout) == (
            3,
            "stored 1 request with 5 rows; 0 rows rejected, 1 request to the dead letters\n",
        )
        assert invoke("queue", *where).stdout == (
            "0 requests of 0 bytes: 0 wait, 0 are under way; 0 workers; 1 dead letter\n"
        )
        listed = invoke("queue", "--dead", *where)
        assert "7 bytes of traces" in listed.stdout
        assert invoke("queue", "--revive", "all", *where).status == 0
        assert queue.stats().depth == 1
        assert invoke("queue", "--revive", "1-1", *where).status == 1
    missing = invoke("worker", "--database-url", database_url)
    assert missing.status == 1
    assert "REDIS_URL" in missing.stderr


def test_a_queue_needs_redis(pool: StoragePool) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        RedisIngestQueue.from_config(pool.config.redis)
