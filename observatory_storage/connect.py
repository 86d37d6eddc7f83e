"""One connection to PostgreSQL, tried again as configured, with an error that says what to mend."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from observatory_storage.config import StorageConfig
from observatory_storage.errors import UnavailableError, describe

logger = logging.getLogger(__name__)

# What a role, a database or a server may have otherwise, and what then cannot be read, or not exactly: times in
# another order of day and month, in the years 1 and 9999 at another offset, and numbers of fewer digits. Not start-up
# parameters, of which PgBouncer refuses those that it does not know; what it does not follow it leaves behind on its
# server connections as PostgreSQL has it from the start. One round trip for each connection.
_PINNED: Final = (
    "SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; "
    "SET bytea_output = 'hex'; SET extra_float_digits = 1"
)

_UNREACHABLE = "check that the server runs there and that DB_HOST and DB_PORT, or DATABASE_URL, name it"
# libpq keeps the SQLSTATE of a refused connection to itself, so that only the text is left to tell these apart.
# A server that speaks another language costs nothing worse than the retries and the general advice.
_REFUSALS = (
    ("password authentication failed", "check DB_USER and DB_PASSWORD, or those in DATABASE_URL"),
    ("no password supplied", "set DB_PASSWORD, or the password in DATABASE_URL"),
    ("authentication failed", "check DB_USER and the server's pg_hba.conf"),
    (
        "no pg_hba.conf entry",
        "allow this client in the server's pg_hba.conf, or change DB_USER or DB_SSL_MODE",
    ),
    ("server does not support SSL", "set DB_SSL_MODE=prefer or disable, or turn SSL on in the server"),
    ("certificate", "check DB_SSL_MODE and the certificates that sslrootcert and sslcert name"),
    ("permission denied for database", "grant CONNECT on the database to DB_USER"),
)
_MISSING_DATABASE = ('database "', "does not exist")
_MISSING_ROLE = ('role "', "does not exist")
_FULL = ("too many clients", "too many connections", "remaining connection slots")


def connect(config: StorageConfig, *, autocommit: bool = False, **parameters: Any) -> psycopg.Connection[TupleRow]:
    """Open a connection that the caller closes.

    Tries up to `config.retry.max_attempts` times, with exponentially growing, jittered pauses. What another
    attempt cannot mend, as a wrong password or a missing database, is tried once. `parameters` are libpq's.
    Raises UnavailableError with the server's own reason, the number of attempts and what to check.
    """
    retry = config.retry
    retrying = Retrying(
        retry=retry_if_exception(_is_worth_another_try),
        stop=stop_after_attempt(retry.max_attempts),
        wait=wait_exponential(
            multiplier=retry.initial_delay_ms / 1000,
            max=retry.max_delay_ms / 1000,
            exp_base=retry.backoff_multiplier,
        )
        # So that processes which lost the server together do not come back together.
        + wait_random(0, retry.initial_delay_ms / 1000),
        before_sleep=lambda state: _log_retry(config, state),
        reraise=True,
    )
    started = time.monotonic()
    try:
        return retrying(connect_once, config, autocommit=autocommit, **parameters)
    except psycopg.Error as error:
        attempts: int = retrying.statistics["attempt_number"]
        raise unavailable(config, error, attempts, time.monotonic() - started) from error


def connect_once(config: StorageConfig, *, autocommit: bool = False, **parameters: Any) -> psycopg.Connection[TupleRow]:
    """Open a connection without a second attempt; raises psycopg's own error."""
    connection = psycopg.connect(
        config.postgres.conninfo(), autocommit=True, **connect_parameters(config), **parameters
    )
    try:
        pin_settings(connection)
    except BaseException:  # an interrupt, too, would leave a connection that nobody closes
        connection.close()
        raise
    connection.autocommit = autocommit
    return connection


def pin_settings(connection: psycopg.Connection[Any]) -> None:
    """Set, in a new connection outside of a transaction, what reading depends on, whatever its role has for it."""
    connection.execute(_PINNED)


def connect_parameters(config: StorageConfig) -> dict[str, Any]:
    """Return what every connection of this package is opened with, where its conninfo does not say otherwise."""
    defaults = {
        # libpq takes whole seconds, and reads 0 as for ever.
        "connect_timeout": max(1, round(config.pool.connect_timeout_seconds)),
        # An idle connection whose other end vanished without a word is noticed after 90 s, not after 2 hours.
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        # Text is sent and read in UTF-8; PgBouncer knows this one start-up parameter.
        "client_encoding": "utf8",
    }
    return {name: value for name, value in defaults.items() if name not in config.postgres.parameters}


def unavailable(config: StorageConfig, error: BaseException, attempts: int, seconds: float) -> UnavailableError:
    """Describe a server that gave no connection: where, why, how often it was tried and what to check."""
    # The lines that begin with a tab are libpq's advice, which ours is more exact than.
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("\t")]
    reason = "; ".join(lines).removeprefix("connection failed: ").removeprefix("connection is bad: ").rstrip(".")
    tries = f"{attempts} attempts in {seconds:.1f} s" if attempts > 1 else "1 attempt"
    return UnavailableError(f"no connection to {server_name(config)}: {reason} ({tries}); {_advice(config, reason)}")


def server_name(config: StorageConfig) -> str:
    """Name the server and the database for people, without the password."""
    return f"PostgreSQL at {config.postgres}"


def _advice(config: StorageConfig, reason: str) -> str:
    if all(part in reason for part in _MISSING_DATABASE):
        return "create it with createdb, or set DB_NAME or DATABASE_URL to one that exists"
    if all(part in reason for part in _MISSING_ROLE):
        return "set DB_USER, or the user in DATABASE_URL, to a role that exists"
    if any(part in reason for part in _FULL):
        return "lower DB_MAX_CONNECTIONS, run fewer processes, or raise the server's max_connections"
    return next((advice for text, advice in _REFUSALS if text in reason), _UNREACHABLE)


def _is_worth_another_try(error: BaseException) -> bool:
    if not isinstance(error, psycopg.OperationalError):
        return False
    reason = str(error)
    return not (
        all(part in reason for part in _MISSING_DATABASE)
        or all(part in reason for part in _MISSING_ROLE)
        or any(text in reason for text, _ in _REFUSALS)
    )


def _log_retry(config: StorageConfig, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.info(
        "attempt %d to reach %s failed: %s",
        state.attempt_number,
        server_name(config),
        describe(error) if error else "unknown",
    )
