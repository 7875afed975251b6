"""Shards and an encoder to features, in memory for evaluation or on disk for an index."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from data_pipelines.ahead import map_ahead
from data_pipelines.dataset import Dataset, dataset_of
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import ShardSet, open_shards
from vlp.batches import batches
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import progress, show
from vlp.encode import Rows, encode_captions, encode_pixels, join_rows, to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import ImageError, decode
from vlp.output import output_folder
from vlp.types import Sample

AHEAD = 1024
"""Pictures decoded before they are asked for, so that threads work while the encoder does."""


@dataclass(frozen=True)
class EncodedSet:
    """The features of every usable sample of a dataset, in its order."""

    dataset: Dataset
    rows: list[int]
    """Of the dataset, one for each sample here."""
    samples: list[Sample]
    """Without their image bytes."""
    image: Float[Tensor, "samples dim"]
    text: Float[Tensor, "samples dim"]
    """Of each sample's caption; of its first, where it has several lines of them."""
    faults: Faults
    image_pooled: Float[Tensor, "samples image_width"] | None = None
    """What the image tower projects to its features, where asked for; of any length."""
    text_pooled: Float[Tensor, "samples text_width"] | None = None


def encode_shards(encoder: DualEncoder, shards: ShardSet, **options: Any) -> EncodedSet:
    """Return the features of shards, with the options of ``encode_dataset``."""
    return encode_dataset(encoder, dataset_of(shards, "shards"), **options)


def encode_dataset(
    encoder: DualEncoder,
    dataset: Dataset,
    *,
    pooled: bool = False,
    batch_size: int = 256,
    process: int = 0,
    num_processes: int = 1,
    gather: Callable[[list], list] = list,
) -> EncodedSet:
    """Return the image and text features of a dataset; what cannot be read is in ``faults``.

    The order is that of the dataset. Of several processes each encodes every n-th batch, and all
    get the whole set. A batch is always the same rows of the dataset, so the features are equal
    bit for bit for any number of processes.

    Args:
        encoder: The same on every process. All call it equally often.
        dataset: The same on every process.
        pooled: Whether rows before the projections are wanted, too.
        batch_size: Samples encoded together.
        process: Which of the processes this is.
        num_processes: How many there are.
        gather: Returns the lists of all processes as one.
    """
    groups = list(batches(range(len(dataset)), batch_size))
    own = groups[process::num_processes]
    prepare = partial(_prepared, encoder, dataset)
    items = map_ahead(prepare, chain.from_iterable(own), ahead=AHEAD)
    encoded = []
    with progress(sum(map(len, own)), "encode") as advance:
        for turn in range(math.ceil(len(groups) / num_processes)):
            size = len(own[turn]) if turn < len(own) else 0
            part = _encode(encoder, islice(items, size), pooled, dataset.has_lines)
            encoded.append((turn * num_processes + process, part))
            advance(size)
    parts = dict(gather(encoded))
    return _joined([(group, parts[number]) for number, group in enumerate(groups)], dataset)


class _Encoded(NamedTuple):
    """The features of a group of samples, a row for each that could be read."""

    places: list[int]
    """In the group."""
    samples: list[Sample]
    image: Rows
    text: Rows
    faults: list[tuple[int, str]]
    """Places of the others, and why."""


def _prepared(encoder: DualEncoder, dataset: Dataset, row: int) -> tuple[Sample, Tensor] | str:
    """Return a sample without its image, and its pixels; or what is wrong with it."""
    try:
        sample = dataset.read(row)
        return replace(sample, image=b""), encoder.transform(decode(sample.image))
    except (SampleFault, ImageError) as fault:
        return str(fault)


