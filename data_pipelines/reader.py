"""Places of the plan to parts of a batch: read, replaced where broken, decoded, tokenised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice, Group, caption_key
from data_pipelines.decode import training_views
from data_pipelines.faults import SampleFault
from data_pipelines.fetch_ahead import FetchAhead
from data_pipelines.hard_captions import HardCaptions
from data_pipelines.plan import Place, Plan, Resampled, hash63, sample_seed
from data_pipelines.shards import ShardSet, read
from data_pipelines.sources import relative_names
from data_pipelines.tally import Fault, Tally
from data_pipelines.tar_index import Entry, TarIndex, open_index
from data_pipelines.teacher_input import TeacherInput, stored_pair
from vlp.errors import UserError
from vlp.features import StoredFeatures
from vlp.image import ImageError
from vlp.tokenizer import Tokenizer
from vlp.types import Sample

DRAWS = 50
"""Draws for a readable sample in the place of a broken one before the data is given up."""
DRAWS_NEARBY = 20
"""Of these, draws from the same shard before any shard of its source will do."""
INDEXED = 500_000
"""Samples of the indexes that a worker keeps in memory: 0.15 MB for 1,000."""


class Part(NamedTuple):
    """What one worker makes of a batch beside its pictures; the first view is the batch's own."""

    tokens: Int64[np.ndarray, "part text_views length"]
    keys: list[str]
    group: list[int]
    seed: list[int]
    tally: Tally
    teacher_tokens: Int64[np.ndarray, "part long"] | None = None
    teacher_features: Float[np.ndarray, "part 2 dim"] | None = None
    hard_tokens: Int64[np.ndarray, "part hard length"] | None = None
    hard_group: Int64[np.ndarray, "part hard"] | None = None


