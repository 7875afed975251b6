"""A folder of a folder of pictures for each class, as torchvision's ImageFolder."""

from pathlib import Path

from data_pipelines.dataset import Dataset
from data_pipelines.tar_index import IMAGE_EXTENSIONS
from eval.datasets.files import file_dataset
from vlp.classifier import Classes
from vlp.errors import UserError

NAMES = "classnames.txt"
"""Names of the classes, a line for each folder in their order; without it folders are names."""


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def open_image_folder(folder: Path, name: str) -> Dataset:
    """Return the pictures of a folder of classes; the label of each is its folder.

    Raises:
        UserError: A class has no picture, or there are other names than folders.
    """
    rows: list[tuple[str, Path, str, dict]] = []
    folders = class_folders(folder)
    for own in folders:
        pictures = [p for p in sorted(own.iterdir()) if p.suffix.lower()[1:] in IMAGE_EXTENSIONS]
        if not pictures:
            inside = class_folders(own)
            hint = f"Did you mean {own}?" if inside else "Remove it, or add its pictures."
            raise UserError(f"The class folder {own} holds no picture. {hint}")
        for path in pictures:
            key = path.relative_to(folder).with_suffix("").as_posix()
            rows.append((key, path, "", {"cls": own.name}))
    ids = tuple(own.name for own in folders)
    return file_dataset(rows, name, [folder], classes=_classes(folder, ids))


def _classes(folder: Path, ids: tuple[str, ...]) -> Classes:
    """Return the classes by their folders, with names from a file where there is one."""
    path = next((p for p in (folder / NAMES, folder.parent / NAMES) if p.is_file()), None)
    if path is None:
        return Classes(names=tuple(own.replace("_", " ") for own in ids), ids=ids)
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if len(names) != len(ids):
        raise UserError(
            f"{path} has {len(names)} names and {folder} has {len(ids)} class folders. Write one "
            f"name for each, in the order of the folders."
        )
    return Classes(names=names, ids=ids)
