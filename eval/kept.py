"""Features on disk, for the next evaluation: refused where they are another's, or damaged.

One folder is of one model. In it, each dataset has a folder: ``image.npy``, ``text.npy`` and, where
asked for, ``image_pooled.npy`` and ``text_pooled.npy``, a row for each usable sample, and
``samples.parquet``. ``captions`` has all that evaluators had encoded besides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from data_pipelines.faults import Faults
from vlp.errors import UserError
from vlp.manifest import MANIFEST, damage, seal
from vlp.output import (
    check_output,
    output_folder,
    read_record,
    remove_output,
    write_json,
    write_record,
)
from vlp.types import Sample

COMMAND = "eval --features"
KINDS = ("image", "text", "image_pooled", "text_pooled")
SAMPLES, FAULTS = "samples.parquet", "faults.json"
ROWS, CAPTIONS = "features.npy", "captions.json"


def open_folder(folder: Path, config: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder that holds the others, and write down which model it is of.

    Raises:
        UserError: It holds features of another model, or what no command wrote.
    """
    check_output(folder, COMMAND, config, overwrite=overwrite)
    if overwrite:
        remove_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, COMMAND, config)


def is_kept(folder: Path, config: dict[str, Any], name: str, inputs: Sequence[Path] = ()) -> bool:
    """Return whether a folder holds the file of this name, written for this config.

    Raises:
        UserError: It was written for another config, a file is not as it was written, or it lies
            among the inputs.
    """
    check_output(folder, COMMAND, config, inputs=inputs)
    if read_record(folder) is None or not (folder / MANIFEST).is_file():
        return False
    found = damage(folder)
    if found:
        raise UserError(f"The features {folder} are damaged: {found}. Remove the folder.")
    return (folder / name).is_file()


def write_set(folder: Path, config: dict[str, Any], encoded: EncodedSet) -> None:
    """Write the features of a dataset in place of what the folder held."""
    with output_folder(folder, COMMAND, config, overwrite=True) as part:
        for kind in KINDS:
            rows: Tensor | None = getattr(encoded, kind)
            if rows is not None:
                np.save(part / f"{kind}.npy", rows.numpy())
        samples = [asdict(sample) for sample in encoded.samples]
        table = {
            "row": encoded.rows,
            "key": _as_bytes([sample["key"] for sample in samples]),
            "text": _as_bytes([sample["text"] for sample in samples]),
            "metadata": [json.dumps(sample["metadata"]) for sample in samples],
        }
        pq.write_table(pa.table(table), part / SAMPLES)
        write_json(part / FAULTS, encoded.faults.as_dict())
    seal(folder)


def read_set(folder: Path, dataset: Dataset) -> EncodedSet:
    """Return the features of a dataset."""
    table = pq.read_table(folder / SAMPLES)
    columns = (_as_text(table["key"]), _as_text(table["text"]), table["metadata"].to_pylist())
    samples = [
        Sample(key, b"", text, json.loads(about)) for key, text, about in zip(*columns, strict=True)
    ]
    paths = [folder / f"{kind}.npy" for kind in KINDS]
    rows = [torch.from_numpy(np.load(path)) if path.is_file() else None for path in paths]
    image, text, image_pooled, text_pooled = rows
    assert image is not None
    assert text is not None
    faults = Faults()
    faults.merge(json.loads((folder / FAULTS).read_text()))
    rows_of = table["row"].to_pylist()
    return EncodedSet(dataset, rows_of, samples, image, text, faults, image_pooled, text_pooled)


def write_captions(folder: Path, config: dict[str, Any], rows: Mapping[str, Tensor]) -> None:
    """Write captions and their features in place of what the folder held."""
    with output_folder(folder, COMMAND, config, overwrite=True) as part:
        write_json(part / CAPTIONS, list(rows))
        np.save(part / ROWS, torch.stack(list(rows.values())).numpy())
    seal(folder)


def read_captions(folder: Path) -> dict[str, Tensor]:
    """Return captions and their features."""
    captions = json.loads((folder / CAPTIONS).read_text())
    return dict(zip(captions, torch.from_numpy(np.load(folder / ROWS)), strict=True))


def _as_bytes(texts: Sequence[str]) -> pa.Array:
    """Return texts as bytes: JSON and names of files may hold half of a pair of surrogates."""
    return pa.array([text.encode(errors="surrogatepass") for text in texts], pa.binary())


def _as_text(column: pa.ChunkedArray) -> list[str]:
    return [data.decode(errors="surrogatepass") for data in column.cast(pa.binary()).to_pylist()]
