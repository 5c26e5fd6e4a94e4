"""Data: what is loaded, how it is checked, and which client holds what. NumPy only, no torch."""

from fedsim.data.containers import Dataset as Dataset
from fedsim.data.containers import Split as Split
from fedsim.data.datasets import load_dataset as load_dataset
from fedsim.data.images import ImagePaths as ImagePaths
from fedsim.data.partition.heterogeneity import PartitionStatistics as PartitionStatistics
from fedsim.data.partition.make import Partition as Partition
from fedsim.data.partition.make import make_partition as make_partition
from fedsim.data.splits import holdout as holdout
