"""The period of a time: the start of the partition of spans that holds it, by which messages are stored once."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Table

from observatory_storage.lifecycle.partitions import PartitionManager

_HOUR: Final = dt.timedelta(hours=1)
# For how long a period is believed, and of how many hours: another process may make a time's partition, or remove it
# and make another one of another width. Retention does not rely on it, see `message_retention`.
_BELIEVED_SECONDS: Final = 60.0
_MOST: Final = 1_000


class Periods:
    """Finds the periods of times, and remembers them by the hour for a minute: partitions begin at full hours.

    A time whose rows lie in DEFAULT has the period that its partition would have. Not for use by two threads at once.
    """

    def __init__(self, manager: PartitionManager, table: Table) -> None:
        self._manager = manager
        self._table = table
        self._known: dict[dt.datetime, tuple[dt.datetime, float]] = {}

    def of(self, hours: Iterable[dt.datetime]) -> dict[dt.datetime, dt.datetime]:
        """Return the period of each of some full hours."""
        now = time.monotonic()
        wanted = set(hours)
        unknown = {hour for hour in wanted if self._known.get(hour, (hour, 0.0))[1] <= now}
        if unknown:
            if len(self._known) + len(unknown) > _MOST:
                self._known.clear()
                unknown = wanted
            partitions = self._manager.list(self._table)
            width = self._manager.width(self._table.name)
            for hour in unknown:
                holders = [partition for partition in partitions if partition.overlaps(hour, hour + _HOUR)]
                lowers = [partition.lower for partition in holders if partition.lower is not None]
                period = min(lowers) if holders and len(lowers) == len(holders) else width.floor(hour)
                self._known[hour] = (period, now + _BELIEVED_SECONDS)
        return {hour: self._known[hour][0] for hour in wanted}
