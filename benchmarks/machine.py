"""The machine and the server that figures were found on, and on which cores each of them runs."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.others import psql_program

_SETTINGS: Final = (
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "work_mem",
    "jit",
)
_LIBRARIES: Final = ("psycopg", "SQLAlchemy", "asyncpg", "orjson", "pydantic", "pytest-benchmark")


def facts(url: str) -> dict[str, Any]:
    """Return what figures depend on: the machine, the versions, the server's settings and its file system."""
    with psycopg.connect(url) as connection:
        settings = {name: _shown(connection, name) for name in _SETTINGS}
        server = connection.info.parameter_status("server_version")
        directory = _shown(connection, "data_directory")
    return {
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gb": round(_memory() / 1024**3) if _memory() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libpq": psycopg.pq.__impl__,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "psql": _psql(),
        "postgresql": server,
        "settings": settings,
        "file_system": _file_system(directory),
        "socket_kb": _socket_kb(),
    }


def commit() -> str | None:
    """Return the commit that is measured, and whether something was changed since; None where there is no git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return told.stdout.strip() or None


def describe(given: Mapping[str, Any]) -> str:
    """The same in one line."""
    settings = ", ".join(f"{name} {value}" for name, value in given["settings"].items())
    libraries = ", ".join(f"{name} {value}" for name, value in given["libraries"].items() if value)
    apart = ", client and server on cores of their own" if len(_cores()) == 1 else ""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{given['cpus']} CPUs ({given['cpu']}){apart}{load}, Python {given['python']}, {libraries}, "
        f"PostgreSQL {given['postgresql']} on {given['file_system']}: {settings}"
    )


@contextmanager
def cores_apart(url: str) -> Iterator[None]:
    """Keep this process and the server's new sessions on different cores, where this user may say so.

    They wake each other all the time, and a scheduler that likes to run the woken beside the waker puts both
    on one core for whole seconds, at half the speed, while the other is idle.
    """
    cores = _cores()
    server = _server_process(url) if len(cores) > 1 else None
    if server is None:
        yield
        return
    try:
        before = os.sched_getaffinity(server)
        os.sched_setaffinity(server, set(cores[1:]))
    except (PermissionError, ProcessLookupError):
        # Another user's server.
        yield
        return
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))
        os.sched_setaffinity(server, before)


def busy_seconds() -> float | None:
    """Return how many seconds all CPUs together have worked since the start; None where nothing tells.

    User, system and interrupts of /proc/stat (proc_stat(5)); neither waiting nor what other machines took.
    """
    try:
        numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft = numbers
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _server_process(url: str) -> int | None:
    """The process of whose kind all sessions are made; None where the server runs elsewhere."""
    with psycopg.connect(url) as connection:
        session = Path(f"/proc/{connection.info.backend_pid}")
        try:
            name, parent = (session / "stat").read_text().rpartition(")")[0::2]
        except OSError:
            return None
        return int(parent.split()[1]) if "postgres" in name else None


def _shown(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute(f"SHOW {name}".encode()).fetchone()
    assert row is not None
    return str(row[0])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int:
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return 0
    return os.sysconf(names[0]) * os.sysconf(names[1])


def _socket_kb() -> int | None:
    """What Linux allows a socket to hold of what is sent, in kB: writers ask for 4 MB (`writers/rows.py`)."""
    try:
        return int(Path("/proc/sys/net/core/wmem_max").read_text()) // 1024
    except OSError:
        return None


def _psql() -> str | None:
    program = psql_program()
    if program is None:
        return None
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _file_system(directory: str) -> str:
    """The type of file system that holds the server's files, as far as this machine can tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    holding = [
        (point, kind) for point, kind in mounts if f"{directory}/".startswith(point if point == "/" else f"{point}/")
    ]
    return max(holding, key=lambda mount: len(mount[0]))[1] if Path(directory).parent.exists() and holding else "?"
