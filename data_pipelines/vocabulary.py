"""Closed vocabularies: classes of words that exclude each other, such as colours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.curation.files import read_once
from data_pipelines.plan import hash63
from data_pipelines.tagged_words import NOUN_PHRASE, Span, Words
from vlp.errors import UserError, nearest

ENGLISH = Path(__file__).parent / "words" / "english.json"
"""Everyday words for what pictures show, by class."""
FORM = """{"colour": ["red", "blue"], "side": [["left of", "to the left of"], "right of"]}"""
RELATION = "relation"
Given = dict[str, Any] | str
"""A vocabulary as it is named: its classes, a JSON file of them, or ``english``."""


class Entry(NamedTuple):
    """Words of one meaning; they may consist of several words each."""

    wordings: tuple[str, ...]
    weight: float = 1.0
    """How often it is drawn, beside others of its class."""


@dataclass(frozen=True)
class Vocabulary:
    """Classes of entries by name; a name may have parts, as ``attribute/colour``.

    Two entries of a class cannot be true of the same thing; wordings of one entry mean the same.
    """

    classes: Mapping[str, tuple[Entry, ...]]

    def identity(self) -> str:
        """Return what two vocabularies of the same words share."""
        return f"{hash63(repr(self.classes)):016x}"

    def kinds(self, name: str | None) -> frozenset[str]:
        """Return the classes that a name, or the first or last part of theirs, is of; None: all.

        Raises:
            UserError: There is none.
        """
        found = frozenset(
            kind for kind in self.classes if name is None or name in (kind, *_ends(kind))
        )
        if not found:
            known = {part for kind in self.classes for part in _ends(kind)}
            raise UserError(f"The vocabulary has no class {name!r}. {nearest(str(name), known)}")
        return found

    def tagged(self, caption: str) -> Words:
        """Return the words of a caption, with the class of those that are of the vocabulary.

        Of several words that stand together the longest entry counts. Entries in a row are noun
        phrases besides, as "small red circle": those of a class ``relation`` stand between two.
        """
        words = Words.of(caption)
        spans, place = [], 0
        while place < len(words.words):
            span = self._longest(words.words, place)
            spans += [span] if span else []
            place = span.stop if span else place + 1
        return Words(words.words, words.spaces, (*spans, *_phrases(spans)))

    def entry(self, text: str) -> tuple[str, int] | None:
        """Return the class of a text and its entry's number in it; None where it is in no class."""
        return self._places.get(_key(Words.of(text).words))

    def draw(self, kind: str, rng: np.random.Generator) -> tuple[int, str]:
        """Return an entry of a class, drawn by weight, as its number and one of its wordings."""
        sums = self._sums[kind]
        number = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
        wordings = self.classes[kind][number].wordings
        return number, wordings[int(rng.integers(len(wordings)))]

    def _longest(self, words: Sequence[str], start: int) -> Span | None:
        for stop in range(min(start + self._most_words, len(words)), start, -1):
            found = self._places.get(_key(words[start:stop]))
            if found:
                return Span(start, stop, found[0])
        return None

    @cached_property
    def _places(self) -> dict[tuple[str, ...], tuple[str, int]]:
        places: dict[tuple[str, ...], tuple[str, int]] = {}
        for kind, entries in self.classes.items():
            for number, entry in enumerate(entries):
                for wording in entry.wordings:
                    places.setdefault(_key(Words.of(wording).words), (kind, number))
        return places

    @cached_property
    def _most_words(self) -> int:
        return max(map(len, self._places), default=0)

    @cached_property
    def _sums(self) -> dict[str, np.ndarray]:
        return {
            kind: np.cumsum([entry.weight for entry in entries])
            for kind, entries in self.classes.items()
        }


def is_kind(kind: str, name: str) -> bool:
    """Return whether a kind has this name, or one that begins with it and a slash."""
    return kind == name or kind.startswith(f"{name}/")


def _ends(kind: str) -> tuple[str, str]:
    """Return the first and the last part of a class's name."""
    return kind.partition("/")[0], kind.rpartition("/")[2]


def open_vocabulary(given: Given) -> Vocabulary:
    """Return a vocabulary.

    Args:
        given: Its classes, each a list of words, in which a list holds words of one meaning, or
            ``{word: how often it is drawn}``; a JSON file of that; ``english``: everyday words.

    Raises:
        UserError: The file cannot be read, or it is of another form.
    """
    return _parsed(given, "The vocabulary") if isinstance(given, dict) else _read(given)


@read_once
def _read(path: str) -> Vocabulary:
    file = ENGLISH if path == ENGLISH.stem else Path(path)
    try:
        return _parsed(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"Cannot read the vocabulary {file}: {why}.") from None
    except ValueError as error:
        raise UserError(f"The vocabulary {file} is no JSON: {error}. Write {FORM}.") from None


def _parsed(classes: Any, what: str) -> Vocabulary:
    if not isinstance(classes, dict) or not classes:
        raise UserError(f"{what} holds no classes of words. Write {FORM}.")
    return Vocabulary({str(kind): _entries(of, kind, what) for kind, of in classes.items()})


def _entries(of: Any, kind: str, what: str) -> tuple[Entry, ...]:
    weights = of if isinstance(of, dict) else {}
    found = []
    for value in of if isinstance(of, dict | list | tuple) else ():
        wordings = tuple(value) if isinstance(value, list | tuple) else (value,)
        weight = weights.get(value, 1.0) if weights else 1.0
        is_weight = isinstance(weight, int | float) and 0 < weight < float("inf")
        if not is_weight or not all(isinstance(w, str) and w.strip() for w in wordings):
            raise UserError(f"{what} has {value!r:.40} in the class {kind!r}. Write {FORM}.")
        found.append(Entry(wordings, float(weight)))
    if len(found) < 2:
        raise UserError(f"{what} has fewer than two words in the class {kind!r}. Write {FORM}.")
    return tuple(found)


def _phrases(spans: Sequence[Span]) -> list[Span]:
    """Return runs of spans that follow each other without another word between.

    Their kind tells the class of the last, so that two can be told to be of a kind.
    """
    spans = [span for span in spans if not is_kind(span.kind, RELATION)]
    found, first = [], 0
    for place, span in enumerate(spans):
        is_last = place + 1 == len(spans) or spans[place + 1].start != span.stop
        if is_last:
            found.append(Span(spans[first].start, span.stop, f"{NOUN_PHRASE}/{span.kind}"))
            first = place + 1
    return found


def _key(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.casefold() for word in words)
