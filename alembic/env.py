"""Runs the migrations, for the `alembic` command and for `observatory_storage.migrations`."""

from __future__ import annotations

from collections.abc import Mapping
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text

from observatory_storage.config import StorageConfig
from observatory_storage.errors import StorageError
from observatory_storage.migrations import VERSION_TABLE, migration_connection
from observatory_storage.models import Base

_PARTITIONS = text("SELECT relname FROM pg_class WHERE relispartition AND relkind IN ('r', 'p')")


def main() -> None:
    """Print the SQL, or run it on the connection that was handed in, or on one of our own."""
    config = context.config
    if context.is_offline_mode():
        _run(dialect_name="postgresql", literal_binds=True)
        return
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        _run_on(given)
        return
    if config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    try:
        with migration_connection(StorageConfig.from_env()) as connection:
            _run_on(connection)
    except StorageError as error:
        # The command shows one of its own as a sentence, any other as a traceback.
        raise CommandError(str(error)) from error


def _run_on(connection: Connection) -> None:
    # Partitions come and go with the data; no model declares them.
    partitions = frozenset(connection.scalars(_PARTITIONS))
    connection.rollback()

    def include_name(name: str | None, kind: str, parents: Mapping[Any, Any]) -> bool:
        return not (kind == "table" and name in partitions)

    # One transaction for each migration: what is done stays done when the next one has to wait too long.
    _run(
        connection=connection,
        include_name=include_name,
        compare_server_default=True,
        transaction_per_migration=True,
    )


def _run(**options: Any) -> None:
    context.configure(target_metadata=Base.metadata, version_table=VERSION_TABLE, **options)
    with context.begin_transaction():
        context.run_migrations()


main()
