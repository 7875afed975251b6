"""Captions in which nothing happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter, Cost
from data_pipelines.curation.syntax import parsed, pipeline_identity


@dataclass(frozen=True, kw_only=True)
class CaptionAction(BoundedFilter):
    """Number of verbs of the caption; at least 1. Auxiliaries ("is", "has been") are none.

    The A of CAT (Radenovic et al. 2023, DiHT): at least one action. A verb is a word
    that spaCy calls VERB with a tag VB, VBD, VBG, VBN, VBP or VBZ.
    """

    cost: ClassVar[Cost] = Cost.MODEL
    min: float | None = 1
    pipeline: str = "en_core_web_sm"
    """An installed spaCy pipeline for the language of the captions."""

    def identity(self) -> str:
        """Return the name and the version of the pipeline."""
        return pipeline_identity(self.pipeline)

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of verbs of each caption."""
        return [
            sum(word.pos_ == "VERB" and word.tag_.startswith("VB") for word in doc)
            for doc in parsed(self.pipeline, candidates)
        ]
