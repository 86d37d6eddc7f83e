"""The configuration: `StorageConfig` and its sections, from the environment, a file, a URL or code.

`observatory_storage.settings` has the table of all settings and reads their sources; here pydantic validates
them. No password is part of any repr, str or error of this module: errors are raised outside the handlers
of those that caused them, because their context would hold what was given.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NoReturn, Self, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from observatory_storage.errors import ConfigurationError
from observatory_storage.policies import DEFAULT_PARTITIONS, RetentionPolicy, partition_widths, retention_policies
from observatory_storage.settings import BY_KEY, SECTIONS, TOP_LEVEL, Given, Layer, Sources, unknown

_CONFIG: Final = ConfigDict(hide_input_in_errors=True, extra="forbid")
_UNSUITABLE: Final = re.compile("[\x00\ud800-\udfff]")
_YEAR: Final = 31_536_000
_HOUR_MS: Final = 3_600_000


def _text(value: str) -> str:
    if not value or _UNSUITABLE.search(value):
        raise ValueError("empty, or with characters that PostgreSQL refuses")
    return value


def _secret(value: SecretStr) -> SecretStr:
    if _UNSUITABLE.search(value.get_secret_value()):
        raise ValueError("characters that cannot be sent")
    return value


def _not_bool(value: object) -> object:
    # True would be taken for 1.
    if isinstance(value, bool):
        raise ValueError("a truth value")
    return value


def _port(value: object) -> object:
    """Take a number, or comma separated numbers as libpq has them for several hosts; an empty one is 5432."""
    if value is None:
        return None
    if isinstance(value, str) and "," in value:
        ports = [part.strip() for part in value.split(",")]
        if all(not part or _is_port(part) for part in ports):
            return ",".join(ports) if any(ports) else 5432
    elif (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, str):
        text = str(value).strip() if isinstance(value, str) or abs(value) < 10**6 else ""
        if _is_port(text):
            return int(text)
    raise ValueError("not a port number")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def _redis_url(value: SecretStr) -> SecretStr:
    from urllib.parse import urlsplit

    url = _secret(value).get_secret_value()
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss"):
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host")
    elif parts.scheme != "unix" or not parts.path:
        raise ValueError("not a Redis URL")
    return value


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[^\s{}\x00\ud800-\udfff]{1,100}", value):
        raise ValueError("not a prefix of keys")
    return value


Text = Annotated[str, AfterValidator(_text)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


def _line(class_name: str, fault: Any, names: Mapping[str, str]) -> str:
    section = class_name.removesuffix("Config").lower()
    if not fault["loc"]:
        return f"{section} is of type {type(fault['input']).__name__}; it may be a {class_name}"
    field = str(fault["loc"][0])
    key = field if section == "storage" else f"{section}.{field}"
    if fault["type"] == "default_factory_not_called":
        return ""
    if key not in BY_KEY:
        return unknown(key, key, BY_KEY)
    setting = BY_KEY[key]
    name = names.get(key, key)
    holds = fault["msg"] if fault["type"] == "relation" else setting.holds
    if setting.secret or "url" in name.lower():
        return f"{name} holds a value that is not shown and cannot be used; it may hold {holds}"
    return f"{name} is {_shown(fault['input'])}; it may hold {holds}"


def _shown(value: object) -> str:
    if isinstance(value, (str, int, float)):
        # repr() refuses integers of more than 4,300 digits.
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
        return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
    return f"a value of type {type(value).__name__}"


def _error(problems: tuple[str, ...]) -> ConfigurationError:
    if len(problems) == 1:
        return ConfigurationError(problems[0], problems=problems)
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ConfigurationError(f"{len(problems)} settings are wrong:{lines}", problems=problems)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class _Validated:
    @model_validator(mode="wrap")
    @classmethod
    def _report(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Turn pydantic's errors into one ConfigurationError; the context has the names the user knows."""
        try:
            return handler(data)
        except ValidationError as error:
            faults = error.errors(include_url=False)
        lines = [_line(cls.__name__, fault, info.context or {}) for fault in faults]
        raise _error(tuple(filter(None, lines)))


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class PostgresConfig(_Validated):
    """How to reach PostgreSQL.

    None leaves a part to libpq: its default, its `PG*` variables, or a service file. `host` may be the
    directory of a unix socket, and host and port may name several servers, separated by commas.
    `parameters` are further connection parameters of libpq, such as `sslrootcert`.
    """

    host: Text | None = Field(default="localhost")
    port: Annotated[int | str | None, BeforeValidator(_port)] = Field(default=5432)
    database: Text | None = Field(default="llm_observatory")
    username: Text | None = Field(default="postgres")
    password: Annotated[SecretStr, AfterValidator(_secret)] = Field(default=SecretStr(""))
    ssl_mode: SslMode | None = Field(default="prefer")
    application_name: Text = Field(default="llm-observatory")
    parameters: Mapping[str, Text] = dataclasses.field(default_factory=dict, repr=False, hash=False)

    @field_validator("parameters")
    @classmethod
    def _known_to_libpq(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        try:
            make_conninfo("", **value)
        except (psycopg.Error, TypeError):
            known = False
        else:
            known = True
        if not known:
            raise ValueError("libpq does not know them")
        return value

    def conninfo(self) -> str:
        """Return libpq's connection string, with the password: hand it to psycopg and show it nowhere."""
        own = {
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "user": self.username,
            "password": self.password.get_secret_value() or None,
            "sslmode": self.ssl_mode,
            "application_name": self.application_name,
        }
        return make_conninfo("", **{**self.parameters, **{k: v for k, v in own.items() if v is not None}})

    def __str__(self) -> str:
        """Return user, host, port and database in one word, without the password."""
        user = f"{self.username}@" if self.username else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{self.host or ''}{port}/{self.database or ''}"


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class RedisConfig(_Validated):
    """How to reach Redis. The URL may hold a password and is kept as a secret."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)]
    pool_size: Whole = Field(default=10, ge=1, le=10_000)
    timeout_seconds: Number = Field(default=5.0, gt=0, le=_YEAR, allow_inf_nan=False)
    namespace: Annotated[str, AfterValidator(_namespace)] = Field(default="observatory")
    """What all keys begin with."""
    cache_timeout_seconds: Number = Field(default=0.25, gt=0, le=_YEAR, allow_inf_nan=False)
    """How long a cached read, or a writer that has committed, waits for Redis; no longer than `timeout_seconds`."""
    cache_trace_ttl_seconds: Number = Field(default=60.0, ge=0, le=_YEAR, allow_inf_nan=False)
    """How long what is known of a trace is kept, unless a write drops it; 0 keeps nothing."""
    cache_figures_ttl_seconds: Number = Field(default=5.0, ge=0, le=_YEAR, allow_inf_nan=False)
    """How old figures over many traces, and latest points, may be; 0 keeps nothing."""
    cache_max_bytes: Whole = Field(default=1_048_576, ge=1, le=536_870_912)
    """The largest value that is kept, as it is stored."""
    stream_max_entries: Whole = Field(default=2_000, ge=0, le=100_000_000)
    """How many entries, of up to 200 events each, are kept of a signal and a project; 0 publishes nothing."""
    stream_max_age_seconds: Number = Field(default=3600.0, gt=0, le=_YEAR, allow_inf_nan=False)
    """How long events are kept."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class PoolConfig(_Validated):
    """The limits of the connection pool. Without a minimum it is 5, or the maximum where that is less."""

    max_connections: Whole = Field(default=50, ge=1, le=10_000)
    min_connections: Whole = Field(default_factory=lambda given: min(5, given["max_connections"]), ge=0, le=10_000)
    connect_timeout_seconds: Number = Field(default=10.0, gt=0, le=_YEAR, allow_inf_nan=False)
    idle_timeout_seconds: Number = Field(default=300.0, gt=0, le=_YEAR, allow_inf_nan=False)
    max_lifetime_seconds: Number = Field(default=1800.0, gt=0, le=_YEAR, allow_inf_nan=False)

    @field_validator("min_connections")
    @classmethod
    def _not_above_maximum(cls, value: int, info: ValidationInfo) -> int:
        return _at_most(value, "pool.max_connections", info)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class RetryConfig(_Validated):
    """How often and when to try again. Without a longest delay it is 5 s, or the first where that is more."""

    max_attempts: Whole = Field(default=3, ge=1, le=100)
    initial_delay_ms: Whole = Field(default=100, ge=1, le=_HOUR_MS)
    max_delay_ms: Whole = Field(default_factory=lambda given: max(5000, given["initial_delay_ms"]), ge=1, le=_HOUR_MS)
    backoff_multiplier: Number = Field(default=2.0, ge=1, le=100, allow_inf_nan=False)

    @field_validator("max_delay_ms")
    @classmethod
    def _not_below_first(cls, value: int, info: ValidationInfo) -> int:
        return _at_least(value, "retry.initial_delay_ms", info)


def _at_most(value: int, key: str, info: ValidationInfo) -> int:
    limit = info.data.get(key.partition(".")[2], value)
    return value if value <= limit else _refuse("at most", key, limit, info)


def _at_least(value: int, key: str, info: ValidationInfo) -> int:
    limit = info.data.get(key.partition(".")[2], value)
    return value if value >= limit else _refuse("no less than", key, limit, info)


def _refuse(relation: str, key: str, limit: int, info: ValidationInfo) -> NoReturn:
    name = (info.context or {}).get(key, key)
    raise PydanticCustomError("relation", "{holds}", {"holds": f"{relation} {name}, which is {limit}"})


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class StorageConfig(_Validated):
    """All settings of the storage; immutable (`dataclasses.replace` makes a changed copy).

    It is valid from the start: whatever way it is made, wrong values raise ConfigurationError, whose
    `problems` has one line for each of them.
    """

    postgres: PostgresConfig = dataclasses.field(default_factory=PostgresConfig)
    redis: RedisConfig | None = Field(default=None)
    pool: PoolConfig = dataclasses.field(default_factory=PoolConfig)
    retry: RetryConfig = dataclasses.field(default_factory=RetryConfig)
    project: Annotated[Text, Field(max_length=255)] = Field(default="default")
    retention: Annotated[tuple[RetentionPolicy, ...], PlainValidator(retention_policies)] = ()
    """How long telemetry is kept; what has no policy is kept."""
    partitions: Annotated[Mapping[str, str], PlainValidator(partition_widths)] = dataclasses.field(
        default_factory=lambda: dict(DEFAULT_PARTITIONS), hash=False
    )
    """How wide new partitions are, by table: hour, day, week or month."""

    @classmethod
    def from_env(cls) -> StorageConfig:
        """Load the environment, then `.env`, then `settings.toml`; the first to have a setting decides.

        The two files are looked for in the working directory and nowhere else. Where a source has
        DATABASE_URL, single settings of the same or a weaker source only fill in what the URL lacks.
        Raises ConfigurationError, also where no source says anything about the database.
        """
        sources = _environment()
        return _assemble(sources.layers(), sources.problems, _names())

    @classmethod
    def redis_from_env(cls) -> RedisConfig | None:
        """Load what `from_env` does, and return what it says of Redis; nothing need be said about a database."""
        sources = _environment()
        return _assemble(sources.layers(), sources.problems, _names(), needs_database=False).redis

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> StorageConfig:
        """Load a TOML, JSON or YAML file, told by its ending; the environment and `.env` are not read.

        Its sections are postgres (url, or host, port, database, username, password, ssl_mode,
        application_name, parameters), redis (url, pool_size, timeout_secs, namespace, cache_timeout_secs,
        cache_trace_ttl_secs, cache_figures_ttl_secs, cache_max_bytes, stream_max_entries, stream_max_age_secs), pool
        (max_connections, min_connections, connect_timeout_secs, idle_timeout_secs, max_lifetime_secs), retry
        (max_attempts, initial_delay_ms, max_delay_ms, backoff_multiplier); beside them stand `project`, `retention`
        and `partitions`, the last two as text or lists of texts. The names of the environment are taken as well.
        YAML needs PyYAML. Raises ConfigurationError, also for keys that are not known.
        """
        sources = Sources()
        sources.read_file(os.fspath(path), strict=True)
        return _assemble(sources.layers(), sources.problems, {})

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> StorageConfig:
        """Take the database from a URL and everything else from keyword arguments or the defaults.

        The keywords are the fields of the sections (`max_connections=4`), those of Redis with `redis_` in
        front, `project`, and whole sections (`retry=RetryConfig(…)`). They win over the URL; one that is
        None counts as not given. Reads neither files nor the environment. Raises ConfigurationError.
        """
        problems: list[str] = []
        given: Layer = {}
        sections: dict[str, Any] = {}
        for name, value in overrides.items():
            if name in SECTIONS:
                sections[name] = value
            elif name in _OVERRIDES:
                if value is not None:
                    given[_OVERRIDES[name]] = Given(name, value)
            else:
                problems.append(unknown(name, name, _OVERRIDES))
        config = _assemble([{"postgres.url": Given("the database URL", SecretStr(url))}, given], problems, {})
        return dataclasses.replace(config, **sections)

    def validate(self) -> None:
        """Check every value once more; raises ConfigurationError with a line for each wrong one."""
        problems: list[str] = []
        for section in SECTIONS:
            part = getattr(self, section)
            if dataclasses.is_dataclass(part):
                values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
                _build(type(part), values, {}, problems)
        _build(StorageConfig, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, {}, problems)
        if problems:
            raise _error(tuple(problems))


_Section = TypeVar("_Section")
_OVERRIDES: Final = {
    key.replace(".", "_") if key.startswith("redis.") else key.rpartition(".")[2]: key
    for key in BY_KEY
    if key != "postgres.url"
}


def _environment() -> Sources:
    sources = Sources()
    if os.path.isfile("settings.toml"):
        sources.read_file("settings.toml", strict=False)
    if os.path.isfile(".env"):
        sources.read_dotenv(".env")
    sources.read_environment(os.environ)
    return sources


def _names() -> dict[str, str]:
    return {key: setting.names[0] for key, setting in BY_KEY.items() if setting.names}


def _assemble(
    layers: list[Layer], problems: list[str], names: dict[str, str], *, needs_database: bool = True
) -> StorageConfig:
    given = _merge(layers, problems)
    names = names | {key: value.name for key, value in given.items()}
    if needs_database and not problems and not any(key.startswith("postgres.") for layer in layers for key in layer):
        problems.append(
            "no database is configured; set DATABASE_URL or DB_PASSWORD, or in a file postgres.url or postgres.password"
        )

    def values(section: str) -> dict[str, Any]:
        return {key.partition(".")[2]: v.value for key, v in given.items() if key.startswith(f"{section}.")}

    postgres = _build(PostgresConfig, values("postgres"), names, problems)
    redis_values = values("redis")
    # A pool size without a URL asks for no Redis, but it is checked all the same.
    redis = _build(RedisConfig, {"url": "redis://localhost", **redis_values}, names, problems)
    pool = _build(PoolConfig, values("pool"), names, problems)
    retry = _build(RetryConfig, values("retry"), names, problems)
    rest: dict[str, Any] = {key: given[key].value for key in TOP_LEVEL if key in given}
    whole = _build(StorageConfig, rest, names, problems)
    if problems or not (whole and postgres and pool and retry):
        raise _error(tuple(problems))
    return dataclasses.replace(
        whole, postgres=postgres, redis=redis if "url" in redis_values else None, pool=pool, retry=retry
    )


def _build(cls: type[_Section], values: dict[str, Any], names: dict[str, str], problems: list[str]) -> _Section | None:
    try:
        return TypeAdapter(cls).validate_python(values, context=names)
    except ConfigurationError as error:
        problems.extend(error.problems)
    return None


def _merge(layers: list[Layer], problems: list[str]) -> Layer:
    """Lay the stronger sources over the weaker ones; of several URLs only the strongest has a say."""
    last_url = max((i for i, layer in enumerate(layers) if "postgres.url" in layer), default=None)
    merged: Layer = {}
    for i, layer in enumerate(layers):
        merged |= {key: value for key, value in layer.items() if key != "postgres.url"}
        if i == last_url:
            url = layer["postgres.url"]
            parts, problem = parse_url(url.value)
            if problem is not None:
                problems.append(f"{url.name} {problem}; it may hold {BY_KEY['postgres.url'].holds}")
            has_service = "service" in parts.get("parameters", {})
            absent = ("host", "database", "username", *(("port", "ssl_mode") if has_service else ()))
            for field in absent:
                merged.setdefault(f"postgres.{field}", Given(url.name, None))
            for field, value in parts.items():
                merged[f"postgres.{field}"] = Given(f"the {field} in {url.name}", value)
    return merged


_LIBPQ_FIELDS: Final = {
    "host": "host",
    "port": "port",
    "dbname": "database",
    "user": "username",
    "password": "password",
    "sslmode": "ssl_mode",
    "application_name": "application_name",
}
_SCHEME: Final = re.compile(r"postgres(?:ql)?(?:\+psycopg)?://", re.IGNORECASE)


def parse_url(url: object) -> tuple[dict[str, Any], str | None]:
    """Split a database URL into the fields of PostgresConfig; what is wrong with it comes as a second value.

    libpq does the work, so that whatever it takes is taken: percent-encoding, unix sockets, IPv6, several
    hosts, options. What it takes and does not mean is refused: an @ or / in a password that is not
    encoded turns the rest of the password into a host or a database name, which are shown.
    """
    text = url.get_secret_value().strip() if isinstance(url, SecretStr) else ""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return {}, "does not begin with postgresql:// or postgres:// (it is not shown)"
    rest = text[scheme.end() :]
    authority, _, tail = rest.partition("/")
    user_info, at, host = authority.partition("@")
    if "@" in host or "@" in tail.partition("?")[0] or (not at and "@" in tail) or (at and "?" in user_info):
        return {}, "has an @, / or ? that must be percent-encoded (it is not shown)"
    try:
        found = conninfo_to_dict(f"postgresql://{rest}")
    except (psycopg.Error, UnicodeError):
        # The message quotes the URL.
        return {}, "cannot be read (it is not shown)"
    fields: dict[str, Any] = {field: found.pop(name) for name, field in _LIBPQ_FIELDS.items() if name in found}
    if "password" in fields:
        fields["password"] = SecretStr(fields["password"])
    return fields | ({"parameters": found} if found else {}), None