def _encode(
    encoder: DualEncoder,
    items: Iterable[tuple[Sample, Tensor] | str],
    pooled: bool,
    has_lines: bool,
) -> _Encoded:
    """Encode what could be read of a group.

    An empty group costs a call, too: where parameters are split over processes, all must call.
    """
    found, faults = {}, []
    for place, item in enumerate(items):
        if isinstance(item, str):
            faults.append((place, item))
        else:
            found[place] = item
    samples = [sample for sample, _ in found.values()]
    pixels = [pixels for _, pixels in found.values()]
    pixels = pixels or [encoder.transform(Image.new("RGB", (1, 1)))]
    image = encode_pixels(encoder, torch.stack(pixels), pooled=pooled)
    # Each different caption once: a set with labels and no captions costs no text pass.
    captions = [sample.text.partition("\n")[0] if has_lines else sample.text for sample in samples]
    place = {caption: row for row, caption in enumerate(dict.fromkeys(captions or [""]))}
    text = encode_captions(encoder, list(place), pooled=pooled)
    rows = [place[caption] for caption in captions]
    image, text = image.take(range(len(samples))), text.take(rows)
    return _Encoded(list(found), samples, image, text, faults)


def _joined(parts: list[tuple[list[int], _Encoded]], dataset: Dataset) -> EncodedSet:
    """Return the groups of rows and what was made of them as one set."""
    faults = Faults()
    faults.merge(dataset.faults.as_dict())
    for group, part in parts:
        for place, reason in part.faults:
            faults.add(reason, dataset.place(group[place]), dataset.keys[group[place]])
    image = join_rows([part.image for _, part in parts])
    text = join_rows([part.text for _, part in parts])
    return EncodedSet(
        dataset,
        [group[place] for group, part in parts for place in part.places],
        [sample for _, part in parts for sample in part.samples],
        image.features,
        text.features,
        faults,
        image.pooled,
        text.pooled,
    )


def embed_shards(
    model: str, source: str, out: Path, *, batch_size: int = 256, overwrite: bool = False
) -> dict[str, Any]:
    """Write features as clip-retrieval lays them out, with each picture's place in its shard.

    ``image_emb/image_emb_0.npy`` and ``text_emb/text_emb_0.npy`` hold fp32 unit-length rows;
    ``metadata/metadata_0.parquet`` has a row for each: key, caption, the sample's metadata as
    JSON, and the shard, byte offset and size of its picture.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}. Give at least 1.")
    shards = open_shards(source)
    encoder = to_best_device(load_encoder(model))
    inputs = [*shards.shards, *paths_of(model, source)]
    # A whole path, so that `vlp search` finds the model from any folder.
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    config = {
        "model": model,
        "model_hash": encoder_hash(encoder),
        "scale": encoder.logit_scale.exp().item(),  # for who learns from these features
        "shards": source,
    }
    with output_folder(out, "embed", config, inputs=inputs, overwrite=overwrite) as part:
        encoded = encode_shards(encoder, shards, batch_size=batch_size)
        if not encoded.samples:
            raise UserError(f"No sample of {source} could be read ({encoded.faults.summary()}).")
        for kind in ("image", "text"):
            (part / f"{kind}_emb").mkdir()
            features = getattr(encoded, kind).numpy()
            np.save(part / f"{kind}_emb" / f"{kind}_emb_0.npy", features)
        (part / "metadata").mkdir()
        pq.write_table(_metadata(encoded, shards), part / "metadata" / "metadata_0.parquet")
    count = len(encoded.samples)
    show(f"Embedded {count} samples of {source} into {out} ({encoder.dim} dimensions).")
    if encoded.faults:
        show(f"Left out: {encoded.faults.summary()}.")
    return {"samples": count, "dim": encoder.dim, "out": str(out), **_faults(encoded.faults)}


def _metadata(encoded: EncodedSet, shards: ShardSet) -> pa.Table:
    entries = [shards.entries[row] for row in encoded.rows]
    pictures = [entry.members[entry.extension() or ""] for entry in entries]
    return pa.table(
        {
            "key": [sample.key for sample in encoded.samples],
            "caption": [sample.text for sample in encoded.samples],
            "metadata": [
                json.dumps(sample.metadata, ensure_ascii=False) for sample in encoded.samples
            ],
            "shard": [str(entry.shard.resolve()) for entry in entries],
            "offset": pa.array([member.offset for member in pictures], pa.int64()),
            "size": pa.array([member.size for member in pictures], pa.int64()),
        }
    )


def _faults(faults: Faults) -> dict[str, Any]:
    return {"faults": faults.as_dict()} if faults else {}
