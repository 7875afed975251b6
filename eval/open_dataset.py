"""The door to datasets: what a path is, is seen from the path."""

from pathlib import Path

from data_pipelines.dataset import Dataset
from data_pipelines.tables import TABLES
from data_pipelines.tar_index import IMAGE_EXTENSIONS
from eval.datasets.captions_json import open_captions_json
from eval.datasets.image_folder import class_folders, open_image_folder
from eval.datasets.shards import open_shard_dataset
from eval.datasets.table import open_table_dataset
from vlp.errors import UserError


def open_dataset(source: str) -> Dataset:
    """Return the dataset of this name, whatever it lies in.

    Args:
        source: Shards, as all commands take them; a folder of a folder for each class; a table,
            ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; ``dataset_coco.json``, or
            ``dataset_coco.json:val``; ``torchvision:CIFAR10:FOLDER``, or with ``:train`` after it;
            ``hf:FOLDER_OR_NAME``, or with ``:SPLIT``; an ``.arrow`` file of its cache.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        from eval.datasets.torchvision_set import open_torchvision

        name, folder, split = (*rest.split(":"), "", "")[:3]
        return open_torchvision(name, Path(folder), split, source)
    if kind == "hf" or source.endswith(".arrow"):
        from eval.datasets.hugging_face import open_hugging_face

        return open_hugging_face(*_with_split(rest if kind == "hf" else source), source)
    path, split = _with_split(source)
    if path.endswith(".json"):
        return open_captions_json(Path(path), split, source)
    if path.lower().endswith(TABLES):
        if not Path(source).is_file():
            raise UserError(f"There is no table {source}.")
        return open_table_dataset(Path(source), source)
    folder = Path(source)
    if folder.is_dir() and next(folder.rglob("*.tar"), None) is None:
        return _open_folder(folder, source)
    return open_shard_dataset(source)


def _open_folder(folder: Path, source: str) -> Dataset:
    """Return the dataset of a folder without shards: one of classes."""
    inside = class_folders(folder)
    if not inside:
        loose = any(path.suffix.lower()[1:] in IMAGE_EXTENSIONS for path in folder.iterdir())
        hint = f"Write `vlp pack {folder} SHARDS` first." if loose else "It is empty of them."
        raise UserError(f"{folder} holds no shards and no folders of classes. {hint}")
    return open_image_folder(folder, source)


def _with_split(source: str) -> tuple[str, str]:
    """Return a path and the split behind its last colon; "" without one."""
    path, _, split = source.rpartition(":")
    return (path, split) if path and "/" not in split else (source, "")
