"""`usage`: the table, the JSON, and what is refused."""

from __future__ import annotations

import random

import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests.command_line import invoke
from tests.usage_cases import BASE, expected_usage, make_tree


def test_it_shows_what_the_rollups_say(pool: StoragePool, database_url: str) -> None:
    spans = make_tree(random.Random(4), 40)
    with TraceWriter(pool) as writer:
        writer.write_spans(spans)
    where = ("--since", BASE.isoformat(), "--database-url", database_url)
    done = invoke("usage", "--by", "model", "--by", "operation", *where, "--json")
    assert (done.status, done.stderr) == (0, "")
    expected = expected_usage(spans, ("model", "operation"))
    found = {(row["labels"]["model"] or "", row["labels"]["operation"]): row for row in done.json["usage"]}
    assert {key: (row["call_count"], row["total_tokens"]) for key, row in found.items()} == {
        key: (group["calls"], group["total_tokens"]) for key, group in expected.items()
    }
    table = invoke("usage", *where)
    assert table.status == 0
    assert table.stdout.startswith("MODEL")
    assert "gpt-4o-mini" in table.stdout


def test_nothing_was_used(database_url: str) -> None:
    done = invoke("usage", "--since", "30d", "--database-url", database_url)
    assert done.status == 0
    assert "no model call from" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--by", "user"), "none of project"),
        (("--since", "yesterday"), "yesterday"),
        (("--since", "1h", "--until", "2h"), "before"),
    ],
)
def test_what_makes_no_sense_is_refused(database_url: str, arguments: tuple[str, ...], problem: str) -> None:
    done = invoke("usage", *arguments, "--database-url", database_url)
    assert done.status == 2
    assert problem in done.stderr
