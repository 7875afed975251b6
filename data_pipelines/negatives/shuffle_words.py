"""The same words in another order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from data_pipelines.hard_captions import Negative
from data_pipelines.tagged_words import NOUN_PHRASE, Words
from data_pipelines.tagger import Tagger
from data_pipelines.vocabulary import Given, is_kind

DRAWS = 8
"""Orders drawn of each kind: those of two words are the caption itself every second time."""
Order = Literal[
    "nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams"
]


@dataclass(frozen=True, kw_only=True)
class ShuffleWords(Negative):
    """A caption whose words are shuffled in one of four ways.

    - ``nouns_and_adjectives``: the nouns among themselves, and the adjectives;
    - ``all_but_nouns_and_adjectives``: all other words among themselves;
    - ``within_trigrams``: the words of each three that follow each other;
    - ``trigrams``: the threes themselves.

    With a vocabulary its words, class by class, are what nouns and adjectives are without. Such
    captions are mostly no sentences: a text tower alone can tell them apart.

    Source: ARO's COCO-Order and Flickr30k-Order (Yuksekgonul et al. 2022, arXiv:2210.01936,
    section 2.2, and ``dataset_zoo/perturbations.py`` of its code).
    """

    order: Order | None = None
    """One of the four; None: each in turn, from a random one on."""
    vocabulary: Given | None = None
    """Classes of words, a JSON file of them, or ``english``; none: spaCy tells."""
    pipeline: str = "en_core_web_sm"
    """An installed spaCy pipeline for the language of the captions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("within_trigrams", "trigrams"):
            _ = self._tagged

    def __call__(self, caption: str, rng: np.random.Generator) -> Iterator[str]:
        """Yield the caption's words in other orders."""
        names = [self.order] if self.order else list(ORDERS)
        start = int(rng.integers(len(names)))
        for draw in range(DRAWS * len(names)):
            name = names[(start + draw) % len(names)]
            words = Words.of(caption) if "trigrams" in name else self._tagged(caption)
            order = ORDERS[name](words, rng)
            if order != list(words.words):
                yield " ".join(order)

    def identity(self) -> str:
        """Return what the words' kinds follow from."""
        is_told = self.order not in ("within_trigrams", "trigrams")
        return self._tagged.identity() if is_told else ""

    @cached_property
    def _tagged(self) -> Tagger:
        return Tagger.of(self.vocabulary, self.pipeline, with_phrases=False)


def _nouns_and_adjectives(words: Words, rng: np.random.Generator) -> list[str]:
    order = list(words.words)
    for places in _places(words).values():
        _shuffle(order, places, rng)
    return order


def _all_but_nouns_and_adjectives(words: Words, rng: np.random.Generator) -> list[str]:
    order = list(words.words)
    left_out = {place for places in _places(words).values() for place in places}
    _shuffle(order, [place for place in range(len(order)) if place not in left_out], rng)
    return order


def _within_trigrams(words: Words, rng: np.random.Generator) -> list[str]:
    order = list(words.words)
    for start in range(0, len(order), 3):
        _shuffle(order, range(start, min(start + 3, len(order))), rng)
    return order


def _trigrams(words: Words, rng: np.random.Generator) -> list[str]:
    starts = range(0, len(words.words), 3)
    drawn = [starts[i] for i in rng.permutation(len(starts))]
    return [word for start in drawn for word in words.words[start : start + 3]]


ORDERS: dict[str, Callable[[Words, np.random.Generator], list[str]]] = {
    "nouns_and_adjectives": _nouns_and_adjectives,
    "all_but_nouns_and_adjectives": _all_but_nouns_and_adjectives,
    "within_trigrams": _within_trigrams,
    "trigrams": _trigrams,
}
"""The four orders by name: the words of a caption in, in another order out."""


def _places(words: Words) -> dict[str, list[int]]:
    """Return where nouns and adjectives, or the words of a vocabulary, stand, by kind."""
    found: dict[str, list[int]] = {}
    for span in words.spans:
        if not is_kind(span.kind, NOUN_PHRASE) and span.kind not in ("verb", "adverb"):
            found.setdefault(span.kind, []).extend(range(span.start, span.stop))
    return found


def _shuffle(order: list[str], places: Sequence[int], rng: np.random.Generator) -> None:
    """Put what stands at these places there in random order."""
    drawn = [order[places[i]] for i in rng.permutation(len(places))]
    for place, word in zip(places, drawn, strict=True):
        order[place] = word
