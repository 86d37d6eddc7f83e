"""Fixtures: a Redis that a test may pause, kill or starve, and pools beside it whose cache does not wait long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observatory_storage.pool import StoragePool
from tests.cached import pool_on
from tests.servers import RedisProcess, all_redis


@pytest.fixture(params=[kind for kind in all_redis() if kind not in ("given", "docker")])
def server(request: pytest.FixtureRequest) -> Iterator[RedisProcess]:
    with RedisProcess(request.param) as process:
        yield process


@pytest.fixture
def pool(database_url: str, server: RedisProcess) -> Iterator[StoragePool]:
    with pool_on(database_url, server.url) as pool:
        yield pool


@pytest.fixture
def other_pool(database_url: str, server: RedisProcess) -> Iterator[StoragePool]:
    with pool_on(database_url, server.url) as pool:
        yield pool
