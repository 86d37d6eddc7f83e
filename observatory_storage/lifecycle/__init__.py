"""What keeps a store usable for years: partitions."""

from observatory_storage.lifecycle.partitions import Partition, PartitionManager

__all__ = ["Partition", "PartitionManager"]
