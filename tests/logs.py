"""Log records for tests of reading: plain rows, stored without the writers, in partitions of an hour."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from observatory_storage.models import LogRecord
from observatory_storage.models.log import SEARCH_VECTOR_SQL
from observatory_storage.pool import StoragePool

NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
Row = dict[str, Any]


def at(seconds: float = 0, *, hours: float = 0) -> dt.datetime:
    """A time so long after noon."""
    return NOON + dt.timedelta(hours=hours, seconds=seconds)


def log(number: float, **columns: Any) -> Row:
    """A record of the second `number` after noon unless told otherwise; its id does not say its time."""
    row: Row = {"timestamp": at(number), "id": uuid.uuid4(), "body": f"record {number}", "attributes": {}, **columns}
    row.setdefault("route_id", row.get("trace_id") or row["id"])
    return row


def store_logs(pool: StoragePool, rows: Iterable[Row]) -> None:
    """Insert and commit records."""
    keys = [column.key for column in LogRecord.__table__.columns if column.key not in ("transaction_id", "created_at")]
    given = [{key: row.get(key, "default" if key == "project" else None) for key in keys} for row in rows]
    with pool.session() as session:
        if given:
            session.execute(sa.insert(LogRecord), given)
        session.commit()


def make_hours(pool: StoragePool, first: int, count: int) -> None:
    """Give logs a partition for each of some hours, counted from noon, beside DEFAULT."""
    with pool.session() as session:
        for number in range(first, first + count):
            lower, upper = at(hours=number), at(hours=number + 1)
            session.execute(
                sa.text(
                    f"CREATE TABLE logs_p{lower:%Y%m%d%H} PARTITION OF logs FOR VALUES FROM ('{lower}') TO ('{upper}')"
                )
            )
        session.commit()


def index_hours(pool: StoragePool, hours: Iterable[int]) -> None:
    """Build the text index of some hours, as maintenance does when they are over."""
    with pool.session() as session:
        for number in hours:
            name = f"logs_p{at(hours=number):%Y%m%d%H}"
            session.execute(sa.text(f"CREATE INDEX {name}_text_idx ON {name} USING gin ({SEARCH_VECTOR_SQL})"))
        session.execute(sa.text("ANALYZE logs"))
        session.commit()


def newest_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["timestamp"], row["id"]), reverse=True)


def ids(found: Iterable[Any]) -> list[uuid.UUID]:
    """The ids of records, matches or rows, in their order."""
    return [getattr(item, "log", item).id if not isinstance(item, dict) else item["id"] for item in found]


class Sent(Sequence[str]):
    """The statements that a call sent, and their plans."""

    def __init__(self, pool: StoragePool) -> None:
        self._pool = pool
        self._sent: list[tuple[str, Any]] = []

    def note(self, *arguments: Any) -> None:
        self._sent.append((arguments[2], arguments[3]))

    def __len__(self) -> int:
        return len(self._sent)

    def __getitem__(self, index: Any) -> Any:
        return [statement for statement, _ in self._sent][index]

    @cached_property
    def plans(self) -> list[str]:
        """What each statement about logs did when it ran again, one line a node."""
        found = []
        with self._pool.session() as session:
            for statement, parameters in self._sent:
                if "FROM logs" in statement:
                    explain = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {statement}"
                    lines = session.connection().exec_driver_sql(explain, parameters)
                    found.append("\n".join(line for (line,) in lines))
        return found

    @property
    def partitions(self) -> set[str]:
        """The partitions that plans read, and that they did not leave for never."""
        return {name for plan in self.plans for name in read_by(plan)}


def read_by(plan: str) -> set[str]:
    """The partitions that a plan reads, by their suffixes, and that were not left for never."""
    lines = (line for line in plan.splitlines() if "never executed" not in line)
    return {name for line in lines for name in re.findall(r" on logs_(p\d+|default)\b", line)}


@contextmanager
def sent(pool: StoragePool) -> Iterator[Sent]:
    """Collect what a block sends by the pool's sessions."""
    seen = Sent(pool)
    event.listen(pool.engine, "before_cursor_execute", seen.note)
    try:
        yield seen
    finally:
        event.remove(pool.engine, "before_cursor_execute", seen.note)


def sent_by(pool: StoragePool, call: Callable[[], object]) -> Sent:
    with sent(pool) as seen:
        call()
    return seen
