"""Where settings come from: their table, and their raw values in files, `.env` and the environment.

dynaconf loads each source. It never gets to see a string as something to parse: its casting is off, and its
own environment loader, which reads every value as TOML, is replaced by a plain one. Its default chain of
loaders is not run, because that chain obeys `*_FOR_DYNACONF` variables, walks through parent directories and
executes a `dynaconf_hooks.py` it finds beside the settings.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from pydantic import SecretStr

logger = logging.getLogger(__name__)


class Setting(NamedTuple):
    """One setting: its place in `StorageConfig`, what it may hold, and its names in the environment."""

    key: str
    holds: str
    names: tuple[str, ...]
    other_keys: tuple[str, ...] = ()
    secret: bool = False


_TEXT = "text that is not empty, in UTF-8 and without NUL"
_SECONDS = "a number of seconds above 0 and up to 31,536,000 (a year)"
_SECONDS_OR_NONE = "a number of seconds from 0 (not at all) to 31,536,000 (a year)"
_MILLISECONDS = "a whole number of milliseconds from 1 to 3,600,000 (an hour)"

SETTINGS: Final = (
    Setting(
        "postgres.url",
        "postgresql://user:password@host:port/database?option=value, special characters in the password "
        "percent-encoded (@ as %40, / as %2F) and with libpq's options only",
        ("DATABASE_URL",),
        secret=True,
    ),
    Setting("postgres.host", "a host name, an address or the directory of a unix socket", ("DB_HOST",)),
    Setting(
        "postgres.port",
        "a port number from 1 to 65535, or one for each host, separated by commas",
        ("DB_PORT",),
    ),
    Setting("postgres.database", _TEXT, ("DB_NAME",)),
    Setting("postgres.username", _TEXT, ("DB_USER",)),
    Setting(
        "postgres.password",
        "text (quoted in a file), in UTF-8 and without NUL",
        ("DB_PASSWORD",),
        secret=True,
    ),
    Setting("postgres.ssl_mode", "disable, allow, prefer, require, verify-ca or verify-full", ("DB_SSL_MODE",)),
    Setting("postgres.application_name", _TEXT, ("DB_APP_NAME",)),
    Setting("postgres.parameters", "further connection parameters of libpq, each of them text", (), secret=True),
    Setting("redis.url", "redis://…, rediss://… or unix://…", ("REDIS_URL",), secret=True),
    Setting("redis.pool_size", "a whole number from 1 to 10,000", ("REDIS_POOL_SIZE",)),
    Setting("redis.timeout_seconds", _SECONDS, ("REDIS_TIMEOUT_SECS",), ("timeout_secs",)),
    Setting("redis.namespace", "text of 1 to 100 characters, without spaces and braces", ("REDIS_NAMESPACE",)),
    Setting("redis.cache_timeout_seconds", _SECONDS, ("REDIS_CACHE_TIMEOUT_SECS",), ("cache_timeout_secs",)),
    Setting(
        "redis.cache_trace_ttl_seconds", _SECONDS_OR_NONE, ("REDIS_CACHE_TRACE_TTL_SECS",), ("cache_trace_ttl_secs",)
    ),
    Setting(
        "redis.cache_figures_ttl_seconds",
        _SECONDS_OR_NONE,
        ("REDIS_CACHE_FIGURES_TTL_SECS",),
        ("cache_figures_ttl_secs",),
    ),
    Setting("redis.cache_max_bytes", "a whole number from 1 to 536,870,912", ("REDIS_CACHE_MAX_BYTES",)),
    Setting("redis.stream_max_entries", "a whole number from 0 to 100,000,000", ("REDIS_STREAM_MAX_ENTRIES",)),
    Setting("redis.stream_max_age_seconds", _SECONDS, ("REDIS_STREAM_MAX_AGE_SECS",), ("stream_max_age_secs",)),
    Setting(
        "pool.max_connections",
        "a whole number from 1 to 10,000",
        ("DB_MAX_CONNECTIONS", "DB_POOL_MAX_CONNECTIONS", "DB_POOL_MAX_SIZE"),
    ),
    Setting(
        "pool.min_connections",
        "a whole number from 0 to 10,000",
        ("DB_MIN_CONNECTIONS", "DB_POOL_MIN_CONNECTIONS", "DB_POOL_MIN_SIZE"),
    ),
    Setting(
        "pool.connect_timeout_seconds",
        _SECONDS,
        ("DB_CONNECT_TIMEOUT_SECS", "DB_POOL_CONNECT_TIMEOUT_SECS", "DB_POOL_CONNECT_TIMEOUT"),
        ("connect_timeout_secs",),
    ),
    Setting(
        "pool.idle_timeout_seconds",
        _SECONDS,
        ("DB_IDLE_TIMEOUT_SECS", "DB_POOL_IDLE_TIMEOUT_SECS", "DB_POOL_IDLE_TIMEOUT"),
        ("idle_timeout_secs",),
    ),
    Setting(
        "pool.max_lifetime_seconds",
        _SECONDS,
        ("DB_MAX_LIFETIME_SECS", "DB_POOL_MAX_LIFETIME_SECS", "DB_POOL_MAX_LIFETIME"),
        ("max_lifetime_secs",),
    ),
    Setting("retry.max_attempts", "a whole number from 1 to 100", ("DB_RETRY_MAX_ATTEMPTS",), ("max_retries",)),
    Setting("retry.initial_delay_ms", _MILLISECONDS, ("DB_RETRY_INITIAL_DELAY_MS",)),
    Setting("retry.max_delay_ms", _MILLISECONDS, ("DB_RETRY_MAX_DELAY_MS",)),
    Setting("retry.backoff_multiplier", "a number from 1 to 100", ("DB_RETRY_BACKOFF_MULTIPLIER",)),
    Setting("project", "text of 1 to 255 characters, in UTF-8 and without NUL", ("OBSERVATORY_PROJECT",)),
    Setting(
        "retention",
        "policies as in traces=30d, logs=7d, traces:research=365d: a signal (traces, metrics, logs or usage), a "
        "project after a colon, and a number of h, d or w from 1h to 36525d, or forever; no two about the same",
        ("OBSERVATORY_RETENTION",),
    ),
    Setting(
        "partitions",
        "widths as in traces=day, metrics=week, logs=hour: a signal or a partitioned table, and hour, day, week or "
        "month; no two for one table",
        ("OBSERVATORY_PARTITIONS",),
    ),
)

BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
SECTIONS: Final = ("postgres", "redis", "pool", "retry")
# Settings that stand beside the sections.
TOP_LEVEL: Final = tuple(key for key in BY_KEY if "." not in key)
_BY_NAME: Final = {name: setting for setting in SETTINGS for name in setting.names}
_BY_FILE_KEY: Final = {
    key: setting
    for setting in SETTINGS
    for key in (setting.key, *(f"{setting.key.partition('.')[0]}.{other}" for other in setting.other_keys))
}


class Given(NamedTuple):
    """A value as it was given; `name` is the user's spelling, with the file it stands in."""

    name: str
    value: Any


