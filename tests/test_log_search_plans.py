"""How a search goes about it: by which index, in which order, and that what it finds does not depend on that."""

from __future__ import annotations

import re
import uuid

import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import log_reading
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from tests.logs import Row, at, ids, index_hours, log, make_hours, newest_first, read_by, sent, store_logs

SERVICE_INDEX = re.compile(r"Bitmap Index Scan on logs_p(\d+)_project_service_name_timestamp_idx")


def stored_for_plans(pool: StoragePool) -> list[Row]:
    """Store six hours of 3,000 records; all but the newest hour are over, and have their text index."""
    make_hours(pool, 0, 6)
    rows = [
        log(number * 1.2, body=f"common {'needle' if number in (5000, 17_990) else 'hay'} n{number % 97}")
        for number in range(18_000)
    ]
    store_logs(pool, rows)
    index_hours(pool, range(5))
    return rows


@pytest.mark.every_server
def test_a_rare_word_is_found_by_the_index_and_a_common_one_in_the_newest_partitions(pool: StoragePool) -> None:
    rows = stored_for_plans(pool)
    repository = LogRepository(pool)
    with sent(pool) as seen:
        assert ids(repository.search_text("needle")) == [rows[17_990]["id"], rows[5000]["id"]]
    plans = "\n".join(seen.plans)
    for hour in range(12, 17):
        assert f"Bitmap Index Scan on logs_p20260310{hour}_text_idx" in plans
        assert f"Seq Scan on logs_p20260310{hour}" not in plans
    assert len(seen) == 2 + 2 * 2
    # For a phrase the index is asked for the words, wherever they stand: then it needs no body.
    with sent(pool) as seen:
        assert ids(repository.search_text('"common needle"')) == [rows[17_990]["id"], rows[5000]["id"]]
    plans = "\n".join(seen.plans)
    assert "Bitmap Index Scan on logs_p2026031012_text_idx" in plans
    conditions = [line for line in plans.splitlines() if "Index Cond" in line or "Recheck Cond" in line]
    assert any("common" in line for line in conditions)
    assert not any("<->" in line or "websearch" in line for line in conditions)
    # What is common is taken from the newest partition, and the others of its window are never begun.
    with sent(pool) as seen:
        assert ids(repository.search_text("common", limit=10)) == ids(newest_first(rows))[:10]
    assert len(seen) == 2 + 2
    assert "logs_p2026031016" in seen.plans[-1]
    assert read_by(seen.plans[-1]) == {"p2026031017"}
    # Further back there are indexes, and still the order of time is worth more.
    before = LogFilters(timestamp_before=at(hours=5), search="common", limit=10)
    with sent(pool) as seen:
        found = repository.search_logs(before)
    assert ids(found) == ids(row for row in newest_first(rows) if row["timestamp"] < at(hours=5))[:10]
    assert read_by(seen.plans[-1]) == {"p2026031016"}


@pytest.mark.every_server
def test_of_a_rare_word_the_other_filters_are_looked_at_where_the_text_is_found(pool: StoragePool) -> None:
    make_hours(pool, 0, 6)
    rows = [
        log(
            number * 1.2,
            service_name=("api", "db")[number % 2],
            severity_number=9,
            body=f"{'needle' if number % 1000 < 2 else 'hay'} of all",
        )
        for number in range(18_000)
    ]
    store_logs(pool, rows)
    repository = LogRepository(pool)
    filters = LogFilters(search="needle", project="default", service_name="db", severity="INFO")
    expected = ids(row for row in newest_first(rows) if row["service_name"] == "db" and "needle" in row["body"])
    assert len(expected) == 18
    # All of the second window but one hour, and then all of it.
    index_hours(pool, (0, 1, 3, 4))
    with sent(pool) as seen:
        assert ids(repository.list(filters)) == expected
    assert SERVICE_INDEX.findall("\n".join(seen.plans))
    index_hours(pool, [2])
    with sent(pool) as seen:
        assert ids(repository.list(filters)) == expected
    assert {hour for plan in seen.plans for hour in SERVICE_INDEX.findall(plan)} <= {"2026031016", "2026031017"}
    assert len(seen) == 2 + 2 * 2
    # A common word with a rare filter is left to the planner, after one look.
    with sent(pool) as seen:
        assert repository.list(LogFilters(search="all", project="default", service_name="none")).items == ()
    assert len(seen) == 2 + 1 + 2
    # And so are the records of a trace, and phrases: each body with the words would be read, of all services.
    for other in (
        LogFilters(search="needle", trace_id=uuid.uuid4()),
        LogFilters(search='"all of" needle', service_name="none"),
        LogFilters(search='"all of" OR absent', service_name="none"),
    ):
        with sent(pool) as seen:
            assert repository.list(other).items == ()
        assert len(seen) == 2 + 2
        assert not any("AS counted" in statement for statement in seen)


@pytest.mark.parametrize("few_of_text", [0, 1, 5, 10_000])
@pytest.mark.parametrize("few", [0, 3, 10_000])
def test_with_filters_few_and_many_matches_make_the_same_pages(
    pool: StoragePool, monkeypatch: pytest.MonkeyPatch, few_of_text: int, few: int
) -> None:
    make_hours(pool, 0, 8)
    rows = [
        log(number * 700, service_name=("api", "db")[number % 5 % 2], body="a match" if number % 3 else "none")
        for number in range(40)
    ]
    store_logs(pool, rows)
    index_hours(pool, range(6))
    monkeypatch.setattr(log_reading, "FEW_MATCHES", few)
    monkeypatch.setattr(log_reading, "FEW_OF_TEXT", few_of_text)
    expected = ids(row for row in newest_first(rows) if row["body"] == "a match" and row["service_name"] == "db")
    repository = LogRepository(pool)
    for offset in (0, 1, 5, 9, 12):
        page = repository.list(LogFilters(search="match", service_name="db", limit=2, offset=offset))
        assert ids(page) == expected[offset : offset + 2]
        if page.next_cursor is not None:
            rest = LogFilters(search="match", service_name="db", limit=1000, cursor=page.next_cursor)
            assert ids(repository.list(rest)) == expected[offset + 2 :]


@pytest.mark.parametrize("few", [0, 1, 3, 10_000])
def test_few_and_many_matches_make_the_same_pages(pool: StoragePool, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    make_hours(pool, 0, 3)
    rows = [log(number * 500, body="a match" if number % 3 else "none") for number in range(40)]
    store_logs(pool, rows)
    monkeypatch.setattr(log_reading, "FEW_MATCHES", few)
    expected = [row["id"] for row in newest_first(rows) if row["body"] == "a match"]
    repository = LogRepository(pool)
    for offset in (0, 1, 5, 12, 25, 30):
        page = repository.list(LogFilters(search="match", limit=4, offset=offset))
        assert ids(page) == expected[offset : offset + 4]
        if page.next_cursor is not None:
            rest = repository.list(LogFilters(search="match", limit=1000, cursor=page.next_cursor))
            assert ids(rest) == expected[offset + 4 :]
