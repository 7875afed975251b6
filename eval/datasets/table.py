"""A CSV, TSV, JSONL or Parquet table of pictures with captions or labels."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.dataset import Dataset, identity_of
from data_pipelines.faults import Faults
from data_pipelines.tables import open_table
from eval.datasets.files import file_dataset
from vlp.errors import UserError
from vlp.types import Sample

IMAGE = ("image", "image_path", "filepath", "file_name", "filename", "file", "path", "img", "jpg")
TEXT = ("caption", "captions", "text", "title", "sentences", "txt")
LABEL = ("cls", "label", "labels", "class", "fine_label", "target")
KEY = ("key", "uid", "id")


def open_table_dataset(path: Path, name: str) -> Dataset:
    """Return the rows of a table; several captions of a picture may be a list or rows of their own.

    Raises:
        UserError: It cannot be read, has no column of pictures, or pictures are missing.
    """
    faults = Faults()
    table = open_table(path, text_columns=(*TEXT, *KEY), faults=faults)
    image = find_column(IMAGE, table.columns, str(path), "pictures")
    rows = list(table.rows)
    if isinstance(rows[0].get(image) if rows else "", dict | bytes):
        return _with_bytes(rows, image, path, name)
    merged: dict[str, tuple[str, Path, str, dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        file = str(row[image])
        text, metadata = text_of(row), metadata_of(row, (image,))
        if file in merged:  # one more caption of the same picture
            key, place, before, own = merged[file]
            merged[file] = (key, place, f"{before}\n{text}", own)
        else:
            key = next((str(row[k]) for k in KEY if row.get(k) not in (None, "")), f"{number:09d}")
            merged[file] = (key, path.parent / file, text, metadata)
    found = list(merged.values())
    has_lines = len(found) < len(rows) or any("\n" in text for _, _, text, _ in found)
    return file_dataset(found, name, [path], has_lines=has_lines)


def _with_bytes(rows: Sequence[dict[str, Any]], image: str, path: Path, name: str) -> Dataset:
    """Return a table that holds the pictures themselves, as Hugging Face's Parquet files do."""

    def read(row: int) -> Sample:
        cell = rows[row][image]
        data = cell["bytes"] if isinstance(cell, dict) else cell
        return Sample(keys[row], data or b"", texts[row], metadata_of(rows[row], (image,)))

    keys = [f"{number:09d}" for number in range(len(rows))]
    texts = [text_of(row) for row in rows]
    return Dataset(
        name=name,
        keys=keys,
        read=read,
        files=[path],
        identity=identity_of(keys, [path]),
        has_lines=any("\n" in text for text in texts),
    )


def find_column(known: Sequence[str], columns: Iterable[str], where: str, what: str) -> str:
    """Return the first of the known names that is a column.

    Raises:
        UserError: None is.
    """
    columns = list(columns)
    found = next((name for name in known if name in columns), None)
    if found is None:
        raise UserError(
            f"{where} has no column of {what}: it has {', '.join(columns)}. Call one {known[0]!r}."
        )
    return found


def text_of(row: dict[str, Any]) -> str:
    """Return the caption of a row, or its captions as lines; "" where it has none."""
    said = (row.get(name) for name in TEXT)
    # A dictionary holds captions by language, for `multilingual`.
    value = next((v for v in said if v not in (None, "") and not isinstance(v, dict)), "")
    lines = value if isinstance(value, list) else [value]
    return "\n".join(" ".join(str(line).split()) for line in lines)


def metadata_of(row: dict[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """Return what else a row says; its label is called ``cls``, too."""
    metadata = {
        name: value
        for name, value in row.items()
        if name not in without and isinstance(value, str | int | float | bool | list | dict)
    }
    label = next((metadata[name] for name in LABEL if name in metadata), None)
    return metadata if label is None else metadata | {"cls": label}
