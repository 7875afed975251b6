"""Shards of ours, img2dataset's and DataComp's, and CLIP_benchmark's layout of them."""

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.dataset import Dataset, dataset_of
from data_pipelines.shards import open_shards

LAYOUT = "dataset_type.txt"
"""CLIP_benchmark's file beside the shards that says what the dataset is for."""


def open_shard_dataset(source: str) -> Dataset:
    """Return the samples of shards; where the layout says retrieval, a line is a caption.

    Raises:
        UserError: There is no shard, or none with a picture and a caption or label.
    """
    shards = open_shards(source)
    return dataset_of(shards, source, has_lines=_type_of(shards.shards) == "retrieval")


def find_beside(files: Iterable[Path], name: str) -> Path | None:
    """Return the file of this name in one of these folders, or beside a file, or above; or None."""
    folders = dict.fromkeys(file if file.is_dir() else file.parent for file in files)
    places = (place for folder in folders for place in (folder, folder.absolute().parent))
    return next((place / name for place in places if (place / name).is_file()), None)


def _type_of(shards: Iterable[Path]) -> str | None:
    """Return ``retrieval``, ``multilabel`` or what else the layout says; None without one."""
    path = find_beside(shards, LAYOUT)
    return None if path is None else path.read_text(errors="replace").strip().lower()
