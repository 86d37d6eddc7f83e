"""What keeps a store usable for years: partitions, indexes that are built late, maintenance."""

from observatory_storage.lifecycle.maintenance import MaintenanceReport
from observatory_storage.lifecycle.partitions import Partition, PartitionManager
from observatory_storage.lifecycle.text_index import TextIndexer, TextIndexes
from observatory_storage.lifecycle.widths import PartitionWidth

__all__ = ["MaintenanceReport", "Partition", "PartitionManager", "PartitionWidth", "TextIndexer", "TextIndexes"]
