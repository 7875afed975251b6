"""A caption says more than is there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.captions import caption_key
from data_pipelines.hard_captions import Negative
from data_pipelines.negatives.replace_words import DRAWS
from data_pipelines.tagged_words import Span, Words, with_article
from data_pipelines.vocabulary import Given, Vocabulary, open_vocabulary


@dataclass(frozen=True, kw_only=True)
class AddWords(Negative):
    """One attribute or object more than the caption has.

    "a dog on a sofa" becomes "a green dog on a sofa", or with ``kind='object'`` "a dog and a horse
    on a sofa". What is of the kind that it is added to stands behind, after "and", and is of the
    same class; anything else stands before, unless a word of its class does already. It may be true
    of a picture whose caption leaves it out: the more words a class has, the more rarely.

    Source: SugarCrepe's add (Hsieh et al. 2023, arXiv:2306.14610, section 4), there written by a
    language model.
    """

    kind: str = "attribute"
    """Class of what is added: ``attribute``, ``attribute/colour``, ``object``, or yours."""
    to: str = "object"
    """Class of what it is added to."""
    vocabulary: Given = "english"
    """Classes of words, a JSON file of them, or ``english``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._added, self._bearers

    def __call__(self, caption: str, rng: np.random.Generator) -> Iterator[str]:
        """Yield the caption with one thing more."""
        words = self._words.tagged(caption)
        spans = [span for span in words.spans if span.kind in self._bearers]
        said = f" {caption_key(' '.join(words.words))} "
        for _ in range(DRAWS if spans else 0):
            span = spans[int(rng.integers(len(spans)))]
            is_beside = span.kind in self._added
            kinds = [span.kind] if is_beside else self._added
            kind = kinds[int(rng.integers(len(kinds)))]
            number, more = self._words.draw(kind, rng)
            own = words.text(span)
            is_said = f" {caption_key(more)} " in said or self._words.entry(own) == (kind, number)
            if not is_said and _kind_before(words, span) != kind:
                text = f"{own}{_and(words, span, more)}{more}" if is_beside else f"{more} {own}"
                yield words.changed({span: text})

    def identity(self) -> str:
        """Return what the words follow from."""
        return self._words.identity()

    @cached_property
    def _words(self) -> Vocabulary:
        return open_vocabulary(self.vocabulary)

    @cached_property
    def _added(self) -> list[str]:
        return sorted(self._words.kinds(self.kind))

    @cached_property
    def _bearers(self) -> frozenset[str]:
        return self._words.kinds(self.to)


def _kind_before(words: Words, span: Span) -> str | None:
    return next((other.kind for other in words.spans if other.stop == span.start), None)


def _and(words: Words, span: Span, more: str) -> str:
    """Return "and", with an article where the word that another stands beside has one."""
    before = words.words[: span.start][-1:]
    has_article = before and before[0].casefold() in ("a", "an")
    return with_article(" and a ", more) if has_article else " and "
