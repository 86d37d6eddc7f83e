"""Finds the package's SQL and asks the server what it takes and returns, as PREPARE does."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.pq import ExecStatus
from sqlalchemy import Select, create_engine
from sqlalchemy.sql.dml import Delete

import observatory_storage

_DIALECT = create_engine("postgresql+psycopg://", paramstyle="numeric_dollar").dialect
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE|VALUES)\b")
_PLACEHOLDER = re.compile(r"%%|%[sbt]|%\((\w+)\)[sbt]")


@dataclass(frozen=True)
class Prepared:
    """What the server says of a statement."""

    parameters: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(type_name for _, type_name in self.columns)


def prepare(connection: psycopg.Connection[tuple[object, ...]], sql: str) -> Prepared:
    """Prepare a statement with $1, $2 … in the place of parameters; raises where the schema does not fit it."""
    result = connection.pgconn.prepare(b"", sql.encode())
    if result.status != ExecStatus.COMMAND_OK:
        raise AssertionError(f"{result.error_message.decode()}\n{sql}")
    description = connection.pgconn.describe_prepared(b"")
    parameters = [description.param_type(number) for number in range(description.nparams)]
    columns = [
        ((description.fname(number) or b"").decode(), description.ftype(number))
        for number in range(description.nfields)
    ]
    return Prepared(
        tuple(_type_name(connection, oid) for oid in parameters),
        tuple((name, _type_name(connection, oid)) for name, oid in columns),
    )


def _type_name(connection: psycopg.Connection[tuple[object, ...]], oid: int) -> str:
    row = connection.execute("SELECT %s::oid::regtype::text", [oid]).fetchone()
    assert row is not None
    return str(row[0])


def server_type(connection: psycopg.Connection[tuple[object, ...]], spelling: str) -> str:
    """How the server itself calls a type that may be spelled in several ways."""
    row = connection.execute("SELECT %s::regtype::text", [spelling]).fetchone()
    assert row is not None
    return str(row[0])


def compiled(statement: Select[*tuple[object, ...]] | Delete) -> str:
    """The text that the driver gets for a SQLAlchemy statement."""
    return str(statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True}))


def expected_types(
    connection: psycopg.Connection[tuple[object, ...]], statement: Select[*tuple[object, ...]]
) -> dict[str, str]:
    """The types that SQLAlchemy takes the columns of a statement for, by name."""
    return {
        key: server_type(connection, column.type.compile(dialect=_DIALECT))
        for key, column in statement.selected_columns.items()
    }


def numbered(sql: str) -> str:
    """Turn psycopg's placeholders into $1, $2 …; one name is one parameter."""
    names: dict[str, int] = {}

    def replace(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        number = names.setdefault(match[1] or f"%{match.start()}", len(names) + 1)
        return f"${number}"

    return _PLACEHOLDER.sub(replace, sql)


def filled(sql: str, identifiers: dict[str, str]) -> str:
    """Put identifiers in the place of their names in braces."""
    return re.sub(r"\{(\w+)\}", lambda match: identifiers[match[1]], sql)


@dataclass(frozen=True)
class Found:
    """A piece of SQL in the source: `place` is module and variable or function, `sql` None where it is put together."""

    place: str
    sql: str | None


def sql_in_source() -> list[Found]:
    """All texts in the package that read like a statement that can be prepared."""
    found = []
    prefix = f"{observatory_storage.__name__}."
    for module in pkgutil.walk_packages(observatory_storage.__path__, prefix):
        spec = importlib.util.find_spec(module.name)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        found += [Found(f"{module.name.removeprefix(prefix)}.{place}", sql) for place, sql in _texts(tree, [])]
    return found


def _texts(node: ast.AST, scope: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for child in ast.iter_child_nodes(node):
        if _is_docstring(child):
            continue
        inner = [*scope, *_names(child)]
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            if _SQL.match(child.value):
                yield ".".join(scope), child.value
        elif isinstance(child, ast.JoinedStr):
            first = child.values[0] if child.values else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and _SQL.match(first.value):
                yield ".".join(scope), None
        else:
            yield from _texts(child, inner)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return [node.targets[0].id]
    return []


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