class Ready(NamedTuple):
    """A sample before it is part of a batch."""

    key: str
    views: list[UInt8[Tensor, "3 height width"]]
    captions: list[str]
    group: int
    seed: int
    taught: Float[np.ndarray, "2 dim"] | None
    positives: set[str]
    """Keys of all its captions, where hard ones are made of it."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads samples of the plan. What it makes of one follows from the plan's seed and the sample.

    Another sample of its shard takes the place of one that cannot be read, drawn by its seed:
    which one does not depend on workers or processes.
    """

    sources: Sequence[ShardSet]
    plan: Plan
    tokenizer: Tokenizer
    image_size: tuple[int, int]
    augmentation: Augmentation
    captions: CaptionChoice
    seed: int = 0
    group: Group = "caption"
    label_key: str = "cls"
    image_views: int = 1
    text_views: int = 1
    is_scaled: bool = False
    """Decode large JPEGs at a reduced size, see ``training_views``."""
    teacher: TeacherInput | None = None
    """A model that reads each sample, too."""
    features: StoredFeatures | None = None
    """Features of each sample and its caption by a teacher. A sample that has none is a fault."""
    hard_captions: HardCaptions | None = None
    """What makes captions that nearly fit."""

    @property
    def view_sizes(self) -> list[tuple[int, tuple[int, int]]]:
        """Views of a picture by size: the batch's own, then the teacher's where it is another."""
        sizes = [(self.image_views, self.image_size)]
        if self.teacher and self.teacher.image_size != self.image_size:
            sizes.append((1, self.teacher.image_size))
        return sizes

    def part(
        self,
        positions: range,
        pixels: Sequence[UInt8[Tensor, "_views part _height _width 3"]],
        tally: Tally,
    ) -> Part:
        """Return the samples at these positions of the plan.

        Their pictures go into ``pixels``, one for each of ``view_sizes``, what is counted into
        ``tally``.

        Raises:
            UserError: A shard cannot be fetched, or no sample can be read.
        """
        self._fetch_ahead(positions)
        views = [view for block in pixels for view in block.movedim(-1, 2)]
        ready = []
        for number, position in enumerate(positions):
            item = self._filled(self.plan.place(position), tally)
            for view, image in zip(views, item.views, strict=True):
                view[number] = image
            ready.append(item._replace(views=[]))
            tally.tick("hand over")
        captions = [caption for item in ready for caption in item.captions]
        tokens, cut = self.tokenizer.with_cuts(captions)
        tally.captions_cut = int(cut.sum())
        tally.reads = len(ready)
        own = [item.captions[0] for item in ready]
        taught = [item.taught for item in ready if item.taught is not None]
        tally.tick("tokenise")
        hard_tokens, hard_group = self._hard(ready, positions, tokens, tally)
        return Part(
            tokens.view(len(ready), self.text_views, -1).numpy(),
            [item.key for item in ready],
            [item.group for item in ready],
            [item.seed for item in ready],
            tally,
            self.teacher.tokenizer(own).numpy() if self.teacher else None,
            np.stack(taught) if taught else None,
            hard_tokens,
            hard_group,
        )

    def _hard(
        self, ready: list[Ready], positions: range, tokens: Int64[Tensor, "_ length"], tally: Tally
    ) -> (
        tuple[Int64[np.ndarray, "part hard length"], Int64[np.ndarray, "part hard"]]
        | tuple[None, None]
    ):
        """Return ids and groups of captions that nearly fit; None where the whole batch has none.

        A batch ends at the same place for all processes and workers, so they agree.
        """
        maker = self.hard_captions
        if maker is None or not maker.share.at(positions.stop - 1):
            return None, None
        found = maker.tokenised(
            [item.captions[0] for item in ready],
            [item.positives for item in ready],
            [item.seed for item in ready],
            positions,
            self.tokenizer,
            tokens.view(len(ready), self.text_views, -1),
        )
        tally.hard_captions, tally.hard_due, tally.hard_without = (
            found.made,
            found.due,
            found.without,
        )
        tally.tick("change captions")
        return found.tokens, found.group

    def _filled(self, place: Place, tally: Tally) -> Ready:
        """Return the sample at a place, or its substitute."""
        draw = first = None
        for attempt in range(DRAWS):
            index = self._open(place, tally)
            try:
                entry = self._entry(place, index)
                return self._prepare(entry, place, tally)
            except (SampleFault, ImageError) as fault:
                found = Fault(str(fault), self.shard_name(place), self._name(place, index))
                tally.faults[found] = None
                first = first or (index.shard, found.reason)
                tally.substituted += draw is None
            draw = draw or np.random.default_rng([self.seed, *place])
            other = self._another(place, tally, draw, is_near=attempt < DRAWS_NEARBY)
            if other is None:
                break
            place = other
        assert first is not None
        shard, reason = first
        raise UserError(
            f"{shard} gives no readable sample in {DRAWS_NEARBY} draws ({reason}), nor do others. "
            f"`vlp inspect {shard}` shows what is wrong; leave such shards out."
        )

    def _open(self, place: Place, tally: Tally) -> TarIndex:
        source = self.sources[place.source]
        shard = source.shards[place.shard]
        index = self._index(shard)
        if source.is_stated[place.shard] and shard not in self._met:
            self._met.add(shard)
            faults = index.faults
            extra = len(index) - int(source.counts[place.shard])
            if extra > 0 and source.counts[place.shard]:
                faults.add("sample beyond the stated count", shard.name, "", extra)
            tally.headers[self.shard_name(place)] = faults.as_dict()
        tally.tick("fetch")
        return index

    @cached_property
    def _met(self) -> set:
        return set()

    @cached_property
    def _index(self) -> Callable[[Path], TarIndex]:
        sizes = [count for source in self.sources for count in source.counts]
        several = INDEXED // max(1000, round(sum(sizes) / max(1, len(sizes))))
        return lru_cache(maxsize=max(4 * self.plan.lanes, several))(open_index)

    def _entry(self, place: Place, index: TarIndex) -> Entry:
        if not len(index) and not self.sources[place.source].counts[place.shard]:
            raise SampleFault("shard holds no sample")
        number = self._number(place, index)
        if number >= len(index):
            raise SampleFault("shard holds fewer samples than stated")
        return index[number]

    def _number(self, place: Place, index: TarIndex) -> int:
        is_drawn = isinstance(self.plan.rows[place.source], Resampled)
        return place.index % max(1, len(index)) if is_drawn else place.index

    def _name(self, place: Place, index: TarIndex) -> str:
        number = self._number(place, index)
        return index.keys[number] if number < len(index) else f"number {number}"

    def _another(
        self, place: Place, tally: Tally, draw: np.random.Generator, *, is_near: bool
    ) -> Place | None:
        """Return a place drawn from the same shard; from any where it holds nothing or too few."""
        copies = getattr(self.plan.rows[place.source], "copies", None)
        num_shards = len(self.sources[place.source].shards)
        for attempt in range(DRAWS):
            if attempt or not is_near:
                place = place._replace(shard=int(draw.integers(num_shards)))
            index = self._open(place, tally)
            kept = np.flatnonzero(copies[place.shard]) if copies else range(len(index))
            if len(kept):
                return place._replace(index=int(draw.choice(kept)))
        return None

    def _prepare(self, entry: Entry, place: Place, tally: Tally) -> Ready:
        sample = read(
            entry,
            with_metadata=not self.captions.is_plain or self.group == "label",
            needs_caption=self.captions.is_plain,
        )
        spent = tally.tick("read")
        tally.slowest = max(tally.slowest, (spent, str(entry.shard)))
        tally.bytes_read[place.source] += sum(member.size for member in entry.members.values())
        name = self._names[place.source][place.shard]
        seed = sample_seed(self.seed, place.epoch, name, entry.key, place.copy)
        draws = np.random.default_rng(seed)
        captions = [self.captions.draw(sample, draws) for _ in range(self.text_views)]
        numbered = [(size, view) for count, size in self.view_sizes for view in range(count)]
        views = training_views(
            sample.image,
            [size for size, _ in numbered],
            self.augmentation,
            [np.random.default_rng([seed, view]) for _, view in numbered],
            is_scaled=self.is_scaled,
            tick=tally.tick,
        )
        taught = None
        if self.features is not None:
            taught = stored_pair(self.features, entry.key, captions[0])
        group = self._group(sample, captions[0], seed)
        positives = self.captions.positives(sample) if self.hard_captions else set()
        return Ready(entry.key, views, captions, group, seed, taught, positives)

    def _group(self, sample: Sample, caption: str, seed: int) -> int:
        if self.group == "caption":
            is_main = self.captions.reads_main and sample.text
            return hash63(caption_key(sample.text if is_main else caption))
        if self.group == "image":
            return hash63(sample.image)
        if self.group == "label":
            if self.label_key not in sample.metadata:
                raise SampleFault(f"metadata has no {self.label_key}")
            return hash63(str(sample.metadata[self.label_key]))
        return seed

    def identity(self) -> str:
        """Return what two readers share that read the same samples in the same order."""
        names = "\n".join(name for names in self._names for name in names)
        told = f"{self.plan.identity()} {names}"
        if self.hard_captions is not None:
            told += f" {self.hard_captions.identity()}"
        return f"{hash63(told):016x}"

    def shard_name(self, place: Place) -> str:
        """Return what a shard is called in the ledger, after the number of several sources."""
        name = self._names[place.source][place.shard]
        return name if len(self.sources) > 1 else name.partition("/")[2]

    @cached_property
    def _names(self) -> list[list[str]]:
        """What tells each shard from all others, wherever the data has been moved."""
        return [
            [f"{number}/{name}" for name in relative_names(source.shards)]
            for number, source in enumerate(self.sources)
        ]

    @cached_property
    def _fetch_ahead(self) -> FetchAhead:
        return FetchAhead(self.sources, self.plan)
