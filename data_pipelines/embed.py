"""``vlp embed``: the features of pictures and captions on disk, part by part.

``img_emb/img_emb_0.npy``, ``text_emb/text_emb_0.npy`` and on hold unit-length rows, as
clip-retrieval lays them out; ``metadata/metadata_0.parquet`` has a row for each: key, caption, the
sample's metadata as JSON, and the file, byte offset and size of its picture. Which rows are in
which part follows from the data alone, so a run that was stopped goes on and the bytes are the same
whatever the workers.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet, Only, encode_dataset
from data_pipelines.engine import Engine
from data_pipelines.faults import Faults
from data_pipelines.parts import Part, Picture, cut
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import show, speaking
from vlp.encode import to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.manifest import MANIFEST
from vlp.output import output_folder, take_over, whole_file, write_json
from vlp.sample import Sample

Dtype = Literal["fp32", "fp16"]
Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": np.float32, "fp16": np.float16}
METADATA = "metadata"
FOLDERS = ("img_emb", "text_emb", "image_pooled", "text_pooled", METADATA)
TOLD = b"vlp.embedded_from"
"""In a part's metadata, what its features follow from, and what could not be read."""


def embed(
    model: str,
    source: str,
    out: Path,
    *,
    only: Only = None,
    pooled: bool = False,
    dtype: Dtype = "fp32",
    precision: Precision = "fp32",
    image: str = "image",
    caption: str = "caption",
    batch_size: int = 256,
    samples_per_part: int = 1000,
    engine: Engine | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the features of shards, a folder of pictures, or a table.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        source: What is embedded; see ``cut``.
        out: Folder to write.
        only: Of what there are to be features, where not of both.
        pooled: Write ``image_pooled/`` and ``text_pooled/``, too: rows before the projections.
        dtype: Of the numbers on disk.
        precision: Of matrix products: bf16 is faster where the hardware has it, and rounds.
        image: Column of a table that names the picture.
        caption: Column of the caption, or field of a ``.json`` beside a picture.
        batch_size: Samples encoded at once; another one changes last bits.
        samples_per_part: Samples in a part; see ``cut``.
        engine: Where it runs; a pool of processes if None.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: There is no such model or source, or no sample can be read.
    """
    check_sizes(batch_size=batch_size, samples_per_part=samples_per_part)
    found = cut(source, size=samples_per_part, only=only, image=image, caption=caption)
    encoder = load_encoder(model)
    model = str(Path(model).resolve()) if Path(model).is_dir() else model  # as seen from anywhere
    made = {"model": model, "model_hash": encoder_hash(encoder), "only": only, "pooled": pooled}
    made |= {"dtype": dtype, "batch_size": batch_size, "precision": precision}
    scale = encoder.logit_scale.exp().item()  # for who learns from these features
    config = {**made, "scale": scale, "shards": source, "samples_per_part": samples_per_part}
    inputs = [*found.files, *paths_of(model, source)]
    told: dict[str, Any] = {**made, "dim": encoder.dim}
    with output_folder(
        out, "embed", config, inputs=inputs, overwrite=overwrite, keeps=FOLDERS
    ) as part:
        take_over(out, part, FOLDERS)
        tasks = [Task(number, one) for number, one in enumerate(found.parts)]
        work, engine = EmbedPart(part, **made), engine or Engine()
        written = list(engine.run(work, tasks, what="embed", on_gpu=True))
        told["samples"], faults = _count(written, found.faults, source)
        told |= _faults(faults)
        _seal(part, written, told)
    show(f"Embedded {told['samples']} samples of {source} into {out} ({encoder.dim} dimensions).")
    if faults:
        show(f"Left out: {faults.summary()}.")
    return {"samples": told["samples"], "dim": encoder.dim, "out": str(out), **_faults(faults)}


def check_sizes(**sizes: int) -> None:
    """Raise UserError for the first size that is below 1, by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} is {size}. Give at least 1.")


class Task(NamedTuple):
    """A part to embed."""

    number: int
    part: Part

    def __str__(self) -> str:
        return str(self.part)


class Written(NamedTuple):
    """A part that is on the disk."""

    samples: int
    faults: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """Bytes and hash of each, by its name."""


