"""Datasets of Hugging Face that are on this machine; nothing is downloaded."""

import os
from pathlib import Path
from typing import Any

from data_pipelines.dataset import Dataset, identity_of
from data_pipelines.faults import SampleFault
from eval.datasets.table import IMAGE, LABEL, find_column, metadata_of, text_of
from vlp.classifier import Classes
from vlp.errors import UserError, first_line, nearest
from vlp.types import Sample

SPLITS = ("test", "validation", "val", "train")
"""The first of them that there is, where none is named."""


def open_hugging_face(source: str, split: str, name: str) -> Dataset:
    """Return a dataset from what ``save_to_disk`` wrote, an Arrow file, or by name from the cache.

    Raises:
        UserError: The package ``datasets`` is missing, or the dataset or its split is.
    """
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import datasets
    except ImportError:
        raise UserError(
            'Datasets of Hugging Face need another package. Write pip install "vlp[hf]".'
        ) from None
    read: Any = datasets.load_from_disk if Path(source).is_dir() else datasets.load_dataset
    try:
        found: Any = (
            datasets.Dataset.from_file(source) if source.endswith(".arrow") else read(source)
        )
    except Exception as error:
        raise UserError(
            f"Cannot open {source}: {first_line(error)}. Nothing is downloaded: give a folder that "
            f"save_to_disk wrote, or a dataset that is in the cache."
        ) from None
    if isinstance(found, dict):
        chosen = split or next((s for s in SPLITS if s in found), next(iter(found)))
        if chosen not in found:
            raise UserError(f"{source} has no split {split!r}. {nearest(split, found)}")
        found = found[chosen]
    image = find_column(IMAGE, found.column_names, source, "pictures")
    return _dataset(found.cast_column(image, datasets.Image(decode=False)), image, name)


def _dataset(found: Any, image: str, name: str) -> Dataset:
    keys = [f"{row:09d}" for row in range(len(found))]

    def read(row: int) -> Sample:
        cells = found[row]
        cell = cells[image]
        try:
            data = cell["bytes"] or Path(cell["path"]).read_bytes()
        except (TypeError, OSError):
            raise SampleFault("row has no picture") from None
        return Sample(keys[row], data, text_of(cells), metadata_of(cells, (image,)))

    label = next((column for column in LABEL if column in found.column_names), None)
    names = getattr(found.features[label], "names", None) if label else None
    classes = Classes(names=tuple(own.replace("_", " ") for own in names)) if names else None
    return Dataset(
        name=name,
        keys=keys,
        read=read,
        files=[],
        identity=identity_of([found._fingerprint, *keys], []),
        classes=classes,
        has_lines=any("\n" in text_of(cells) for cells in found.remove_columns(image)),
    )
