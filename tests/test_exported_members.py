"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import observatory_storage

ROOT = Path(__file__).parent.parent


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert observatory_storage.__all__ == sorted(observatory_storage.__all__)
    for name in observatory_storage.__all__:
        member = getattr(observatory_storage, name)
        assert member.__name__ == name
        assert member.__doc__
    assert set(observatory_storage.__all__) <= set(dir(observatory_storage))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'TraceWritter'"):
        _ = observatory_storage.TraceWritter


def test_importing_opens_nothing_and_reads_no_environment() -> None:
    code = """
import os, socket, sys
class Environment(dict):
    def __getitem__(self, name):
        read.append(name)
        return dict.__getitem__(self, name)
    def get(self, name, default=None):
        read.append(name)
        return dict.get(self, name, default)
import sqlalchemy.orm, psycopg_pool, pydantic, redis, dynaconf, tenacity, orjson, psycopg
read = []
os.environ = Environment(os.environ)
def refuse(*arguments):
    raise AssertionError("opened a socket")
socket.socket.connect = refuse
import observatory_storage
for name in observatory_storage.__all__:
    getattr(observatory_storage, name)
ours = [name for name in read if name.startswith(("DB_", "DATABASE", "REDIS", "OBSERVATORY"))]
assert not ours, ours
import threading
assert threading.active_count() == 1
assert "alembic" not in sys.modules, "who does not migrate waits for its import"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_migrations_folder_does_not_hide_the_library() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
