"""Pack a folder of images, a table of image-text pairs or other shards into shards."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.ahead import map_ahead
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.tables import TABLES, Table, open_table, parse_object
from data_pipelines.tar_index import IMAGE_EXTENSIONS
from vlp.console import progress, show
from vlp.errors import UserError, nearest
from vlp.image import ImageError, shrink_image
from vlp.output import output_folder
from vlp.sample import Sample

KEY_COLUMNS = ("key", "uid")
"""Columns that may name a sample; without one, its row number of nine digits does."""


class Source(NamedTuple):
    """Image-text pairs that are about to be packed."""

    samples: Iterator[Sample]
    count: int | None
    """Pairs to look at, where that is known."""


def pack(
    source: Path,
    shards: Path,
    *,
    image: str = "image",
    caption: str = "caption",
    samples_per_shard: int = 1000,
    short_side: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write image-text pairs as shards; a pair without an image or a caption is counted, not fatal.

    Images go in byte for byte and are not opened: a broken one is found by `vlp inspect`,
    `vlp filter` and the loader. With ``short_side``, those whose shorter side is longer are made
    that small, as JPEG of quality 90, and one that cannot be read is left out.

    Raises:
        UserError: The source is missing or cannot be read, a column is missing, or no pair is left.
    """
    faults = Faults()
    if short_side is not None and short_side < 1:
        raise UserError(f"short_side is {short_side}. Give 1 pixel or more.")
    config = {
        "source": str(source),
        "image": image,
        "caption": caption,
        "samples_per_shard": samples_per_shard,
        "short_side": short_side,
    }
    pairs = open_source(source, image=image, caption=caption, faults=faults)
    with output_folder(shards, "pack", config, inputs=[source], overwrite=overwrite) as part:
        samples = _with_progress(pairs)
        if short_side:
            samples = _smaller(samples, short_side, faults)
        num_samples, num_shards = write_shards(samples, part, samples_per_shard=samples_per_shard)
        if not num_samples:
            raise UserError(
                f"Nothing of {source} can be packed: {faults.summary() or 'it has no rows'}."
            )
    show(f"Packed {num_samples} samples of {source} into {shards}, number of shards: {num_shards}.")
    if faults:
        show(f"Left out: {faults.summary()}.")
    counts = {"samples": num_samples, "shards": num_shards, "faults": faults.as_dict()}
    return {"source": str(source), "out": str(shards), **counts}


def open_source(source: Path, *, image: str, caption: str, faults: Faults) -> Source:
    """Return the pairs of a folder or a table; what is left out will be counted in ``faults``.

    Raises:
        UserError: There is no such folder or table, or it lacks images or a column.
    """
    if source.suffix == ".tar" or (source.is_dir() and next(source.rglob("*.tar"), None)):
        shards = open_shards(source)
        shards.faults = faults
        return Source(iter(shards), len(shards))
    if source.is_dir():
        return _open_folder(source, caption, faults)
    if not source.is_file():
        raise UserError(f"There is no folder or table at {source}.")
    if source.suffix.lower() not in TABLES:
        raise UserError(
            f"{source} is no table that vlp can read. Give a folder, or one of {', '.join(TABLES)}."
        )
    columns = Columns(image, caption)
    table = columns.open(source, faults)
    return Source(_table_samples(table, source, columns, faults), table.count)


class Columns(NamedTuple):
    """What columns of a table are called; None where one is not wanted."""

    image: str | None
    caption: str | None

    def open(self, path: Path, faults: Faults) -> Table:
        """Return a table that has these columns.

        Raises:
            UserError: It lacks one.
        """
        wanted = {name: column for name, column in self._asdict().items() if column}
        table = open_table(path, text_columns=(*wanted.values(), *KEY_COLUMNS), faults=faults)
        for option, column in wanted.items():
            if column not in table.columns:
                raise UserError(
                    f"{path} has no column {column!r}. It has: {', '.join(table.columns)}. "
                    f"{_meant(column, table.columns)}Write --{option} COLUMN."
                )
        return table


def _with_progress(pairs: Source) -> Iterator[Sample]:
    with progress(pairs.count, "pack") as advance:
        for sample in pairs.samples:
            yield sample
            advance()


def _smaller(samples: Iterable[Sample], short_side: int, faults: Faults) -> Iterator[Sample]:
    """Yield the samples with large pictures made small, by threads; count those not readable."""

    def shrink(sample: Sample) -> Sample | tuple[str, str]:
        try:
            return replace(sample, image=shrink_image(sample.image, short_side))
        except ImageError as fault:
            return str(fault), sample.key

    for result in map_ahead(shrink, samples):
        if isinstance(result, Sample):
            yield result
        else:
            reason, key = result
            faults.add(reason, "", key)


