"""Every error the package raises, and the one place where an SQLSTATE becomes one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
import sqlalchemy.exc


class StorageError(Exception):
    """Base of all errors of this package.

    `str(error)` is one plain sentence; facts stand in attributes. All of them can be pickled.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None, constraint_name: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint_name = constraint_name

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigurationError(StorageError):
    """A setting is missing or wrong; `problems` holds one line for each."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UnavailableError(StorageError):
    """The server cannot be reached or is not ready; the same call may succeed later."""


class PoolTimeoutError(UnavailableError):
    """No connection became free in time."""


class NotFoundError(StorageError):
    """What was asked for by its identity is not stored."""


class IntegrityError(StorageError):
    """The database refused a row by one of its constraints (`constraint_name`)."""


class InvalidFilterError(StorageError):
    """A filter, a limit or a cursor holds what it may not; `problems` has one line for each."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class ReadTimeoutError(StorageError):
    """The server stopped a read that took longer than it may."""


class SchemaVersionError(StorageError):
    """The database's schema is not the one this release works with."""


class DecodeError(StorageError):
    """A payload as a whole cannot be read as what it was said to be."""


class WriteError(StorageError):
    """A write did not commit; `unwritten` counts the rows that are not stored."""

    def __init__(self, message: str, *, unwritten: int = 0, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.unwritten = unwritten


class BufferFullError(WriteError):
    """The buffer stayed full for as long as the writer was told to wait.

    `taken` counts the rows of the call that are in the buffer; those after them were not taken.
    """

    def __init__(self, message: str, *, taken: int = 0, unwritten: int = 0) -> None:
        super().__init__(message, unwritten=unwritten)
        self.taken = taken


class QueueFullError(StorageError):
    """A queue holds as much as it may: the same call may succeed when workers have caught up."""


class RejectedRowError(StorageError):
    """One row that cannot be stored; `row` is what was given, `reason` says why."""

    def __init__(self, reason: str, *, row: Mapping[str, Any] | None = None, sqlstate: str | None = None) -> None:
        super().__init__(reason, sqlstate=sqlstate)
        self.row = row

    @property
    def reason(self) -> str:
        """Why the row cannot be stored, in one sentence."""
        return str(self)


def _rebuild(cls: type[StorageError], args: tuple[Any, ...], state: dict[str, Any]) -> StorageError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


# Class 08 is a broken connection, 57P01-57P03 and 57P05 a server that stops, starts or drops the session,
# 53xxx a server out of resources, 55P03 a lock timeout, 40xxx a transaction that lost to another.
_TRANSIENT_CLASSES = ("08", "40", "53")
_TRANSIENT_STATES = frozenset({"55P03", "57P01", "57P02", "57P03", "57P05", "25P03"})
# 22: a value the server refuses. 54: a row too large for an index or a page.
_ROW_CLASSES = ("22", "54")
_SCHEMA_STATES = frozenset({"42P01", "42703", "3F000"})


def is_transient(error: BaseException) -> bool:
    """Tell whether the same transaction may succeed when tried again."""
    cause = _driver_error(error)
    if cause is None:
        return isinstance(error, UnavailableError)
    if cause.sqlstate is None:
        return isinstance(cause, psycopg.OperationalError)
    return (
        cause.sqlstate.startswith(_TRANSIENT_CLASSES) or cause.sqlstate in _TRANSIENT_STATES or _lost_its_place(cause)
    )


def blames_a_row(error: BaseException) -> bool:
    """Tell whether the error is about the data of some row, so that its batch is worth bisecting."""
    cause = _driver_error(error)
    if cause is None:
        return False
    if cause.sqlstate is None:
        return isinstance(cause, (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError))
    if cause.sqlstate.startswith("23"):
        return cause.sqlstate != "23505" and not _lost_its_place(cause)
    return cause.sqlstate.startswith(_ROW_CLASSES)


def is_duplicate(error: BaseException) -> bool:
    """Tell whether a COPY met a key that is already stored.

    Citus reports a duplicate inside a distributed COPY as XX000 without a constraint name.
    """
    cause = _driver_error(error)
    return cause is not None and cause.sqlstate in ("23505", "XX000")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise this package's error in the place of psycopg's or SQLAlchemy's.

    Matches by SQLSTATE, never by message text, and takes bare `psycopg.Error` as well, because errors
    of a raw connection are not wrapped by SQLAlchemy.
    """
    try:
        yield
    except psycopg.Error as error:
        _raise_translated(error, error)
    except sqlalchemy.exc.DBAPIError as error:
        _raise_translated(error.orig if isinstance(error.orig, psycopg.Error) else None, error)


def describe(error: BaseException) -> str:
    """Give the server's own reason as one line: its message and its SQLSTATE.

    Never the detail, the statement or its parameters, which can hold prompts or secrets.
    """
    cause = _driver_error(error)
    if cause is None:
        return " ".join(str(error).split())
    message = cause.diag.message_primary or " ".join(str(cause).split()) or type(cause).__name__
    return f"{message} (SQLSTATE {cause.sqlstate})" if cause.sqlstate else message


def _lost_its_place(error: psycopg.Error) -> bool:
    """Tell whether a row's partition was attached while the row waited to go into DEFAULT.

    PostgreSQL says 23514, as for a CHECK, but names no constraint.
    """
    return error.sqlstate == "23514" and not error.diag.constraint_name


def _driver_error(error: BaseException) -> psycopg.Error | None:
    if isinstance(error, psycopg.Error):
        return error
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, psycopg.Error):
        return error.orig
    if isinstance(error, StorageError) and error.__cause__ is not None:
        return _driver_error(error.__cause__)
    return None


def _raise_translated(cause: psycopg.Error | None, error: Exception) -> NoReturn:
    if cause is None:
        raise StorageError(describe(error)) from error
    state = cause.sqlstate
    message = describe(cause)
    constraint = cause.diag.constraint_name
    if type(cause).__name__ == "PoolTimeout":
        raise PoolTimeoutError(f"no connection became free: {message}") from error
    if is_transient(cause):
        raise UnavailableError(message, sqlstate=state, constraint_name=constraint) from error
    if state is not None and state.startswith("23"):
        raise IntegrityError(message, sqlstate=state, constraint_name=constraint) from error
    if state in _SCHEMA_STATES:
        raise SchemaVersionError(
            f"{message}; bring the schema up to date with `observatory-storage migrate`", sqlstate=state
        ) from error
    raise StorageError(message, sqlstate=state, constraint_name=constraint) from error
