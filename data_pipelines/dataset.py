"""A dataset to encode: pictures with labels or captions, whatever they lie in."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shards import ShardSet, read
from vlp.classifier import Classes
from vlp.types import Sample

LOOKED_AT = 1000
"""Samples, from all over a set, that say what its samples are like."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples by their row; reading one costs a seek or a file."""

    name: str
    """What the user calls it."""
    keys: Sequence[str]
    """Of each row, unique."""
    read: Callable[[int], Sample]
    """Row to sample; raises SampleFault. May be called by several threads at once."""
    files: Sequence[Path]
    """Files and folders that it is read from; ``classnames.txt`` is looked for there, too."""
    identity: str
    """16 hex digits of its rows and files, as far as names, sizes and times of change tell."""
    classes: Classes | None = None
    """That it brings itself."""
    has_lines: bool = False
    """Whether each line of a sample's text is a caption of its own, as of COCO and Flickr30k."""
    place: Callable[[int], str] = lambda row: ""
    """In which of its files a row lies, for the fault ledger."""
    faults: Faults = field(default_factory=Faults)
    """What was found wrong while it was opened."""

    def __len__(self) -> int:
        return len(self.keys)


def some_samples(dataset: Dataset) -> list[Sample]:
    """Return about a thousand samples from all over the set, without those that cannot be read."""
    found = []
    for row in range(0, len(dataset), max(1, len(dataset) // LOOKED_AT)):
        try:
            found.append(dataset.read(row))
        except SampleFault:  # counted where the set is encoded
            continue
    return found


def dataset_of(shards: ShardSet, name: str, *, has_lines: bool = False) -> Dataset:
    """Return the samples of shards, in shard order and then in the order of the tar."""
    entries = shards.entries
    return Dataset(
        name=name,
        keys=[entry.key for entry in entries],
        read=lambda row: read(entries[row]),
        files=shards.shards,
        identity=identity_of([entry.key for entry in entries], shards.shards),
        has_lines=has_lines,
        place=lambda row: entries[row].shard.name,
        faults=shards.faults,
    )


def identity_of(rows: Iterable[str], files: Iterable[Path]) -> str:
    """Return 16 hex digits of what rows are called and of the names, sizes and times of files."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.encode(errors="surrogatepass") + b"\0")
    for file in files:
        found = file.stat()
        told = f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0"
        digest.update(told.encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
