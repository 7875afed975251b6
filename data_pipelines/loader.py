"""Plan, shards and decoding to batches. The loader's state is one number: the samples seen."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipelines.augment import Augmentation, augment
from data_pipelines.captions import CaptionChoice, Group, caption_key
from data_pipelines.faults import Faults, SampleFault
from data_pipelines.plan import Place, Plan, hash63, sample_seed
from data_pipelines.shards import Entry, ShardSet, read
from vlp.errors import UserError
from vlp.image import ImageError, decode
from vlp.tokenizer import Tokenizer
from vlp.types import Batch, Sample

BATCHES_AHEAD = 4
TRIES = 50
"""Draws for a readable sample in the place of a broken one before the data is given up."""


class Ready(NamedTuple):
    """A sample with its picture as the image tower takes it."""

    key: str
    pixels: Tensor
    caption: str
    group: int
    seed: int


@dataclass
class Loader:
    """Batches of training samples, decoded by threads ahead of use.

    Another sample of its shard takes the place of one that cannot be read, drawn by its seed:
    which one does not depend on threads or processes.
    """

    shards: ShardSet
    plan: Plan
    tokenizer: Tokenizer
    image_size: tuple[int, int]
    augmentation: Augmentation
    captions: CaptionChoice
    group: Group = "caption"
    label_key: str = "cls"
    process: int = 0
    num_processes: int = 1
    threads: int = 2
    broken: dict[int, str] = field(default_factory=dict)
    """The samples that could not be read, by number, each with the reason."""
    captions_read: int = 0
    captions_cut: int = 0
    """Captions longer than the context of the text tower."""

    def __post_init__(self) -> None:
        folders = [str(shard.parent) for shard in self.shards.shards]
        self._root = os.path.commonpath(folders) if len(set(folders)) > 1 else folders[0]
        self._by_shard: dict[str, list[int]] = {}
        for number, entry in enumerate(self.shards.entries):
            self._by_shard.setdefault(str(entry.shard), []).append(number)

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Yield the batches that follow ``samples_seen``, without end."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[list[Future[Ready]]] = deque()
            position = samples_seen
            try:
                while True:
                    while len(waiting) < BATCHES_AHEAD:
                        places = self.plan.batch(position, self.process, self.num_processes)
                        waiting.append([pool.submit(self.load, place) for place in places])
                        position += self.plan.batch_size
                    batch = self._collate([future.result() for future in waiting.popleft()])
                    # Only from pinned memory can a GPU fetch while it computes.
                    yield _pinned(batch) if torch.cuda.is_available() else batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def load(self, place: Place) -> Ready:
        """Return the sample at a place, or its substitute."""
        number = place.index
        seed = self._seed(place.epoch, self.shards.entries[number])
        draw = np.random.default_rng([seed, 1])
        for _ in range(TRIES):
            entry = self.shards.entries[number]
            try:
                return self._prepare(entry, self._seed(place.epoch, entry))
            except (SampleFault, ImageError) as fault:
                self.broken[number] = str(fault)
            number = int(draw.choice(self._by_shard[str(entry.shard)]))
        shard = self.shards.entries[place.index].shard
        raise UserError(
            f"{shard} gives no readable sample in {TRIES} draws ({self.faults().summary()}). "
            f"`vlp inspect {shard}` shows what is wrong; leave the shard out."
        )

    def faults(self) -> Faults:
        """Return what was wrong in the headers and with the samples that were met so far."""
        found = Faults()
        found.merge(self.shards.faults.as_dict())
        for number, reason in sorted(self.broken.items()):
            entry = self.shards.entries[number]
            found.add(reason, entry.shard.name, entry.key)
        return found

    def _prepare(self, entry: Entry, seed: int) -> Ready:
        sample = read(entry)
        rng = np.random.default_rng(seed)
        caption = self.captions.draw(sample, rng)
        pixels = augment(decode(sample.image), self.image_size, self.augmentation, rng)
        chw = torch.from_numpy(pixels).permute(2, 0, 1)  # [3, height, width]
        return Ready(entry.key, chw, caption, self._group(sample, seed), seed)

    def _seed(self, epoch: int, entry: Entry) -> int:
        source = str(entry.shard.relative_to(self._root))
        return sample_seed(self.plan.seed, epoch, source, entry.key)

    def _group(self, sample: Sample, seed: int) -> int:
        if self.group == "caption":
            return hash63(caption_key(sample.text))
        if self.group == "image":
            return hash63(sample.image)
        if self.group == "label":
            if self.label_key not in sample.metadata:
                raise SampleFault(f"metadata has no {self.label_key}")
            return hash63(str(sample.metadata[self.label_key]))
        return seed

    def _collate(self, ready: list[Ready]) -> Batch:
        tokens, cut = self.tokenizer.with_cuts([item.caption for item in ready])
        self.captions_read += len(ready)
        self.captions_cut += int(cut.sum())
        return Batch(
            images=torch.stack([item.pixels for item in ready]),
            tokens=tokens,
            keys=[item.key for item in ready],
            group=torch.tensor([item.group for item in ready]),
            seed=torch.tensor([item.seed for item in ready]),
        )


def _pinned(batch: Batch) -> Batch:
    return batch._replace(
        images=batch.images.pin_memory(),
        tokens=batch.tokens.pin_memory(),
        group=batch.group.pin_memory(),
        seed=batch.seed.pin_memory(),
    )