Layer = dict[str, Given]
"""The values of one source by `Setting.key`."""


class Sources:
    """Raw settings, source by source; `problems` has a line for each that could not be read.

    `layers` stands in the order of precedence, the weakest first.
    """

    def __init__(self) -> None:
        # Imported here because dynaconf reads the environment when it is imported.
        from dynaconf.base import LazySettings

        self.problems: list[str] = []
        self._store = LazySettings(
            dynaconf_skip_loaders=True,
            dynaconf_skip_validators=True,
            load_dotenv=False,
            auto_cast=False,
            environments=False,
            merge_enabled=False,
            dotted_lookup=False,
            nested_separator=False,
        )
        self._names: dict[str, str] = {}

    def read_file(self, path: str, *, strict: bool) -> None:
        """Read a TOML, JSON or YAML file; where `strict`, each top-level key it holds must be known."""
        from dynaconf.loaders.base import BaseLoader

        extension = os.path.splitext(path)[1].lower()
        if extension not in _READERS:
            self.problems.append(f"{path} has the ending {extension!r}; it may be .toml, .json, .yaml or .yml")
            return

        def read(file: BinaryIO) -> dict[str, Any]:
            return self._read_document(path, extension, file, strict)

        # dynaconf turns an unreadable file into a warning.
        if not self._can_open(path):
            return
        self._names[path] = "" if strict else f" in {path}"
        loader = BaseLoader(
            obj=self._store,
            env="_envless",
            identifier="file",
            extensions=(os.path.splitext(path)[1],),
            file_reader=read,
            string_reader=read,
            opener_params={"mode": "rb"},
        )
        loader.load(filename=[path])

    def read_dotenv(self, path: str) -> None:
        """Read a `.env` file without touching the environment and without expanding variables in it."""
        from dynaconf.vendor.dotenv import parser

        if not self._can_open(path):
            return
        text = _decode(Path(path).read_bytes())
        if text is None:
            self.problems.append(f"{path} cannot be read: it is not UTF-8")
            return
        values: dict[str, str] = {}
        parse_stream: Any = parser.parse_stream
        for binding in parse_stream(_TextStream(text)):
            if binding.error:
                if any(name in binding.original.string for name in _BY_NAME):
                    self.problems.append(f"{path} cannot be read at line {binding.original.line}")
            elif binding.key in _BY_NAME and binding.value:
                values[binding.key] = binding.value
        self._names[path] = f" in {path}"
        self._add(path, values)

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take the known names from the environment; all others are none of our business.

        An empty value is none, as with a variable that a compose file passes on unset.
        """
        self._names["environment"] = ""
        self._add("environment", {name: environ[name] for name in _BY_NAME if environ.get(name)})

    def layers(self) -> list[Layer]:
        """Return what was read, the weakest source first."""
        # loaded_by_loaders holds the values as they were handed to dynaconf, source by source.
        return [
            self._layer(values, self._names[source.identifier])
            for source, values in self._store.loaded_by_loaders.items()
            if source.identifier in self._names
        ]

    def _add(self, identifier: str, values: dict[str, str]) -> None:
        from dynaconf.loaders.base import SourceMetadata

        self._store.update(values, loader_identifier=SourceMetadata("plain", identifier))

    def _can_open(self, path: str) -> bool:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")
            return False
        return True

    def _read_document(self, path: str, extension: str, file: BinaryIO, strict: bool) -> dict[str, Any]:
        text = _decode(file.read())
        if text is None:
            self.problems.append(f"{path} cannot be read: it is not UTF-8")
            return {}
        document, problem = _READERS[extension](text)
        if problem is None and document is not None and not isinstance(document, dict):
            problem = "it must hold sections such as postgres and pool"
        if problem is not None:
            self.problems.append(f"{path} cannot be read: {problem}")
            return {}
        where = "" if strict else f" in {path}"
        return {key: value for key, value in (document or {}).items() if self._is_known(key, value, where, strict)}

    def _is_known(self, key: str, value: Any, where: str, strict: bool) -> bool:
        """Tell whether a top-level key is one of ours; report what is not, and wrong keys below it."""
        if key.lower() in SECTIONS:
            if isinstance(value, dict):
                for field in value:
                    if f"{key}.{field}".lower() not in _BY_FILE_KEY:
                        self.problems.append(unknown(f"{key}.{field}{where}", f"{key}.{field}", _BY_FILE_KEY))
            elif value is not None:
                self.problems.append(f"{key}{where} must be a section with settings of its own")
            return isinstance(value, dict)
        if key.lower() in TOP_LEVEL or key.upper() in _BY_NAME:
            return True
        candidates = [*SECTIONS, *TOP_LEVEL, *_BY_NAME]
        if strict:
            self.problems.append(unknown(key, key, candidates))
        elif difflib.get_close_matches(key.lower(), SECTIONS, cutoff=0.8):
            # A settings.toml in the working directory may belong to another program as well.
            logger.warning("%s", unknown(f"{key}{where}", key, candidates))
        return False

    def _layer(self, values: Mapping[str, Any], where: str) -> Layer:
        layer: Layer = {}
        for key, value in values.items():
            section = key.lower()
            if section in SECTIONS:
                for field, item in value.items():
                    self._put(
                        layer,
                        _BY_FILE_KEY.get(f"{section}.{field}".lower()),
                        f"{section}.{field}{where}",
                        item,
                    )
            elif section in TOP_LEVEL:
                self._put(layer, BY_KEY[section], f"{section}{where}", value)
            else:
                self._put(layer, _BY_NAME[key.upper()], f"{key}{where}", value)
        return layer

    def _put(self, layer: Layer, setting: Setting | None, name: str, value: Any) -> None:
        if setting is None or value is None:
            return
        if setting.secret and isinstance(value, str):
            value = SecretStr(value)
        before = layer.get(setting.key)
        if before is not None and before.value != value:
            self.problems.append(f"{before.name} and {name} are two spellings of one setting and differ")
        layer.setdefault(setting.key, Given(name, value))


def unknown(shown: str, key: str, candidates: Mapping[str, Any] | list[str]) -> str:
    """Say that there is no such setting, and which one may have been meant."""
    folded = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(key.lower(), folded, n=1)
    return f"{shown} is not a setting" + (f"; did you mean {folded[close[0]]}?" if close else "")


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


class _TextStream:
    # All that dynaconf's parser asks of a file; an io.StringIO would translate line ends.
    def __init__(self, text: str) -> None:
        self._text = text

    def read(self) -> str:
        return self._text


# A parser's own message may quote the line with the password: only its position is passed on.
def _read_toml(text: str) -> tuple[Any, str | None]:
    try:
        return tomllib.loads(text), None
    except (ValueError, RecursionError) as error:
        position = str(error).rpartition("(at ")[2].rstrip(")") if "(at " in str(error) else "nested too deeply"
    return None, f"it is not TOML ({position})"


def _read_json(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        position = "a number too long, or nested too deeply"
    return None, f"it is not JSON ({position})"


def _read_yaml(text: str) -> tuple[Any, str | None]:
    try:
        import yaml
    except ImportError:
        return None, "YAML needs PyYAML; install observatory-storage[yaml], or use TOML or JSON"

    # Scalars stay the text they are, so that an unquoted password such as 1e5 or true is kept; ~ and
    # null mean that nothing is given.
    class TextLoader(yaml.SafeLoader):
        pass

    kept = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    TextLoader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] in kept]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return TextLoader(text).get_single_data(), None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "no position"
    except (yaml.YAMLError, ValueError, RecursionError):
        position = "a character that YAML forbids, or nested too deeply"
    return None, f"it is not YAML ({position})"


_READERS: Final[dict[str, Callable[[str], tuple[Any, str | None]]]] = {
    ".toml": _read_toml,
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
