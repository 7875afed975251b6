"""A caption cut into words, and which of them are nouns or colours: what hard captions change."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from data_pipelines.curation.syntax import attribute_of, load

NOUN_PHRASE = "noun_phrase"
KINDS = {"NOUN": "noun", "PROPN": "noun", "ADJ": "adjective", "VERB": "verb", "ADV": "adverb"}
"""Parts of speech that spaCy tells, by what they are called here."""
ARTICLES = ("a", "an", "the")
COORDINATORS = ("and", "or", ",", ";", "/", "&", "+")
"""Words whose two sides may change places."""
KEPT = 16_384
"""Parsed captions that a process remembers: some 30 MB."""
_LETTER = r"(?:\w|[^\s\x00-\xbf\u2010-\u206f\u3000-\u303f\uff00-\uffef])"
"""Whatever is no punctuation: with marks that Python takes for no letters, such as accents on their
own and the vowels of Hindi, and pictographs of several signs."""
_WORD = re.compile(rf"{_LETTER}+(?:['’-]{_LETTER}+)*|[^\w\s]")
_VOWEL = re.compile(r"(?!uni|use|eu|one)[aeiou]|hour|hono|heir", re.IGNORECASE)


class Span(NamedTuple):
    """Words that follow each other and can be exchanged for others of their kind."""

    start: int
    stop: int
    kind: str
    of: int | None = None
    """Number of the word that an adjective says something of, where that is known."""


@dataclass(frozen=True)
class Words:
    """A caption as words with the white space behind each, and what kinds of words they are."""

    words: tuple[str, ...]
    spaces: tuple[str, ...]
    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, caption: str) -> "Words":
        """Return the words and punctuation marks of a caption, of no kind."""
        found = list(_WORD.finditer(caption.strip()))
        ends = [one.start() for one in found[1:]] + [found[-1].end()] if found else []
        spaces = [caption.strip()[one.end() : end] for one, end in zip(found, ends, strict=True)]
        return cls(tuple(one.group() for one in found), tuple(spaces))

    def text(self, span: Span) -> str:
        """Return the words of a span as they stand there."""
        inside = zip(self.words[span.start : span.stop], self.spaces[span.start :], strict=False)
        return "".join(word + space for word, space in inside).rstrip()

    def changed(self, changes: Mapping[Span, str]) -> str:
        """Return the caption with other words in place of some spans; "a" and "an" follow them."""
        starts = {span.start: (span, text) for span, text in changes.items()}
        place, said = 0, ""
        while place < len(self.words):
            if place in starts:
                span, text = starts[place]
                said = with_article(said, text) + text + self.spaces[span.stop - 1]
                place = span.stop
            else:
                said += self.words[place] + self.spaces[place]
                place += 1
        return said


def meaning_key(caption: str) -> str:
    """Return what captions share that surely say the same, whatever else they do.

    Case, white space and articles make no difference, nor does the order of single words with "and"
    between: "a black and white dog" is "the white and black dog".
    """
    words = [word.casefold() for word in Words.of(caption).words]
    words = [word for word in words if word not in ARTICLES]
    start = 0
    while start < len(words):
        stop = start + 1
        while stop + 1 < len(words) and words[stop] in COORDINATORS:
            stop += 2
        words[start:stop:2] = sorted(words[start:stop:2])
        start = stop
    return "".join(words)


@lru_cache(maxsize=KEPT)
def parsed_words(pipeline: str, caption: str, *, with_phrases: bool) -> Words:
    """Return the words of a caption, with what spaCy says of them.

    One caption at a time: in batches, sums of floats differ in their last bits, and what a caption
    becomes must not depend on its neighbours.

    Args:
        pipeline: An installed spaCy pipeline.
        caption: Of any length.
        with_phrases: Also find noun phrases and what adjectives say something of: twice the time.

    Raises:
        UserError: spaCy or the pipeline is not installed.
    """
    doc = load(pipeline)(" ".join(caption.split()), disable=() if with_phrases else ("parser",))
    spans = list(_spans(doc))
    if with_phrases:
        spans += [Span(phrase.start, phrase.end, NOUN_PHRASE) for phrase in doc.noun_chunks]
    return Words(
        tuple(token.text for token in doc), tuple(token.whitespace_ for token in doc), tuple(spans)
    )


def with_article(said: str, text: str) -> str:
    """Return what stands before a text with the article that the text takes."""
    match = re.search(r"(?<!\w)(an?)(\s+)$", said, re.IGNORECASE)
    if not match:
        return said
    article = match[1][0] + ("n" if _VOWEL.match(text) else "")
    return said[: match.start()] + article + match[2]


def _spans(doc: Any) -> Iterator[Span]:
    for token in doc:
        kind = KINDS.get(token.pos_)
        if kind:
            noun = attribute_of(token)
            yield Span(token.i, token.i + 1, kind, None if noun is None else noun.i)
