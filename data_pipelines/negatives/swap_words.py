"""Two words of a kind change places."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, zip_longest

import numpy as np

from data_pipelines.hard_captions import Negative
from data_pipelines.tagged_words import ARTICLES, COORDINATORS, NOUN_PHRASE, Span, Words
from data_pipelines.tagger import Tagger
from data_pipelines.vocabulary import Given

EITHER_WAY = (
    *("with", "by", "near", "beside", "alongside", "next", "to"),
    *COORDINATORS,
    *ARTICLES,
)
"""Words between two of a kind that say the same of both: "a cat and a dog" is "a dog and a cat"."""

TRIED = 256
"""Pairs of words of a kind; captions of more than 23 of a kind are few."""


@dataclass(frozen=True, kw_only=True)
class SwapWords(Negative):
    """Two nouns, adjectives, verbs, adverbs or noun phrases of a caption change places.

    "a red circle left of a blue square" becomes "a blue circle left of a red square". By spaCy's
    tags, or among the words of each class of a vocabulary. The kind is drawn first, so that many
    nouns do not outweigh two adjectives. Not swapped are two between which only such words stand
    that say the same of both ("a cat and a dog", "big red"), and adjectives of the same noun: the
    caption would still be true. ("Two men shaking hands" cannot be told from "a man bites a dog".)

    Source: NegCLIP (Yuksekgonul et al. 2022, arXiv:2210.01936, section 4.1).
    """

    what: tuple[str, ...] = ()
    """Kinds of words that are swapped: ``noun``, ``adjective``, ``verb``, ``adverb``,
    ``noun_phrase``, or classes of the vocabulary; none: all of them."""
    vocabulary: Given | None = None
    """Classes of words, a JSON file of them, or ``english``; none: spaCy tells."""
    pipeline: str = "en_core_web_sm"
    """An installed spaCy pipeline for the language of the captions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._kinds

    def __call__(self, caption: str, rng: np.random.Generator) -> Iterator[str]:
        """Yield the caption with two of its words in each other's place, each swap once."""
        words = self._tagged(caption)
        kinds: dict[str, list[Span]] = {}
        for span in words.spans:
            if span.kind in self._kinds:
                kinds.setdefault(span.kind, []).append(span)
        swaps = [_swaps(words, spans, rng) for spans in kinds.values()]
        in_turn = zip_longest(*(swaps[i] for i in rng.permutation(len(swaps))))
        for one, other in filter(None, chain.from_iterable(in_turn)):
            yield words.changed({one: words.text(other), other: words.text(one)})

    def identity(self) -> str:
        """Return what the words' kinds follow from."""
        return self._tagged.identity()

    @cached_property
    def _tagged(self) -> Tagger:
        needs_parser = not self.what or bool({NOUN_PHRASE, "adjective"} & {*self.what})
        return Tagger.of(self.vocabulary, self.pipeline, with_phrases=needs_parser)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return self._tagged.kinds(self.what)


def _swaps(
    words: Words, spans: Sequence[Span], rng: np.random.Generator
) -> Iterator[tuple[Span, Span]]:
    """Yield pairs of spans of a kind, in random order, that say another thing when swapped."""
    alike = {place for span in spans for place in range(span.start, span.stop)}
    pairs = list(combinations(spans, 2))
    for number in rng.permutation(len(pairs))[:TRIED]:
        one, other = pairs[number]
        if _differ(words, one, other, alike):
            yield one, other


def _differ(words: Words, one: Span, other: Span, alike: Set[int]) -> bool:
    """Return whether a caption says another thing with two spans swapped.

    Words of their kind between them do not matter, as in "cats, dogs and birds".
    """
    if words.text(one).casefold() == words.text(other).casefold():
        return False
    if one.of is not None and one.of == other.of:
        return False
    between = range(one.stop, other.start)
    return any(i not in alike and words.words[i].casefold() not in EITHER_WAY for i in between)
