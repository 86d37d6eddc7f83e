"""What keeps a store usable for years: partitions, retention, indexes that are built late, maintenance."""

from observatory_storage.lifecycle.maintenance import MaintenanceReport
from observatory_storage.lifecycle.partitions import Partition, PartitionManager, PartitionSize
from observatory_storage.lifecycle.periods import Periods
from observatory_storage.lifecycle.retention import Retention, RetentionReport
from observatory_storage.lifecycle.text_index import TextIndexer, TextIndexes
from observatory_storage.lifecycle.widths import PartitionWidth
from observatory_storage.policies import FOREVER, RetentionPolicy

__all__ = [
    "FOREVER",
    "MaintenanceReport",
    "Partition",
    "PartitionManager",
    "PartitionSize",
    "PartitionWidth",
    "Periods",
    "Retention",
    "RetentionPolicy",
    "RetentionReport",
    "TextIndexer",
    "TextIndexes",
]
