"""Tells the kinds of a caption's words: by spaCy, or by a vocabulary."""

from dataclasses import dataclass

from data_pipelines.curation.syntax import load, pipeline_identity
from data_pipelines.tagged_words import KINDS, NOUN_PHRASE, Words, parsed_words
from data_pipelines.vocabulary import Given, Vocabulary, open_vocabulary
from vlp.errors import UserError, nearest


@dataclass(frozen=True)
class Tagger:
    """A vocabulary, or else an installed spaCy pipeline."""

    vocabulary: Vocabulary | None
    pipeline: str
    with_phrases: bool

    @classmethod
    def of(cls, vocabulary: Given | None, pipeline: str, *, with_phrases: bool) -> "Tagger":
        """Return the tagger of a part's options, ready to work.

        Raises:
            UserError: There is no vocabulary, and spaCy or the pipeline is not installed.
        """
        if vocabulary is not None:
            return cls(open_vocabulary(vocabulary), pipeline, with_phrases)
        try:
            load(pipeline)
        except UserError as error:
            raise UserError(
                f"{error} Or name the words that matter, for which no parser is needed: "
                f"vocabulary='english', or a JSON file."
            ) from None
        return cls(None, pipeline, with_phrases)

    def __call__(self, caption: str) -> Words:
        """Return a caption's words and their kinds."""
        if self.vocabulary:
            return self.vocabulary.tagged(caption)
        return parsed_words(self.pipeline, caption, with_phrases=self.with_phrases)

    def identity(self) -> str:
        """Return what two taggers share that say the same."""
        if self.vocabulary:
            return self.vocabulary.identity()
        return pipeline_identity(self.pipeline)

    def kinds(self, names: tuple[str, ...]) -> frozenset[str]:
        """Return the kinds of spans that names stand for; without names, all.

        Raises:
            UserError: One of them is no kind of words.
        """
        classes = self.vocabulary.classes if self.vocabulary else {*KINDS.values()}
        phrases = {NOUN_PHRASE, *(f"{NOUN_PHRASE}/{kind}" for kind in classes)}
        found = set() if names else {*classes, *phrases}
        for name in names:
            if name == NOUN_PHRASE:
                found |= phrases
            elif self.vocabulary:
                found |= self.vocabulary.kinds(name)
            elif name in classes:
                found.add(name)
            else:
                known = nearest(name, {*classes, NOUN_PHRASE})
                raise UserError(f"There are no words of the kind {name!r}. {known}")
        return frozenset(found)