def _open_folder(folder: Path, caption: str, faults: Faults) -> Source:
    images = list_images(folder, faults)
    return Source(_folder_samples(folder, images, caption, faults), len(images))


def list_images(folder: Path, faults: Faults) -> list[Path]:
    """Return the pictures below a folder in the order of their names.

    Raises:
        UserError: There is none.
    """
    files = [file for file in _walk(folder) if not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower()[1:] in IMAGE_EXTENSIONS]
    if not images:
        raise UserError(
            f"{folder} holds no images. Give a folder with KEY.jpg (or png, webp) and "
            f"KEY.txt, or a table: {', '.join(TABLES)}."
        )
    stems = {image.with_suffix("") for image in images}
    for file in files:
        if file.suffix == ".txt" and file.with_suffix("") not in stems:
            faults.add("no image", "", file.relative_to(folder).as_posix())
    return images


def _walk(folder: Path) -> list[Path]:
    """Return every file below a folder in the order of the names; hidden folders are left out."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names]
    return sorted(files)


def _folder_samples(
    folder: Path, images: Iterable[Path], caption: str, faults: Faults
) -> Iterator[Sample]:
    for path in images:
        try:
            yield folder_sample(folder, path, caption)
        except SampleFault as fault:
            faults.add(str(fault), "", path.relative_to(folder).as_posix())


def folder_sample(
    folder: Path,
    path: Path,
    caption: str,
    *,
    needs_caption: bool = True,
    needs_image: bool = True,
) -> Sample:
    """Return an image with the caption of its ``.txt``, else of the field in its ``.json``."""
    text, metadata = None, {}
    if (file := path.with_suffix(".json")).is_file():
        metadata = parse_object(_read_file(file), "metadata is no JSON object")
        text = metadata.get(caption)
    if (file := path.with_suffix(".txt")).is_file():
        text = _read_caption(file)
    text = _caption(text) if needs_caption or text else ""
    image = _read_file(path) if needs_image else b""
    return Sample(path.relative_to(folder).with_suffix("").as_posix(), image, text, metadata)


def _table_samples(table: Table, path: Path, columns: Columns, faults: Faults) -> Iterator[Sample]:
    for number, row in enumerate(table.rows):
        try:
            yield table_sample(row, number, columns, path.parent)
        except SampleFault as fault:
            faults.add(str(fault), path.name, key_of(row, number))


def key_of(row: dict[str, Any], number: int) -> str:
    """Return the key of a table's row: its own, else its number."""
    names = (str(row[column]) for column in KEY_COLUMNS if row.get(column) not in (None, ""))
    return next(names, f"{number:09d}")


def table_sample(row: dict[str, Any], number: int, columns: Columns, folder: Path) -> Sample:
    """Return a row as a sample; images are named from the folder."""
    metadata = {
        name: _plain(value)
        for name, value in row.items()
        if name not in (*columns, "key") and _is_metadata(value)
    }
    image = _image(row.get(columns.image), folder) if columns.image else b""
    text = _caption(row.get(columns.caption)) if columns.caption else ""
    return Sample(key_of(row, number), image, text, metadata)


def image_file(value: Any, folder: Path) -> Path | None:
    """Return the file that a cell names; None where the cell holds the image itself, or none."""
    if isinstance(value, dict) and not value.get("bytes"):
        value = value.get("path")
    return folder / value if isinstance(value, str) and value else None


def _image(value: Any, folder: Path) -> bytes:
    """Return the encoded image that a cell holds or names."""
    if isinstance(value, dict):  # how Hugging Face datasets store an image
        value = value.get("bytes") or value.get("path")
    if not value:
        raise SampleFault("no image")
    if isinstance(value, bytes):
        return value
    if str(value).startswith(("http://", "https://")):
        raise SampleFault("image is a URL, not a file")
    return _read_file(folder / str(value))


def _caption(value: Any) -> str:
    """Return a caption; several captions become several lines."""
    lines = value if isinstance(value, list) else [value]
    text = "\n".join(str(line) for line in lines if line is not None).strip()
    if not text:
        raise SampleFault("no caption")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        raise SampleFault("caption is no UTF-8") from None
    return text


def _is_metadata(value: Any) -> bool:
    """Return whether a cell says something and fits into JSON: no gap, no NaN, no bytes."""
    return value is not None and value == value and not isinstance(value, bytes)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise SampleFault("image file is missing") from None
    except (OSError, ValueError):
        raise SampleFault("file cannot be read") from None


def _read_caption(path: Path) -> str:
    try:
        return _read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SampleFault("caption is no UTF-8") from None


def _meant(column: str, columns: Sequence[str]) -> str:
    hint = nearest(column, columns)
    return f"{hint} " if hint.startswith("Did you mean") else ""
