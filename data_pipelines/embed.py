"""Shards and an encoder to features, in memory for evaluation or on disk for an index."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from data_pipelines.ahead import map_ahead
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import ShardSet, open_shards, read
from data_pipelines.tar_index import Entry
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import progress, show
from vlp.encode import batches, encode_texts, to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import ImageError, decode
from vlp.output import output_folder
from vlp.types import Sample

AHEAD = 1024
"""Pictures decoded before they are asked for, so that threads work while the encoder does."""


class Decoded(NamedTuple):
    """A sample whose picture is ready for the encoder."""

    entry: Entry
    sample: Sample
    pixels: Tensor


@dataclass(frozen=True)
class EncodedSet:
    """The features of every usable sample of some shards, in shard order."""

    entries: list[Entry]
    samples: list[Sample]
    """Without their image bytes."""
    image: Float[Tensor, "samples dim"]
    text: Float[Tensor, "samples dim"]
    faults: Faults


def encode_shards(encoder: DualEncoder, shards: ShardSet, *, batch_size: int = 256) -> EncodedSet:
    """Return the image and text features of shards; what cannot be read is in ``faults``.

    The features do not depend on the batch size beyond rounding; the order is that of the shards.
    """
    entries, samples, images, texts = [], [], [], []
    faults = Faults()
    faults.merge(shards.faults.as_dict())
    with progress(len(shards), "encode") as advance:
        for group in batches(decoded(encoder, shards, faults), batch_size):
            images.append(_encode_pixels(encoder, [item.pixels for item in group]))
            texts.append(_encode_captions(encoder, [item.sample.text for item in group]))
            entries += [item.entry for item in group]
            samples += [
                Sample(item.sample.key, b"", item.sample.text, item.sample.metadata)
                for item in group
            ]
            advance(len(group))
    empty = torch.empty(0, encoder.dim)
    return EncodedSet(
        entries, samples, torch.cat([empty, *images]), torch.cat([empty, *texts]), faults
    )


def decoded(encoder: DualEncoder, shards: ShardSet, faults: Faults) -> Iterator[Decoded]:
    """Yield the readable samples in order, their pictures decoded by threads ahead of use."""

    def prepare(entry: Entry) -> Decoded | tuple[str, Entry]:
        try:
            sample = read(entry)
            return Decoded(entry, sample, encoder.transform(decode(sample.image)))
        except (SampleFault, ImageError) as fault:
            return str(fault), entry

    for result in map_ahead(prepare, shards.entries, ahead=AHEAD):
        if isinstance(result, Decoded):
            yield result
        else:
            reason, entry = result
            faults.add(reason, entry.shard.name, entry.key)


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
        pq.write_table(_metadata(encoded), part / "metadata" / "metadata_0.parquet")
    count = len(encoded.samples)
    show(f"Embedded {count} samples of {source} into {out} ({encoder.dim} dimensions).")
    if encoded.faults:
        show(f"Left out: {encoded.faults.summary()}.")
    return {"samples": count, "dim": encoder.dim, "out": str(out), **_faults(encoded.faults)}


def _metadata(encoded: EncodedSet) -> pa.Table:
    pictures = [entry.members[entry.extension() or ""] for entry in encoded.entries]
    return pa.table(
        {
            "key": [sample.key for sample in encoded.samples],
            "caption": [sample.text for sample in encoded.samples],
            "metadata": [
                json.dumps(sample.metadata, ensure_ascii=False) for sample in encoded.samples
            ],
            "shard": [str(entry.shard.resolve()) for entry in encoded.entries],
            "offset": pa.array([member.offset for member in pictures], pa.int64()),
            "size": pa.array([member.size for member in pictures], pa.int64()),
        }
    )


@torch.no_grad()
def _encode_pixels(encoder: DualEncoder, pixels: list[Tensor]) -> Tensor:
    images = encoder(images=torch.stack(pixels).to(encoder.logit_scale.device)).image
    assert images is not None
    return images.float().cpu()


def _encode_captions(encoder: DualEncoder, captions: list[str]) -> Tensor:
    """Encode each different caption once: a set with labels and no captions costs no text pass."""
    place = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    features = encode_texts(encoder, list(place), batch_size=len(captions))
    return features[[place[caption] for caption in captions]]  # [captions, dim]


def _faults(faults: Faults) -> dict[str, Any]:
    return {"faults": faults.as_dict()} if faults else {}
