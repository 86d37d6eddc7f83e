"""`logs`: the newest records, their filters, and those that follow."""

from __future__ import annotations

import datetime as dt
import json
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence

import pytest

from observatory_storage.pool import StoragePool
from tests.command_line import environment, invoke, program, run
from tests.logs import log, store_logs
from tests.trace_rows import span_id, trace_id

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def store(pool: StoragePool) -> None:
    """Five records, every one ten minutes older than the one before."""
    store_logs(
        pool,
        [
            log(
                0,
                timestamp=NOW - dt.timedelta(minutes=10 * number),
                body=f"record {number} timed out" if number % 2 else f"record {number} done",
                service_name=f"service-{number}",
                severity_number=4 * number + 1,
                project=f"project-{number}",
                trace_id=trace_id(number),
                span_id=span_id(number),
                event_name=f"event-{number}",
                scope_name=f"scope-{number}",
                body_json={"n": number} if number == 2 else None,
                attributes={"n": number, "http.route": f"/v{number}", "text": "7"},
            )
            for number in range(1, 6)
        ],
    )


def numbers(url: str, *arguments: str) -> list[int]:
    done = invoke("logs", "--json", "--database-url", url, *arguments)
    assert done.status == 0
    return [record["attributes"]["n"] for record in done.json["logs"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["--service", "service-2"], [2]),
        (["--project", "project-2"], [2]),
        (["--event", "event-2"], [2]),
        (["--trace", trace_id(2).hex], [2]),
        (["--level", "warning"], [3]),
        (["--level", "13"], [3]),
        (["--level", "info..error"], [2, 3, 4]),
        (["--level", "warn.."], [3, 4, 5]),
        (["--level", "..debug"], [1]),
        (["--min-level", "ERROR"], [4, 5]),
        (["--max-level", "debug2"], [1]),
        (["--max-level", "WARN", "--min-level", "info"], [2, 3]),
        (["--scope", "scope-2"], [2]),
        (["--span", span_id(2)], [2]),
        (["--attribute", "n=2"], [2]),
        (["--attribute", "http.route=/v3"], [3]),
        (["--attribute", "http.route=/v3", "--attribute", "n=2"], []),
        (["--attribute", 'text="7"', "--attribute", "n=4"], [4]),
        (["--attribute", "text=7"], []),
        (["--search", '"timed out"'], [1, 3, 5]),
        (["--search", "record -done", "--min-level", "warn"], [3, 5]),
        (["--search", "timed", "--ranked"], [1, 3, 5]),
        (["--since", "25m"], [1, 2]),
        (["--since", "45m", "--until", "15m"], [2, 3, 4]),
    ],
)
def test_filters(database_url: str, pool: StoragePool, arguments: Sequence[str], expected: list[int]) -> None:
    store(pool)
    assert numbers(database_url, *arguments) == expected


def test_pages_follow_by_cursor(database_url: str, pool: StoragePool) -> None:
    store(pool)
    first = invoke("logs", "--json", "-n", "2", "--database-url", database_url).json
    assert numbers(database_url, "--cursor", first["next_cursor"]) == [3, 4, 5]
    shown = invoke("logs", "-n", "2", "--database-url", database_url).stdout
    assert f"more: --cursor {first['next_cursor']}" in shown


def test_lines_have_the_newest_last(database_url: str, pool: StoragePool) -> None:
    store(pool)
    store_logs(pool, [log(0, timestamp=NOW, body="two\nlines \x1b[31m", severity_text="Warning", severity_number=13)])
    lines = invoke("logs", "--database-url", database_url).stdout.splitlines()
    assert len(lines) == 6
    assert lines[-1] == f"{NOW:%Y-%m-%d %H:%M:%S}.000  Warning   -  two lines \ufffd[31m"
    assert lines[-3].endswith('INFO      service-2  event-2: {"n": 2}')


