"""Windows of partitions: what they cover, and whether all in them is in text indexes."""

from __future__ import annotations

import sqlalchemy as sa

from observatory_storage.pool import StoragePool
from observatory_storage.repositories.log_windows import Partition, Window, read_partitions, windows
from tests.logs import at, index_hours, log, make_hours, store_logs

DEFAULT = Partition(is_default=True, lower=None, upper=None, has_rows=True, has_text_index=True)
EMPTY_DEFAULT = DEFAULT._replace(has_rows=False, has_text_index=False)


def hour(number: int, *, rows: bool = True, index: bool = True) -> Partition:
    return Partition(
        is_default=False, lower=at(hours=number), upper=at(hours=number + 1), has_rows=rows, has_text_index=index
    )


def test_a_window_counts_its_indexes_where_each_partition_with_rows_has_one() -> None:
    partitions = [
        EMPTY_DEFAULT,
        hour(9, rows=False, index=False),
        hour(8, index=False),
        *map(hour, (7, 6, 5)),
        hour(4, rows=False, index=False),
        *map(hour, (3, 2)),
        hour(1, index=False),
        hour(0),
    ]
    found = [*windows(partitions, Window(), first=2, growth=3, largest=5)]
    # Empty ones at either end are no part of a window.
    assert found == [
        Window(at(hours=7), at(hours=9)),
        Window(at(hours=2), at(hours=7), 4),
        Window(at(hours=0), at(hours=2)),
    ]
    assert [*windows(partitions, Window(at(hours=2), at(hours=6)), first=6)] == [Window(at(hours=2), at(hours=6), 3)]


def test_default_counts_as_any_partition_does() -> None:
    partitions = [hour(5), hour(1)]
    everything = Window(None, None)
    assert [*windows([DEFAULT, *partitions], everything, first=9)] == [Window(None, None, 5)]
    not_indexed = DEFAULT._replace(has_text_index=False)
    assert [*windows([not_indexed, *partitions], everything, first=9)] == [Window(None, None, 0)]
    assert [*windows([EMPTY_DEFAULT, *partitions], everything, first=9)] == [Window(at(hours=1), at(hours=6), 2)]
    assert [*windows([DEFAULT], everything)] == [Window(None, None, 1)]


def test_the_catalog_says_which_partitions_have_their_text_index(pool: StoragePool) -> None:
    make_hours(pool, 0, 3)
    store_logs(pool, [log(0)])
    index_hours(pool, [0, 1])
    with pool.session() as session:
        # As an interrupted build leaves it, and another index on words.
        session.execute(
            sa.text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'logs_p2026031013_text_idx'::regclass")
        )
        session.execute(sa.text("CREATE INDEX words ON logs_p2026031014 USING gin (to_tsvector('english', body))"))
        asked = read_partitions(session, text_indexes=True)
        assert {partition.lower for partition in asked if partition.has_text_index} == {at(hours=0)}
        assert not any(partition.has_text_index for partition in read_partitions(session))
