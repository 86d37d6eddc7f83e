"""Fixtures: servers, a database of its own for each test, a pool on it, a recorder of statements."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from observatory_storage.pool import StoragePool
from tests.servers import Servers, all_kinds, all_redis, database, default_kind, default_redis, redis_of

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_server: run on each kind of PostgreSQL server that is found")
    config.addinivalue_line("markers", "every_redis: run on each kind of Redis server that is found")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server_kind" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_server"):
        metafunc.parametrize("server_kind", all_kinds(), indirect=True, scope="session")
    if "redis_kind" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_redis"):
        metafunc.parametrize("redis_kind", all_redis(), indirect=True, scope="session")


def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over what stays until the end: thousands of tests, and what they import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """All servers of this run; they stop at its end."""
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> str:
    """Which server the test runs on; `every_server` makes it each in turn."""
    return str(getattr(request, "param", default_kind()))


@pytest.fixture(scope="session")
def server_url(servers: Servers, server_kind: str) -> str:
    """A running server's own database: make no tables in it."""
    return servers.url(server_kind)


@pytest.fixture
def database_url(servers: Servers, server_kind: str, server_url: str) -> Iterator[str]:
    """A database that is migrated to head and that this test has to itself."""
    with database(server_url, servers.template(server_kind)) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database without any table."""
    with database(server_url) as url:
        yield url


@pytest.fixture
def pool(database_url: str) -> Iterator[StoragePool]:
    """A small pool on this test's database."""
    with StoragePool.from_url(database_url, min_connections=1, max_connections=5) as pool:
        yield pool


@pytest.fixture(scope="session")
def redis_urls() -> Iterator[Callable[[str], str]]:
    """The URL of a running Redis of a kind, which stops at the end of the run."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(redis_of(kind)))


@pytest.fixture(scope="session")
def redis_kind(request: pytest.FixtureRequest) -> str:
    """Which Redis the test runs on; `every_redis` makes it each in turn."""
    return str(getattr(request, "param", default_redis()))


@pytest.fixture(scope="session")
def redis_url(redis_urls: Callable[[str], str], redis_kind: str) -> str:
    """A running Redis; tests share it, so that each needs keys of its own."""
    return redis_urls(redis_kind)


@pytest.fixture
def redis_pool(database_url: str, redis_url: str) -> Iterator[StoragePool]:
    """A small pool on this test's database, with Redis; keys begin with the database's name."""
    with StoragePool.from_url(database_url, redis_url=redis_url, min_connections=1, max_connections=10) as pool:
        yield pool


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """The folder of recorded telemetry, where this machine has it."""
    given = os.environ.get("OBSERVATORY_SHARED_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


class Statements(list[str]):
    """The statements that an engine sent, in order."""


@contextmanager
def _recorded(engine: Engine) -> Iterator[Statements]:
    seen = Statements()

    def note(*arguments: Any) -> None:
        seen.append(arguments[2])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def recorded_statements(pool: StoragePool) -> Callable[[], AbstractContextManager[Statements]]:
    """`with recorded_statements() as seen:` collects what the pool's sessions send; `len(seen)` counts it."""
    return lambda: _recorded(pool.engine)
