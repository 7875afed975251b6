"""A dataset encoded once: in memory, and on disk for the next evaluation of the same model.

A folder is of one model and one dataset: ``image.npy``, ``text.npy`` and, where asked for,
``image_pooled.npy`` and ``text_pooled.npy``, a row for each usable sample; ``samples.parquet``; and
``captions.npz``, all captions that evaluators encoded besides, with their features.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet, encode_dataset
from data_pipelines.faults import Faults
from eval.processes import Processes
from vlp.checkpoint import encoder_hash
from vlp.console import say
from vlp.encode import TextMemory
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.manifest import MANIFEST, damage, seal
from vlp.output import check_output, output_folder, read_record, whole_file, write_json
from vlp.types import Sample

COMMAND = "eval --features"
KINDS = ("image", "text", "image_pooled", "text_pooled")
SAMPLES, FAULTS = "samples.parquet", "faults.json"
CAPTIONS = "captions.npz"


def describe(encoder: DualEncoder, dataset: Dataset) -> dict[str, Any]:
    """Return what features depend on: the same description, the same features."""
    keys = hashlib.sha256("\0".join(dataset.keys).encode(errors="surrogatepass"))
    return {
        "model_hash": encoder_hash(encoder),
        "preprocessing": encoder.config["preprocess_cfg"],
        "dataset_identity": dataset.identity,
        "ids": keys.hexdigest()[:16],
        "has_lines": dataset.has_lines,
        "samples": len(dataset),
        "dtype": str(encoder.logit_scale.dtype).removeprefix("torch."),
    }


def encode_once(
    encoder: DualEncoder,
    dataset: Dataset,
    folder: Path | None,
    *,
    processes: Processes,
    pooled: bool = False,
    batch_size: int = 256,
    overwrite: bool = False,
) -> EncodedSet:
    """Return the features of a dataset: from the folder where it holds them, else encode them.

    Raises:
        UserError: The folder holds features of another model or dataset, or is damaged.
    """
    config = describe(encoder, dataset)
    found = None
    if folder:
        if not overwrite:
            check_output(folder, COMMAND, config, inputs=dataset.files)
            found = processes.from_first(lambda: _is_complete(folder, pooled))
        if found:
            say(f"The features of {dataset.name} are those in {folder}.")
            return _load(folder, dataset)
    encoded = encode_dataset(
        encoder,
        dataset,
        pooled=pooled,
        batch_size=batch_size,
        process=processes.rank,
        num_processes=processes.count,
        gather=processes.gather,
    )
    if folder and processes.is_first:
        with output_folder(folder, COMMAND, config, overwrite=True) as part:
            _save(part, encoded)
        seal(folder)
        say(f"Wrote the features of {len(encoded.samples)} samples into {folder}.")
    return encoded


def read_memory(encoder: DualEncoder, folder: Path | None) -> TextMemory:
    """Return the captions of a folder and their features; none where there is no such folder."""
    memory = TextMemory(encoder)
    if folder and (folder / CAPTIONS).is_file():
        with np.load(folder / CAPTIONS) as found:
            captions = json.loads(found["captions"].tobytes())
            memory.rows.update(zip(captions, torch.from_numpy(found["features"]), strict=True))
    return memory


def write_memory(memory: TextMemory, folder: Path) -> None:
    """Write the captions that were encoded; the features of a folder stay as they are."""
    if not memory.rows:
        return
    captions = np.frombuffer(json.dumps(list(memory.rows)).encode(), dtype=np.uint8)
    # One file, so that of two evaluations at once no caption gets the other's features.
    with whole_file(folder / CAPTIONS) as file:
        np.savez(file, captions=captions, features=torch.stack(list(memory.rows.values())).numpy())


def _is_complete(folder: Path, pooled: bool) -> bool:
    """Return whether the features in a folder are all that is asked for.

    Raises:
        UserError: A file is not as it was written.
    """
    if read_record(folder) is None or not (folder / MANIFEST).is_file():
        return False
    found = damage(folder)
    if found:
        raise UserError(f"The features {folder} are damaged: {found}. Remove the folder.")
    return not pooled or (folder / "image_pooled.npy").is_file()


def _save(folder: Path, encoded: EncodedSet) -> None:
    for kind in KINDS:
        rows: Tensor | None = getattr(encoded, kind)
        if rows is not None:
            np.save(folder / f"{kind}.npy", rows.numpy())
    samples = [asdict(sample) for sample in encoded.samples]
    table = {
        "row": encoded.rows,
        "key": [sample["key"] for sample in samples],
        "text": [sample["text"] for sample in samples],
        "metadata": [json.dumps(sample["metadata"]) for sample in samples],
    }
    pq.write_table(pa.table(table), folder / SAMPLES)
    write_json(folder / FAULTS, encoded.faults.as_dict())


def _load(folder: Path, dataset: Dataset) -> EncodedSet:
    table = pq.read_table(folder / SAMPLES).to_pydict()
    columns = (table["key"], table["text"], table["metadata"])
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
    return EncodedSet(
        dataset, table["row"], samples, image, text, faults, image_pooled, text_pooled
    )
