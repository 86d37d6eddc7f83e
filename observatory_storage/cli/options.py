"""What the commands have in common: where the database is, and the spelling of shared options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import SecretStr

from observatory_storage.config import PoolConfig, RedisConfig, StorageConfig
from observatory_storage.errors import ConfigurationError

# The store is one of many programs on its server, and a command needs a writer's connection and one to spare.
_MOST_CONNECTIONS: Final = 4
_NOTHING_CONFIGURED: Final = "no database is configured"
WHAT_TO_SET: Final = (
    f"{_NOTHING_CONFIGURED}: give --database-url URL or --config FILE, or set DATABASE_URL or DB_PASSWORD "
    "in the environment or in .env"
)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="The database, postgresql://user:password@host:port/name. Default: the configuration.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A TOML, JSON or YAML file. Default: environment, .env and settings.toml.",
        show_default=False,
    ),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        envvar="REDIS_URL",
        help="The Redis, redis://host:port/number. Default: the configuration.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True, slots=True)
class Where:
    """Where the database is, as far as the command line says."""

    url: str | None = None
    file: Path | None = None

    @property
    def is_given(self) -> bool:
        """Tell whether the command line says anything about it."""
        return self.url is not None or self.file is not None

    def load(self) -> StorageConfig:
        """Load the configuration. Raises ConfigurationError, which says what to set where nothing is."""
        if self.url is not None:
            return StorageConfig.from_url(self.url)
        if self.file is not None:
            return StorageConfig.from_file(self.file)
        try:
            return StorageConfig.from_env()
        except ConfigurationError as error:
            if not nothing_is_configured(error):
                raise
        raise ConfigurationError(WHAT_TO_SET, problems=(WHAT_TO_SET,))


def nothing_is_configured(error: ConfigurationError) -> bool:
    """Tell a configuration that says nothing of a database from one that is wrong."""
    return len(error.problems) == 1 and error.problems[0].startswith(_NOTHING_CONFIGURED)


def where(context: typer.Context, url: str | None, file: Path | None) -> Where:
    """Join the options before the command with those after it, which win."""
    if url is not None and file is not None:
        raise typer.BadParameter("--database-url and --config exclude each other")
    if url is not None or file is not None:
        return Where(url, file)
    return context.obj if isinstance(context.obj, Where) else Where()


def with_redis(config: StorageConfig, url: str | None) -> StorageConfig:
    """Return the configuration with the Redis that the command line names; raises ConfigurationError without any."""
    return replace(config, redis=_redis(config.redis, url))


def redis_of(place: Where, url: str | None) -> RedisConfig:
    """Return what is said of Redis, where no database is needed; raises ConfigurationError where nothing is."""
    return _redis(place.load().redis if place.is_given else StorageConfig.redis_from_env(), url)


def _redis(config: RedisConfig | None, url: str | None) -> RedisConfig:
    if url is not None:
        named = SecretStr(url)
        return RedisConfig(url=named) if config is None else replace(config, url=named)
    if config is None:
        sentence = "no Redis is configured: give --redis-url URL, or set REDIS_URL in the environment or in .env"
        raise ConfigurationError(sentence, problems=(sentence,))
    return config


def for_one_command(config: StorageConfig) -> StorageConfig:
    """Return the configuration with a pool that suits one short-lived process."""
    most = min(config.pool.max_connections, _MOST_CONNECTIONS)
    return replace(config, pool=_smaller(config.pool, most))


def _smaller(pool: PoolConfig, most: int) -> PoolConfig:
    return replace(pool, max_connections=most, min_connections=min(pool.min_connections, 1))
