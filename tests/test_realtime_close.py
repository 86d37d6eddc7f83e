"""A pool that closes while other threads use Redis: none of them finds its connection torn."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from pydantic import SecretStr

from observatory_storage.caching import Cached
from observatory_storage.config import RedisConfig
from observatory_storage.errors import UnavailableError
from observatory_storage.pool import StoragePool
from observatory_storage.realtime.link import Realtime


def test_a_pool_that_closes_tears_no_connection_from_under_its_followers(database_url: str, redis_url: str) -> None:
    def follow(pool: StoragePool) -> None:
        assert pool.realtime is not None
        watch = pool.realtime.watch_logs(None)
        assert watch is not None
        ready.release()
        for _ in range(3):
            watch.wait(0.1)
        with suppress(UnavailableError):
            list(pool.stream.tail(idle_timeout_seconds=0.1))

    ready = threading.Semaphore(0)
    with ThreadPoolExecutor(4) as threads:
        for round_number in range(5):
            pool = StoragePool.from_url(database_url, redis_url=redis_url, min_connections=0, max_connections=1)
            running = [threads.submit(follow, pool) for _ in range(4)]
            for _ in running:
                ready.acquire()
            time.sleep(0.02 + 0.03 * round_number)
            pool.close()
            for future in running:
                future.result()


def test_a_pool_that_closes_tears_no_connection_from_under_cached_reads(pool: StoragePool, redis_url: str) -> None:
    def read(realtime: Realtime, is_over: threading.Event) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            with suppress(LookupError):
                realtime.cache.read(Cached.TRACE, b"%016d" % number, absent)

    def absent() -> NoReturn:
        raise LookupError

    config = replace(pool.config, redis=RedisConfig(url=SecretStr(redis_url)))
    assert config.redis is not None
    with ThreadPoolExecutor(6) as threads:
        for round_number in range(100):
            realtime, is_over = Realtime(config, config.redis), threading.Event()
            running = [threads.submit(read, realtime, is_over) for _ in range(6)]
            time.sleep(0.01 + round_number % 10 * 0.001)
            realtime.close()
            time.sleep(0.005)
            is_over.set()
            for future in running:
                future.result()
            realtime.close()  # what was used afterwards
