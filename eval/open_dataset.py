"""The door to datasets: what a path is, is seen from the path."""

from data_pipelines.dataset import Dataset
from eval.datasets.shards import open_shard_dataset


def open_dataset(source: str) -> Dataset:
    """Return the dataset of this name, whatever it lies in.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    return open_shard_dataset(source)
