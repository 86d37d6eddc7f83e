"""What a queue must survive: requests that kill, entries of others, large ones, a full Redis, a wrong password."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from observatory_storage import IngestWorker, RedisIngestQueue, StorageConfig, StorageError
from observatory_storage.config import RedisConfig
from observatory_storage.errors import QueueFullError, RejectedRowError, UnavailableError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import WorkerStats
from tests.command_line import invoke
from tests.servers import RedisProcess
from tests.telemetry import count, stored


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
def queue(client: redis.Redis) -> RedisIngestQueue:
    """A queue of the test's own."""
    return RedisIngestQueue(client, name=os.urandom(6).hex(), max_bytes=100_000)


def key_of(queue: RedisIngestQueue) -> str:
    return f"observatory:queue:{queue.name}"


def spans(trace: int, *, bad: bool = False, note: str = "") -> bytes:
    rows = [
        {
            "traceId": f"{trace + 1:032x}",
            "spanId": "00" if bad and not number else f"{number + 1:016x}",
            "name": f"step {number}",
            "startTimeUnixNano": "1770000000000000000",
            "endTimeUnixNano": "1770000000000500000",
            "attributes": [{"key": "note", "value": {"stringValue": note}}],
        }
        for number in range(3)
    ]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": rows}]}]}).encode()


def work(pool: StoragePool, queue: RedisIngestQueue, **options: Any) -> WorkerStats:
    settings: dict[str, Any] = {"claim_idle_seconds": 0.1, **options}
    return IngestWorker(pool, queue, **settings).run(lambda: False, idle_timeout_seconds=0.3)


class WorkerDiedError(Exception):
    """What ends a worker that nobody expected to end."""


def die(error: RejectedRowError) -> None:
    raise WorkerDiedError(error.reason)


@pytest.mark.every_redis
def test_a_request_that_kills_workers_takes_no_other_along(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    for trace in range(10):
        queue.put(spans(trace, bad=trace == 3))
    deaths = 0
    for _ in range(12):
        try:
            work(pool, queue, on_rejected=die)
        except WorkerDiedError:
            deaths += 1
            time.sleep(0.1)
    assert queue.stats().depth == 0
    assert [letter.batch.payload for letter in queue.dead_letters()] == [spans(3, bad=True)]
    assert deaths == 5
    assert count(database_url, "trace_spans") == 27


@pytest.mark.every_redis
def test_entries_of_other_programs_go_to_the_dead_letters(
    queue: RedisIngestQueue, client: redis.Redis, pool: StoragePool, database_url: str, redis_url: str
) -> None:
    queue.put(spans(1))
    client.xadd(key_of(queue), {"c": b"{}", "s": b"profiles"})
    client.xadd(key_of(queue), {"c": spans(2), "s": b"traces", "t": b"\xff\xfe", "p": b"\xff"})
    client.xadd(key_of(queue), {"something": b"else"})
    # Taken over, too, and not only taken.
    assert len(queue.take("dead", 10, 0.1)) == 4
    time.sleep(0.15)
    queue.put(spans(3))
    stats = work(pool, queue)
    assert queue.stats().depth == 0
    assert count(database_url, "traces") == stats.batches - 1 >= 2
    letters = queue.dead_letters()
    assert any("profiles" in letter.reason for letter in letters)
    unknown = next(letter for letter in letters if letter.batch.signal == "profiles")
    with pytest.raises(StorageError, match="no known signal"):
        queue.revive(unknown)
    assert queue.stats().dead == len(letters)
    where = ("--redis-url", redis_url, "--queue", queue.name)
    assert "profiles" in invoke("queue", "--dead", *where).stdout
    refused = invoke("queue", "--revive", unknown.id, *where)
    assert refused.status == 1
    assert "Traceback" not in refused.stderr


@pytest.mark.every_redis
def test_what_was_deleted_by_hand_is_in_nobodys_way(
    queue: RedisIngestQueue, client: redis.Redis, pool: StoragePool, database_url: str
) -> None:
    for trace in range(3):
        queue.put(spans(trace))
    taken = queue.take("dead", 3, 0.1)
    client.xdel(key_of(queue), taken[0].id)
    time.sleep(0.15)
    assert work(pool, queue).batches == 2
    assert (queue.stats().pending, count(database_url, "traces")) == (0, 2)
    pending: Any = client.xpending(key_of(queue), "workers")
    assert pending["pending"] == 0


def test_a_queue_that_was_deleted_is_empty_and_not_full(queue: RedisIngestQueue, client: redis.Redis) -> None:
    queue.put(b"x" * 60_000)
    with pytest.raises(QueueFullError):
        queue.put(b"x" * 60_000)
    client.delete(key_of(queue))
    queue.put(b"x" * 60_000)
    assert (queue.stats().depth, queue.stats().bytes) == (1, 60_000)


@pytest.mark.every_redis
def test_dead_letters_are_bounded_by_their_size_too(queue: RedisIngestQueue, pool: StoragePool) -> None:
    for number in range(6):
        queue.put(str(number).encode() * 40_000)
        work(pool, queue)
    kept = [letter.batch.payload[:1] for letter in queue.dead_letters()]
    assert kept == [b"5", b"4"]
    # What is revived makes room.
    queue.revive(queue.dead_letters()[0])
    queue.put(b"6" * 40_000)
    work(pool, queue)
    assert sorted(letter.batch.payload[:1] for letter in queue.dead_letters()) == [b"5", b"6"]


def test_the_newest_thousand_dead_letters_stay(
    queue: RedisIngestQueue, pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.realtime.queue._MOST_DEAD", 3)
    for number in range(5):
        queue.put(str(number).encode() * 9)
    work(pool, queue)
    assert [letter.batch.payload[:1] for letter in queue.dead_letters()] == [b"4", b"3", b"2"]


def test_replayed_records_and_points_are_stored_once_in_whatever_company(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    """As after a death between COMMIT and XACK. None of them has a time, an id or a difference to its neighbour."""
    log = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "hi"}}] * 3}]}]}
    point = {"name": "m", "gauge": {"dataPoints": [{"timeUnixNano": "1770000000000000000", "asInt": "3"}]}}
    metrics = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [point]}]}]}
    queue.put(json.dumps(log).encode(), "logs")
    queue.put(json.dumps(metrics).encode(), "metrics")
    queue.put(spans(1))
    taken = queue.take("dead", 10, 0.1)
    tables = ("logs", "metric_data_points", "trace_spans", "traces")
    for company in (taken, taken[:1], taken[::-1], taken[1:]):
        IngestWorker(pool, queue)._write(company)
        assert [len(rows) for rows in stored(database_url, tables).values()] == [3, 1, 3, 1]
    time.sleep(0.15)
    assert work(pool, queue).batches == 3
    assert [len(rows) for rows in stored(database_url, tables).values()] == [3, 1, 3, 1]


