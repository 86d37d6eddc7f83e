"""A follower gets each record once, when its transaction has committed, whatever the order and the times."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from observatory_storage.errors import ConfigurationError, InvalidFilterError, StorageError
from observatory_storage.models import LogRecord
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import log_follow, log_reading
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_cursor import LogCursor
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_follow import LogStream
from observatory_storage.repositories.log_position import Position, Snapshot
from tests.logs import EPOCH, at, ids, log, make_hours, newest_first, sent, store_logs

INSERT = "INSERT INTO logs (timestamp, route_id, id, project, body) VALUES (%s, %s, %s, %s, %s)"
COPY = "COPY logs (timestamp, route_id, id, project, body) FROM STDIN"


def follow(pool: StoragePool, filters: LogFilters | None = None, **options: Any) -> LogStream:
    """A stream that looks again at once, and ends when it found nothing."""
    settings = {"poll_interval_seconds": 0.01, "idle_timeout_seconds": 0, **options}
    return LogRepository(pool).stream_logs(filters, **settings)


def insert(connection: psycopg.Connection[Any], times: Sequence[dt.datetime]) -> list[uuid.UUID]:
    keys = [uuid.uuid4() for _ in times]
    with connection.cursor() as cursor:
        cursor.executemany(
            INSERT, [(moment, key, key, "default", "x") for moment, key in zip(times, keys, strict=True)]
        )
    return keys


@pytest.fixture
def writers(database_url: str) -> Iterator[list[psycopg.Connection[Any]]]:
    """Three connections with a transaction each."""
    opened = [psycopg.connect(database_url) for _ in range(3)]
    yield opened
    for connection in opened:
        connection.close()


@pytest.mark.every_server
def test_records_come_when_their_transaction_commits(pool: StoragePool, writers: list[psycopg.Connection[Any]]) -> None:
    first, second, third = writers
    store_logs(pool, [log(1)])
    stream = follow(pool)
    assert list(stream) == []
    early = insert(first, [at(), at()])
    late = insert(second, [at(10), at(-5)])
    assert list(stream) == []
    second.commit()
    assert ids(stream) == [late[1], late[0]]
    gone = insert(third, [at()])
    third.rollback()
    after = insert(third, [at(3)])
    third.commit()
    assert ids(stream) == after
    more = insert(second, [EPOCH, at(10)])
    first.commit()
    assert sorted(ids(stream)) == sorted(early)
    second.commit()
    assert ids(stream) == more
    assert list(stream) == []
    assert gone[0] not in (*early, *late, *after, *more)


@pytest.mark.parametrize("largest", [1, 2, 128])
def test_records_of_one_poll_come_in_time_order(
    pool: StoragePool, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    for module in (log_follow, log_reading):
        monkeypatch.setattr(module, "LARGEST_WINDOW", largest)
    make_hours(pool, 0, 3)
    stream = follow(pool, batch_size=4)
    rows = [log(second) for second in (9000, 1, 1, 1, 1, 1, 4000, 10**7, -(10**7), 3600, 7199, 0)]
    store_logs(pool, rows)
    assert ids(stream) == list(reversed(ids(newest_first(rows))))


def test_savepoints_do_not_hide_records(pool: StoragePool, writers: list[psycopg.Connection[Any]]) -> None:
    stream = follow(pool)
    connection = writers[0]
    kept = insert(connection, [at()])
    with connection.transaction():
        kept += insert(connection, [at(1)])
    with connection.transaction(force_rollback=True):
        insert(connection, [at(2)])
    assert list(stream) == []
    connection.commit()
    assert ids(stream) == kept


def test_a_stream_goes_on_from_its_position_within_a_poll_too(
    pool: StoragePool, writers: list[psycopg.Connection[Any]]
) -> None:
    make_hours(pool, 0, 3)
    first, second, _ = writers
    stream = follow(pool)
    insert(first, [at(-1), at(99)])
    rows = [log(second // 3 * 1000) for second in range(20)]
    store_logs(pool, rows)
    expected = list(reversed(ids(newest_first(rows))))
    seen: list[uuid.UUID] = []
    position = stream.position
    while True:
        stream = follow(pool, position=position, batch_size=3)
        record = next(stream, None)
        if record is None:
            break
        seen.append(record.id)
        position = stream.position
        if len(seen) == 7:
            # What commits in between belongs to a later poll.
            between = insert(second, [at(-50), at(10**6)])
            second.commit()
    assert seen == expected + between
    first.commit()
    assert len(list(follow(pool, position=stream.position))) == 2


def test_a_position_is_kept_where_nothing_matches(pool: StoragePool) -> None:
    stream = follow(pool, LogFilters(project="mine"))
    before = stream.position
    store_logs(pool, [log(number) for number in range(3)])
    assert list(stream) == []
    assert stream.position != before
    store_logs(pool, [log(5, project="mine")])
    assert len(list(follow(pool, LogFilters(project="mine"), position=stream.position))) == 1


def test_a_stream_takes_filters_and_searches(pool: StoragePool) -> None:
    stream = follow(
        pool,
        LogFilters(severity="error", search='"timed out" -db', timestamp_from=at(1), limit=1, offset=5),
        include_content=True,
    )
    rows = [
        log(number, severity_number=17 if number != 4 else 9, body=body, attributes={"n": number})
        for number, body in enumerate(
            ("it timed out", "it timed out", "out timed", "db timed out", "timed out", "timed out")
        )
    ]
    store_logs(pool, rows)
    assert [record.attributes["n"] for record in stream] == [1, 5]


def test_a_stream_can_begin_with_the_newest_records(pool: StoragePool, writers: list[psycopg.Connection[Any]]) -> None:
    first, *_ = writers
    rows = [log(number) for number in range(5)]
    store_logs(pool, rows)
    open_ones = insert(first, [at(-100), at(100)])
    stream = follow(pool, recent=3)
    more = [log(50)]
    store_logs(pool, more)
    first.commit()
    assert ids(stream) == [*ids(rows[2:]), open_ones[0], more[0]["id"], open_ones[1]]


def test_records_without_a_transaction_are_never_new(pool: StoragePool) -> None:
    stream = follow(pool)
    store_logs(pool, [log(1), log(2)])
    with pool.session() as session:
        session.execute(sa.update(LogRecord).where(LogRecord.timestamp == at(1)).values(transaction_id=None))
        session.commit()
    assert [record.timestamp for record in stream] == [at(2)]


def test_between_polls_no_transaction_is_open(pool: StoragePool) -> None:
    stream = follow(pool, batch_size=1)
    store_logs(pool, [log(number) for number in range(3)])
    next(stream)
    assert pool.stats().active == 0
    with sent(pool) as seen:
        next(stream)
    # A page of one record; neither the snapshot nor the partitions are asked again.
    assert len(seen) == 1
    assert pool.stats().active == 0


def test_a_quiet_database_costs_one_statement_a_poll(pool: StoragePool) -> None:
    stream = follow(pool)
    with sent(pool) as seen:
        assert list(stream) == []
    assert len(seen) == 1


def test_new_records_are_found_by_their_transaction(pool: StoragePool) -> None:
    make_hours(pool, 0, 2)
    store_logs(pool, [log(number / 5) for number in range(20_000)])
    with pool.raw_connection() as connection:
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE logs")
    stream = follow(pool)
    store_logs(pool, [log(4000)])
    with sent(pool) as seen:
        assert len(list(stream)) == 1
    (plan,) = (plan for plan in seen.plans if "transaction_id" in plan)
    assert "logs_p2026031012_transaction_id_idx" in plan
    assert "Seq Scan on logs_p2026031012" not in plan


def test_a_stream_ends_when_told(pool: StoragePool) -> None:
    told = threading.Event()
    stream = LogRepository(pool).stream_logs(stop=told.is_set, poll_interval_seconds=30)
    timer = threading.Timer(0.3, told.set)
    timer.start()
    started = time.monotonic()
    assert list(stream) == []
    assert 0.2 < time.monotonic() - started < 5
    started = time.monotonic()
    assert list(follow(pool, idle_timeout_seconds=0.3)) == []
    assert 0.2 < time.monotonic() - started < 5
    timer.join()


def test_a_stream_goes_on_after_an_error(pool: StoragePool) -> None:
    stream = follow(pool)
    store_logs(pool, [log(1), log(2)])
    with pool.session() as session:
        session.execute(sa.text("ALTER TABLE logs RENAME TO hidden"))
        session.commit()
    with pytest.raises(StorageError):
        next(stream)
    with pool.session() as session:
        session.execute(sa.text("ALTER TABLE hidden RENAME TO logs"))
        session.commit()
    assert len(list(stream)) == 2


def test_a_session_cannot_be_followed_on(pool: StoragePool) -> None:
    with pool.session() as session, pytest.raises(ConfigurationError, match="pool"):
        LogRepository(session).stream_logs()
    for position in ("", "nonsense", "MXw", "é"):
        with pytest.raises(InvalidFilterError, match="position"):
            LogRepository(pool).stream_logs(position=position)
    with pytest.raises(InvalidFilterError):
        LogRepository(pool).stream_logs(batch_size=0)


SNAPSHOTS = st.builds(
    lambda lowest, gaps: Snapshot(
        lowest, lowest + sum(gaps) + 1, tuple(lowest + sum(gaps[:n]) for n in range(len(gaps)))
    ),
    st.integers(3, 2**62),
    st.lists(st.integers(1, 1000), max_size=5),
)


@given(
    before=SNAPSHOTS,
    now=st.none() | SNAPSHOTS,
    after=st.none() | st.builds(LogCursor, st.datetimes(timezones=st.just(dt.UTC)), st.uuids()),
)
def test_positions_survive_the_way_there_and_back(
    before: Snapshot, now: Snapshot | None, after: LogCursor | None
) -> None:
    position = Position(before, now, after)
    assert Position.decode(position.encode()) == position
    with pytest.raises(ValueError, match="malformed"):
        Position.decode(position.encode()[:-1])


class Writer(threading.Thread):
    """Commits and rolls back transactions of its own, some after a while, and keeps what it committed."""

    def __init__(self, url: str, seed: int, transactions: int) -> None:
        super().__init__()
        self._url, self._dice, self._transactions = url, random.Random(seed), transactions
        self.committed: list[uuid.UUID] = []
        self.rolled_back = 0

    def run(self) -> None:
        dice = self._dice
        with psycopg.connect(self._url) as connection:
            for _ in range(self._transactions):
                times = [self._time() for _ in range(dice.choice((1, 1, 3, 40)))]
                if dice.random() < 0.5:
                    keys = insert(connection, times)
                else:
                    keys = [uuid.uuid4() for _ in times]
                    with connection.cursor().copy(COPY) as copy:
                        for moment, key in zip(times, keys, strict=True):
                            copy.write_row((moment, key, key, "default", "x"))
                if dice.random() < 0.3:
                    time.sleep(dice.random() * 0.15)
                if dice.random() < 0.2:
                    connection.rollback()
                    self.rolled_back += len(keys)
                else:
                    connection.commit()
                    self.committed += keys

    def _time(self) -> dt.datetime:
        # Few different ones, in partitions and in none, now and long ago.
        return self._dice.choice((at(), at(1), at(3600), at(7000), at(-4000), at(days_ago(self._dice)), EPOCH))


def days_ago(dice: random.Random) -> float:
    return -86_400.0 * dice.randrange(1, 400)


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_concurrent_writers_are_followed_exactly(pool: StoragePool, database_url: str, batch_size: int) -> None:
    make_hours(pool, 0, 3)
    store_logs(pool, [log(number) for number in range(10)])
    writers = [Writer(database_url, seed, 60) for seed in range(6)]
    seen: list[uuid.UUID] = []
    done = threading.Event()

    def end() -> bool:
        return done.is_set()

    stream = follow(pool, idle_timeout_seconds=None, batch_size=batch_size, stop=end)

    def wait() -> None:
        for writer in writers:
            writer.join()
        # What is committed by now is there for the next two polls.
        time.sleep(1.0)
        done.set()

    for writer in writers:
        writer.start()
    waiting = threading.Thread(target=wait)
    waiting.start()
    restarts = 0
    while not done.is_set():
        for number, record in enumerate(stream):
            seen.append(record.id)
            if number % 200 == 199:
                # Another process goes on from here.
                restarts += 1
                stream = follow(
                    pool, position=stream.position, idle_timeout_seconds=None, batch_size=batch_size, stop=end
                )
                break
    waiting.join()
    seen += ids(follow(pool, position=stream.position))
    committed = [key for writer in writers for key in writer.committed]
    assert len(committed) > 500
    assert sum(writer.rolled_back for writer in writers) > 50
    assert restarts > 3
    assert len(seen) == len(committed)
    assert set(seen) == set(committed)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("poll_interval_seconds", -1),
        ("poll_interval_seconds", float("nan")),
        ("poll_interval_seconds", float("inf")),
        ("poll_interval_seconds", None),
        ("idle_timeout_seconds", -5),
        ("idle_timeout_seconds", float("nan")),
        ("idle_timeout_seconds", "5"),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("recent", -1),
    ],
)
def test_numbers_that_cannot_hold_are_refused(pool: StoragePool, option: str, value: Any) -> None:
    with sent(pool) as seen, pytest.raises(InvalidFilterError, match=f"^{option}: it is {value!r} and must") as refused:
        LogRepository(pool).stream_logs(**{option: value})
    assert len(refused.value.problems) == 1
    assert not seen
