"""COCO's and Flickr30k's captions: Karpathy's JSON of both, and COCO's own annotations."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.dataset import Dataset
from eval.datasets.files import file_dataset
from vlp.errors import UserError, nearest

SPLIT = "test"
"""Of Karpathy's splits, where none is given: 5,000 pictures of COCO, 1,000 of Flickr30k."""
FOLDERS = ("", "images", "flickr30k-images", "val2017", "val2014", "train2014", "train2017")
"""Where pictures are looked for, beside the file."""


def open_captions_json(path: Path, split: str, name: str) -> Dataset:
    """Return the pictures of a caption file, each with all its captions.

    Args:
        path: ``dataset_coco.json``, ``dataset_flickr30k.json`` or ``captions_val2017.json``.
        split: Of Karpathy's file; "" for its test split.
        name: What the user calls it.

    Raises:
        UserError: It is no such file, has no such split, or pictures are missing.
    """
    try:
        told = json.loads(path.read_text())
        images = told["images"]
        rows = _own(told) if "annotations" in told else _karpathy(images, split or SPLIT, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no caption file: it lacks images with sentences (Karpathy's JSON) or "
            f"annotations with captions (COCO's)."
        ) from None
    found = [
        (
            key,
            _find(path.parent, folder, file),
            "\n".join(" ".join(c.split()) for c in captions),
            {},
        )
        for key, folder, file, captions in rows
    ]
    return file_dataset(found, name, [path], has_lines=True)


def _karpathy(images: list[dict], split: str, path: Path) -> list[tuple[str, str, str, list[str]]]:
    splits = sorted({image["split"] for image in images})
    if split not in splits:
        raise UserError(f"{path} has no split {split!r}. {nearest(split, splits)}")
    return [
        (
            Path(image["filename"]).stem,
            image.get("filepath", ""),
            image["filename"],
            [sentence["raw"] for sentence in image["sentences"]],
        )
        for image in images
        if image["split"] == split
    ]


def _own(told: dict[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    captions: dict[int, list[str]] = {}
    for annotation in told["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [
        (Path(image["file_name"]).stem, "", image["file_name"], captions[image["id"]])
        for image in told["images"]
        if image["id"] in captions
    ]


def _find(beside: Path, folder: str, file: str) -> Path:
    """Return where a picture lies beside the file, or where it should."""
    places = [beside / folder / file, *(beside / known / file for known in FOLDERS)]
    places += [place for place in (beside / "images" / folder / file,) if folder]
    return next((place for place in places if place.is_file()), places[0])
