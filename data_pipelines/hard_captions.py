"""Captions that nearly fit a picture: who makes them, and which of them are no negatives."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.mining.ramp import Ramp
from data_pipelines.plan import hash63
from data_pipelines.tagged_words import meaning_key
from vlp.errors import UserError
from vlp.spec import build
from vlp.tokenizer import Tokenizer
from vlp.types import PADDING

DUE = 6
"""The random stream that decides whether a sample gets any."""


@dataclass(frozen=True, kw_only=True)
class Negative(ABC):
    """A file of ``data_pipelines/negatives``: one way to make captions that nearly fit."""

    k: int = 1
    """Captions of this kind for each sample."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k is {self.k}. Write how many captions each sample gets, such as 1.")

    @abstractmethod
    def __call__(self, caption: str, rng: np.random.Generator) -> Iterable[str]:
        """Yield captions made of one, in random order; of these the first ``k`` that fit are taken.

        They follow from the caption and ``rng`` alone. Some may repeat, or equal the caption.
        """

    def identity(self) -> str:
        """Return what changes when the same options make other captions; a file's content."""
        return ""


ALWAYS = Ramp(1.0, 1.0)


class Hard(NamedTuple):
    """Hard captions of samples; of group PADDING where there are fewer than columns."""

    tokens: Int64[np.ndarray, "part hard length"]
    group: Int64[np.ndarray, "part hard"]
    made: int
    due: int
    """Samples that were to get some."""
    without: int
    """Of these, samples that got none: nothing in the caption can be changed."""


@dataclass(frozen=True)
class HardCaptions:
    """Makes hard captions of samples: a column for each that its parts are asked for."""

    parts: tuple[Negative, ...]
    share: Ramp = ALWAYS
    """Of samples that get some, by their place in the data."""
    names_group: bool = True
    """Whether pairs of equal captions are matches: then a caption says its group."""

    @property
    def count(self) -> int:
        """Captions for each sample."""
        return sum(part.k for part in self.parts)

    def identity(self) -> str:
        """Return what two that make the same captions share."""
        told = "\n".join(f"{part} {part.identity()}" for part in self.parts)
        return f"{hash63(told):016x}"

    def of(self, caption: str, positives: Set[str], seed: int) -> list[str]:
        """Return hard captions of a sample: up to ``k`` of each part, no two of which say the same.

        What says the same as a positive of the sample is none. A caption that is no positive was
        joined of a list, and gets none: its words are as true in any order.

        Args:
            caption: As it was drawn.
            positives: Keys of all captions of the sample.
            seed: Of the sample.
        """
        if caption_key(caption) not in positives:
            return []
        taken, found = {meaning_key(text) for text in positives}, []
        for part in self.parts:
            rng = np.random.default_rng([seed, hash63(repr(part))])
            own = []
            for negative in part(caption, rng):
                meaning = meaning_key(negative)
                if meaning not in taken:
                    taken.add(meaning)
                    own.append(negative)
                if len(own) == part.k:
                    break
            found += own
        return found

    def tokenised(
        self,
        captions: Sequence[str],
        positives: Sequence[Set[str]],
        seeds: Sequence[int],
        positions: Sequence[int],
        tokenizer: Tokenizer,
        own: Int64[Tensor, "part views length"],
    ) -> Hard:
        """Return the hard captions of the samples at these places in the data, as ids.

        One whose ids are those of a caption of its sample, as they differ beyond the cut, is none.

        Args:
            captions: Of each sample, as it was drawn first.
            positives: Keys of all its captions.
            seeds: Of the samples.
            positions: In the data.
            tokenizer: The encoder's.
            own: Ids of the captions that were drawn of each sample.
        """
        shares = [self.share.at(position) for position in positions]
        is_due = [_draw(seed) < share for seed, share in zip(seeds, shares, strict=True)]
        rows = [
            self.of(caption, keys, seed) if due else []
            for caption, keys, seed, due in zip(captions, positives, seeds, is_due, strict=True)
        ]
        places = [row + [None] * (self.count - len(row)) for row in rows]
        tokens = tokenizer([text or "" for row in places for text in row])
        tokens = tokens.view(len(rows), self.count, -1)
        group = torch.tensor([[self._group(text) for text in row] for row in places])
        group[(tokens[:, :, None] == own[:, None]).all(3).any(2)] = PADDING
        made = (group != PADDING).sum(1)
        without = sum(is_due) - int((made > 0).sum())
        return Hard(tokens.numpy(), group.numpy(), int(made.sum()), sum(is_due), without)

    def _group(self, text: str | None) -> int:
        if text is None:
            return PADDING
        return hash63(caption_key(text)) if self.names_group else -1


def _draw(seed: int) -> float:
    """Return a number in [0, 1) that follows from a sample's seed."""
    return np.random.default_rng([seed, DUE]).random()


def build_hard_captions(
    specs: Sequence[str], share: Ramp = ALWAYS, *, names_group: bool = True
) -> HardCaptions:
    """Return what makes the captions that texts such as ``"swap_words(k=1)"`` name.

    Raises:
        UserError: There is no such part, it refuses its options, or it cannot do its work here.
    """
    parts = tuple(build("data_pipelines.negatives", spec) for spec in specs)
    for spec, part in zip(specs, parts, strict=True):
        if not isinstance(part, Negative):
            raise UserError(f"{spec!r} is no Negative: derive it from {Negative.__module__}.")
    return HardCaptions(parts, share, names_group)
