"""A word gives way to another of its class."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.captions import caption_key
from data_pipelines.hard_captions import Negative
from data_pipelines.vocabulary import Given, Vocabulary, open_vocabulary

DRAWS = 32
"""Words drawn for a caption; most fit."""


@dataclass(frozen=True, kw_only=True)
class ReplaceWords(Negative):
    """One attribute, object or relation of a caption becomes another.

    "a red circle left of a square" becomes "a green circle left of a square" or "a red circle right
    of a square". What takes a word's place is drawn from its class, less words of the same meaning
    and what the caption says already.

    Source: SugarCrepe's replace (Hsieh et al. 2023, arXiv:2306.14610, section 4), there written by
    a language model; here from lists, in which words of a class exclude each other, or from the
    words of the same tag in the corpus (`vlp inspect --words`), where now and then both are true.
    """

    kind: str | None = None
    """Class of the vocabulary, such as ``attribute``, ``attribute/colour``, ``object``,
    ``relation``, or a tag such as ``NN``; None: any."""
    vocabulary: Given = "english"
    """Classes of words, a JSON file of them, or ``english``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._kinds

    def __call__(self, caption: str, rng: np.random.Generator) -> Iterator[str]:
        """Yield the caption with another word in the place of one."""
        words = self._words.tagged(caption)
        spans = [span for span in words.spans if span.kind in self._kinds]
        said = f" {caption_key(' '.join(words.words))} "
        for _ in range(DRAWS if spans else 0):
            span = spans[int(rng.integers(len(spans)))]
            number, other = self._words.draw(span.kind, rng)
            own = self._words.entry(words.text(span))
            if own != (span.kind, number) and f" {caption_key(other)} " not in said:
                yield words.changed({span: other})

    def identity(self) -> str:
        """Return what the words follow from."""
        return self._words.identity()

    @cached_property
    def _words(self) -> Vocabulary:
        return open_vocabulary(self.vocabulary)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return self._words.kinds(self.kind)
