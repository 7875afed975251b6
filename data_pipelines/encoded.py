"""Samples and an encoder to features in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from data_pipelines.ahead import map_ahead
from data_pipelines.dataset import Dataset, dataset_of
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import ShardSet
from vlp.batches import batches
from vlp.console import progress
from vlp.encode import Rows, encode_captions, encode_pixels, join_rows
from vlp.encoder import DualEncoder
from vlp.image import ImageError, decode
from vlp.processes import ALONE, Processes
from vlp.types import Sample

Only = Literal["images", "texts"] | None
"""What is encoded of samples where it is not both."""
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
    image: Float[Tensor, "samples image_dim"]
    """As long as the texts'; of length 0 where only those were wanted."""
    text: Float[Tensor, "samples text_dim"]
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
    only: Only = None,
    batch_size: int = 256,
    processes: Processes = ALONE,
) -> EncodedSet:
    """Return the image and text features of a dataset; what cannot be read is in ``faults``.

    The order is that of the dataset. Of several processes each encodes every n-th batch, and all
    get the whole set. A batch is always the same rows of the dataset, so the features are equal
    bit for bit for any number of processes.

    Args:
        encoder: The same on every process. All call it equally often.
        dataset: The same on every process.
        pooled: Whether rows before the projections are wanted, too.
        only: Of what there are to be features; the other's have length 0.
        batch_size: Samples encoded together.
        processes: Those that share the work.
    """
    groups = list(batches(range(len(dataset)), batch_size)) or [[]]
    own = groups[processes.rank :: processes.count]
    prepare = partial(_prepared, encoder, dataset, only)
    items = map_ahead(prepare, chain.from_iterable(own), ahead=AHEAD)
    with progress(sum(map(len, own)), "encode") as advance:

        def encode(group: list[int]) -> _Encoded:
            part = _encode(encoder, islice(items, len(group)), pooled, only, dataset.has_lines)
            advance(len(group))
            return part

        parts = processes.share(groups, encode, idle=[])
    return _joined(list(zip(groups, parts, strict=True)), dataset)


class _Encoded(NamedTuple):
    """The features of a group of samples, a row for each that could be read."""

    places: list[int]
    """In the group."""
    samples: list[Sample]
    image: Rows
    text: Rows
    faults: list[tuple[int, str]]
    """Places of the others, and why."""


class _Prepared(NamedTuple):
    """A sample without its image, and its pixels where they are wanted."""

    sample: Sample
    pixels: Tensor | None


def _prepared(encoder: DualEncoder, dataset: Dataset, only: Only, row: int) -> _Prepared | str:
    """Return a sample as it is encoded, or what is wrong with it."""
    try:
        sample = dataset.read(row)
        pixels = None if only == "texts" else encoder.transform(decode(sample.image))
        return _Prepared(replace(sample, image=b""), pixels)
    except (SampleFault, ImageError) as fault:
        return str(fault)


def _encode(
    encoder: DualEncoder,
    items: Iterable[_Prepared | str],
    pooled: bool,
    only: Only,
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
    samples = [prepared.sample for prepared in found.values()]
    image = text = Rows(torch.empty(len(samples), 0))
    if only != "texts":
        pixels = [prepared.pixels for prepared in found.values()]
        pixels = pixels or [encoder.transform(Image.new("RGB", (1, 1)))]
        image = encode_pixels(encoder, torch.stack(pixels), pooled=pooled)
        image = image.take(range(len(samples)))
    if only != "images":
        text = _encode_different(encoder, samples, pooled, has_lines)
    return _Encoded(list(found), samples, image, text, faults)


def _encode_different(
    encoder: DualEncoder, samples: list[Sample], pooled: bool, has_lines: bool
) -> Rows:
    """Encode each different caption once: a set with labels and no captions costs no text pass."""
    captions = [caption_of(sample, has_lines) for sample in samples]
    place = {caption: row for row, caption in enumerate(dict.fromkeys(captions or [""]))}
    text = encode_captions(encoder, list(place), pooled=pooled)
    return text.take([place[caption] for caption in captions])


def caption_of(sample: Sample, has_lines: bool) -> str:
    """Return the caption that a sample's features are of: the first where its lines are several."""
    return sample.text.partition("\n")[0] if has_lines else sample.text


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