@dataclass(frozen=True)
class EmbedPart:
    """Writes the features of one part; what workers run."""

    folder: Path
    model: str
    model_hash: str
    only: Only
    pooled: bool
    dtype: Dtype
    batch_size: int
    precision: Precision

    def __call__(self, task: Task) -> Written:
        """Write what is not there yet, the metadata last: where it is, all is."""
        dataset, picture = task.part.open(self.only)
        path, origin = self._path(METADATA, task.number), self._origin(dataset)
        told = self._told(task.number)
        if told is None or told["origin"] != origin:
            encoded = self._encode(dataset)
            arrays = self._arrays(encoded)
            for name, rows in arrays.items():
                array = rows.numpy().astype(DTYPES[self.dtype])
                with whole_file(self._path(name, task.number)) as file:
                    np.save(file, array)
            files = {name: _size_and_hash(self._path(name, task.number)) for name in arrays}
            told = {"origin": origin, "arrays": files, "faults": encoded.faults.as_dict()}
            table = _metadata(encoded, picture).replace_schema_metadata({TOLD: json.dumps(told)})
            with whole_file(path) as file:
                pq.write_table(table, file)
        files = {**told["arrays"], METADATA: _size_and_hash(path)}
        names = {name: self._path(name, task.number).relative_to(self.folder) for name in files}
        hashes = {names[name].as_posix(): file for name, file in files.items()}
        return Written(pq.read_metadata(path).num_rows, told["faults"], hashes)

    def _told(self, number: int) -> dict[str, Any] | None:
        """Return what a part that is there follows from; None where not all of it is whole."""
        try:
            table = pq.read_table(self._path(METADATA, number))
            told = json.loads(table.schema.metadata[TOLD])
            files = {name: _size_and_hash(self._path(name, number)) for name in told["arrays"]}
        except (OSError, pa.ArrowException, TypeError, KeyError):
            return None
        return told if files == told["arrays"] else None

    def _encode(self, dataset: Dataset) -> EncodedSet:
        encoder = worker_encoder(self.model, self.model_hash)
        kind, is_bf16 = encoder.logit_scale.device.type, self.precision == "bf16"
        # The run has a bar of its own.
        with speaking("quiet"), torch.autocast(kind, torch.bfloat16, enabled=is_bf16):
            return encode_dataset(
                encoder,
                dataset,
                pooled=self.pooled,
                only=self.only,
                batch_size=self.batch_size,
            )

    def _arrays(self, encoded: EncodedSet) -> dict[str, Tensor]:
        """Return what is to be on the disk, by the name of its folder."""
        found = {
            "img_emb": None if self.only == "texts" else encoded.image,
            "text_emb": None if self.only == "images" else encoded.text,
            "image_pooled": encoded.image_pooled,
            "text_pooled": encoded.text_pooled,
        }
        return {name: rows for name, rows in found.items() if rows is not None}

    def _path(self, folder: str, number: int) -> Path:
        end = "parquet" if folder == METADATA else "npy"
        return self.folder / folder / f"{folder}_{number}.{end}"

    def _origin(self, dataset: Dataset) -> str:
        """Return 16 hex digits of all that the features of a part follow from."""
        options = {name: value for name, value in vars(self).items() if name != "folder"}
        told = json.dumps([dataset.identity, options], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def worker_encoder(model: str, model_hash: str) -> DualEncoder:
    """Return a model, loaded once in a process.

    Raises:
        UserError: Its weights are others than when the run began.
    """
    encoder = to_best_device(load_encoder(model)).eval()
    if encoder_hash(encoder) != model_hash:
        raise UserError(f"The model {model} has changed since the run began. Run it again.")
    return encoder


def _metadata(encoded: EncodedSet, picture: Callable[[int], Picture]) -> pa.Table:
    samples, pictures = encoded.samples, [picture(row) for row in encoded.rows]
    said = [json.dumps(sample.metadata, ensure_ascii=False) for sample in samples]
    # Half of a pair of surrogates stays as JSON spells it.
    said = [text.encode(errors="backslashreplace").decode() for text in said]
    return pa.table(
        {
            "key": pa.array([sample.key for sample in samples], pa.string()),
            "image_path": pa.array(_image_paths(samples, pictures), pa.string()),
            "caption": pa.array([sample.text for sample in samples], pa.string()),
            "metadata": pa.array(said, pa.string()),
            "shard": pa.array([one.file for one in pictures], pa.string()),
            "offset": pa.array([one.offset for one in pictures], pa.int64()),
            "size": pa.array([one.size for one in pictures], pa.int64()),
        }
    )


def _image_paths(samples: Sequence[Sample], pictures: Sequence[Picture]) -> list[str]:
    """Return what clip-retrieval calls a sample: its picture's file; of one in a shard, the key."""
    return [
        one.file if one.file and not one.offset else sample.key
        for sample, one in zip(samples, pictures, strict=True)
    ]


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _count(written: Sequence[Written], found: Faults, source: str) -> tuple[int, Faults]:
    """Return how many samples have features, and what was wrong with others.

    Raises:
        UserError: None has any.
    """
    faults = Faults()
    for one in (found.as_dict(), *(part.faults for part in written)):
        faults.merge(one)
    samples = sum(part.samples for part in written)
    if not samples:
        raise UserError(f"No sample of {source} could be read ({faults.summary()}).")
    return samples, faults


def _seal(folder: Path, written: Sequence[Written], told: dict[str, Any]) -> None:
    """Remove what parts of another cut left, and write down what is there."""
    files = {name: file for part in written for name, file in part.files.items()}
    for name in FOLDERS:
        for path in (folder / name).glob("*"):
            if path.relative_to(folder).as_posix() not in files:
                path.unlink()
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    write_json(folder / MANIFEST, {**told, "files": files})


def _faults(faults: Faults) -> dict[str, Any]:
    return {"faults": faults.as_dict()} if faults else {}