def test_snippets_show_where_a_body_matches(database_url: str, pool: StoragePool) -> None:
    store_logs(pool, [log(0, body="lead " * 100 + "the payment failed " + "tail " * 100, event_name="charge")])
    found = ["logs", "--search", "payment", "--snippets", "--database-url", database_url]
    for extra in ([], ["--ranked"]):
        line = invoke(*found, *extra).stdout
        assert "charge: " in line
        assert "the «payment» failed" in line
        assert len(line) < 400
        (record,) = invoke(*found, *extra, "--json").json["logs"]
        assert "the «payment» failed" in record["snippet"]
        assert record["body"].startswith("lead lead")
    shown = run(*found, PYTHONIOENCODING="ascii")
    assert "the *payment* failed" in shown.stdout
    assert "snippet" not in invoke("logs", "--json", "--database-url", database_url).json["logs"][0]


def test_a_level_that_is_none_is_a_sentence_of_ours(database_url: str) -> None:
    for option in ("--level", "--min-level", "--max-level"):
        said = invoke("logs", option, "loud", "--database-url", database_url).stderr
        assert "is no severity" in said
        assert "Value error" not in said


def test_what_cannot_hold_is_wrong_usage(database_url: str) -> None:
    for arguments in (
        ["--level", "loud"],
        ["--since", "soon"],
        ["--cursor", "nonsense"],
        ["--ranked"],
        ["--snippets"],
        ["--follow", "--ranked", "--search", "a"],
        ["--follow", "--snippets", "--search", "a"],
        ["--max-level", "loud"],
        ["--span", ""],
        ["--attribute", "key"],
        ["--attribute", "=value"],
        ["--attribute", "key=1", "--attribute", "key=2"],
        ["--limit", "0"],
    ):
        assert invoke("logs", "--database-url", database_url, *arguments).status == 2
    done = invoke("logs", "--database-url", database_url, "--search", "!!!")
    assert done.status == 1
    assert "holds no word to search for" in done.sentence
    assert invoke("logs", "--database-url", database_url).stdout == "no log record is stored yet\n"


def test_following_prints_the_newest_and_what_is_stored_then(database_url: str, pool: StoragePool) -> None:
    store(pool)
    with tempfile.TemporaryDirectory() as empty:
        command = program("logs", "--follow", "--json", "-n", "2", "--search", "record", "--database-url", database_url)
        running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=empty, env=environment())
        try:
            assert running.stdout is not None
            recent = [json.loads(running.stdout.readline())["attributes"]["n"] for _ in range(2)]
            store_logs(pool, [log(0, body="other"), log(0, body="late record", attributes={"n": 9})])
            late = json.loads(running.stdout.readline())
        finally:
            running.terminate()
            running.communicate(timeout=30)
    assert recent == [2, 1]
    assert late["attributes"] == {"n": 9}


def test_following_may_begin_with_nothing_that_is_there(database_url: str, pool: StoragePool) -> None:
    store(pool)
    command = program("logs", "--follow", "--json", "-n", "0", "--database-url", database_url)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    try:
        assert running.stdout is not None
        # Nothing says when it has begun.
        for number in range(100, 160):
            store_logs(pool, [log(0, body="new", attributes={"n": number})])
            if select.select([running.stdout], [], [], 0.5)[0]:
                break
        first = json.loads(running.stdout.readline())
    finally:
        running.terminate()
        running.communicate(timeout=30)
    assert first["body"] == "new"


@pytest.mark.parametrize("arguments", [["logs"], ["traces"], ["logs", "--follow", "-n", "50"]])
def test_a_reader_that_leaves_ends_the_command(database_url: str, pool: StoragePool, arguments: list[str]) -> None:
    store(pool)
    command = program(*arguments, "--database-url", database_url)
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert left.stdout is not None
    left.stdout.close()
    left.stdout = None
    _, errors = left.communicate(timeout=60)
    assert (left.returncode, errors) == (128 + signal.SIGPIPE, b"")


def test_following_ends_with_its_reader_though_nothing_is_stored(database_url: str, pool: StoragePool) -> None:
    store(pool)
    command = program("logs", "--follow", "--json", "-n", "1", "--database-url", database_url)
    following = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["attributes"]["n"] == 1
        assert following.poll() is None
        following.stdout.close()
        following.stdout = None
        _, errors = following.communicate(timeout=20)
    finally:
        following.kill()
        following.wait()
    assert (following.returncode, errors) == (128 + signal.SIGPIPE, b"")
