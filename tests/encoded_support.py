"""Encoded sets that tests make of features of their own."""

from pathlib import Path

import torch.nn.functional as F
from tests_support import picture

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from data_pipelines.faults import Faults
from data_pipelines.shards import write_shards
from eval.open_dataset import open_dataset
from vlp.types import Sample


def sample(number, text="a caption", **metadata):
    """Return a sample without its image bytes."""
    return Sample(f"{number:05d}", b"", text, metadata)


def encoded_set(samples, image, text=None, **options):
    """Return a set of these samples with these features, made unit-length rows."""
    dataset = Dataset(
        name="drawn",
        keys=[sample.key for sample in samples],
        read=samples.__getitem__,
        files=[],
        identity="0",
    )
    image = F.normalize(image, dim=1)
    text = image if text is None else F.normalize(text, dim=1)
    rows = list(range(len(samples)))
    return EncodedSet(dataset, rows, samples, image, text, Faults(), **options)


def written(folder: Path, samples, colours=("red", "green", "blue")):
    """Write samples with drawn pictures as shards; return the dataset they make."""
    drawn = [
        Sample(s.key, picture(colours[i % len(colours)], noise=i), s.text, s.metadata)
        for i, s in enumerate(samples)
    ]
    write_shards(drawn, folder, samples_per_shard=100)
    return open_dataset(str(folder))
