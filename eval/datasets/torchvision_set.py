"""Datasets of torchvision that are on this machine; nothing is downloaded."""

import inspect
from pathlib import Path
from typing import Any

import torchvision.datasets
from PIL import Image

from data_pipelines.dataset import Dataset, identity_of
from eval.pictures import encoded_pixels
from vlp.classifier import Classes
from vlp.errors import UserError, first_line, nearest
from vlp.types import Sample

NO_SETS = (
    *("DatasetFolder", "FakeData", "ImageFolder", "VisionDataset"),
    "wrap_dataset_for_transforms_v2",
)
"""What torchvision makes datasets of."""


def open_torchvision(kind: str, folder: Path, split: str, name: str) -> Dataset:
    """Return a dataset such as CIFAR10, its test split where none is named.

    Raises:
        UserError: torchvision has none of this name, or it is not in the folder.
    """
    known = [name for name in torchvision.datasets.__all__ if name not in NO_SETS]
    if kind not in known:
        raise UserError(f"torchvision has no dataset {kind!r}. {nearest(kind, known)}")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give the one {kind} is in.")
    build = getattr(torchvision.datasets, kind)
    takes, options = inspect.signature(build).parameters, {}
    if "split" in takes:
        options["split"] = split or "test"
    elif "train" in takes:
        options["train"] = split == "train"
    try:
        found = build(str(folder), **options)
    except Exception as error:
        raise UserError(
            f"Cannot open {kind} in {folder}: {first_line(error)}. Nothing is downloaded: write "
            f"python -c \"import torchvision; torchvision.datasets.{kind}('{folder}', "
            f'download=True)".'
        ) from None
    _check(kind, found)
    names = getattr(found, "classes", None)
    classes = Classes(names=tuple(map(_name, names))) if names else None
    keys = [f"{row:09d}" for row in range(len(found))]

    def read(row: int) -> Sample:
        picture, target = found[row]
        text = "\n".join(target) if _are_captions(target) else ""
        metadata = {} if text else {"cls": int(target)}
        return Sample(keys[row], encoded_pixels(picture), text, metadata)

    about = f"{kind} {options} {getattr(found, 'targets', '')}"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return Dataset(
        name=name,
        keys=keys,
        read=read,
        files=[folder],
        identity=identity_of([about, str(len(found))], files),
        classes=classes,
        has_lines=bool(keys) and _are_captions(found[0][1]),
    )


def _check(kind: str, found: Any) -> None:
    """Raise UserError unless the items are pictures with a class or with captions."""
    try:
        if not len(found):
            return
        picture, target = found[0]
        is_known = _are_captions(target) or int(target) >= 0
    except Exception:
        picture, is_known = None, False
    if not isinstance(picture, Image.Image) or not is_known:
        raise UserError(
            f"The items of torchvision's {kind} are no pictures with a class or captions. Give "
            f"another dataset, or `vlp pack` its pictures with a table."
        )


def _are_captions(target: Any) -> bool:
    return isinstance(target, list | tuple) and all(isinstance(text, str) for text in target)


def _name(name: Any) -> str:
    """Return a class's name; of ImageNet's synonyms, the first."""
    return str(name[0] if isinstance(name, tuple) else name).replace("_", " ")