@pytest.mark.every_redis
def test_a_large_request_goes_through(client: redis.Redis, pool: StoragePool, database_url: str) -> None:
    queue = RedisIngestQueue(client, name=os.urandom(6).hex())
    queue.put(spans(1))
    queue.put(spans(2, note="n" * 10_000_000))
    queue.put(spans(3))
    assert queue.stats().bytes > 30_000_000
    assert work(pool, queue, claim_idle_seconds=60).batches == 3
    assert (queue.stats().bytes, queue.stats().dead, count(database_url, "trace_spans")) == (0, 0, 9)


@pytest.mark.every_redis
def test_a_redis_without_room_refuses_requests_and_lets_workers_make_some(
    redis_kind: str, pool: StoragePool, database_url: str
) -> None:
    kind = redis_kind if redis_kind not in ("given", "docker") else None
    with RedisProcess(kind) as server, redis.Redis.from_url(server.url, protocol=2) as client:
        queue = RedisIngestQueue(client)
        queue.put(spans(1))
        queue.put(b"no otlp")
        queue.make()
        client.config_set("maxmemory", "1")
        with pytest.raises(UnavailableError, match="maxmemory"):
            queue.put(spans(2))
        assert (queue.stats().depth, queue.stats().bytes) == (2, len(spans(1)) + 7)
        stats = work(pool, queue)
        assert (stats.batches, stats.buried) == (1, 1)
        assert (queue.stats().depth, queue.stats().dead) == (0, 1)
        client.config_set("maxmemory", "0")
        queue.put(spans(2))
        assert work(pool, queue).batches == 1
    assert count(database_url, "trace_spans") == 6


def test_a_wrong_password_is_said_and_not_shown(pool: StoragePool) -> None:
    with RedisProcess() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
        for user in (":wrong-secret@", ""):
            queue = RedisIngestQueue.from_config(RedisConfig(url=SecretStr(server.url.replace("//", f"//{user}"))))
            for ask in (lambda queue=queue: queue.put(b"x"), queue.stats, lambda queue=queue: queue.take("me", 1, 0.1)):
                with pytest.raises(UnavailableError) as caught:
                    ask()
                assert "secret" not in str(caught.value)
            queue.close()


def test_a_receiver_needs_no_database(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queue: RedisIngestQueue
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("DB_", "DATABASE", "REDIS_", "PG")):
            monkeypatch.delenv(name)
    assert StorageConfig.redis_from_env() is None
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("REDIS_NAMESPACE", "receiver")
    receiver = RedisIngestQueue.from_config(StorageConfig.redis_from_env(), name=queue.name)
    receiver.put(spans(1))
    assert (receiver.stats().depth, queue.stats().depth) == (1, 0)
    receiver.close()


def test_what_a_worker_holds_while_the_database_is_away_stays_its_own(
    queue: RedisIngestQueue, pool: StoragePool, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE trace_spans RENAME TO elsewhere")
    queue.put(spans(1))
    told = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        try:
            holder, other = (IngestWorker(pool, queue, claim_idle_seconds=1, max_attempts=1) for _ in range(2))
            holding = threads.submit(holder.run, told.is_set)
            while not holder.stats().failures:
                time.sleep(0.01)
            waiting = threads.submit(other.run, told.is_set)
            time.sleep(3)
            assert (other.stats().claimed, queue.stats().dead, queue.stats().pending) == (0, 0, 1)
        finally:
            with psycopg.connect(database_url) as connection:
                connection.execute("ALTER TABLE elsewhere RENAME TO trace_spans")
            while queue.stats().depth and not holding.done():
                time.sleep(0.02)
            told.set()
        assert (holding.result().batches, waiting.result().batches) == (1, 0)
    assert count(database_url, "trace_spans") == 3
