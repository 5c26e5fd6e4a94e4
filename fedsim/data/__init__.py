"""Data: what is loaded, how it is checked, and which client holds what. NumPy only, no torch."""

from fedsim.data.containers import Dataset, Split
from fedsim.data.datasets import load_dataset
from fedsim.data.images import ImagePaths
from fedsim.data.partition.heterogeneity import PartitionStatistics
from fedsim.data.partition.make import Partition, make_partition
from fedsim.data.splits import holdout

__all__ = [
    "Dataset",
    "ImagePaths",
    "Partition",
    "PartitionStatistics",
    "Split",
    "holdout",
    "load_dataset",
    "make_partition",
]
