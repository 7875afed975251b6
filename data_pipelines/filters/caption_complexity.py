"""Captions that say nothing of any object but its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter, Cost
from data_pipelines.curation.syntax import complexity, parsed, pipeline_identity


@dataclass(frozen=True, kw_only=True)
class CaptionComplexity(BoundedFilter):
    """Most relations and attributes of any one object that the caption names; at least 1.

    The C of CAT (Radenovic et al. 2023, DiHT): the caption is parsed into a scene
    graph, an object is as complex as it has relations and attributes, a caption as its most complex
    object. Their parser was not published; here the graph is read from spaCy's dependencies.
    """

    cost: ClassVar[Cost] = Cost.MODEL
    min: float | None = 1
    pipeline: str = "en_core_web_sm"
    """An installed spaCy pipeline for the language of the captions."""

    def identity(self) -> str:
        """Return the name and the version of the pipeline."""
        return pipeline_identity(self.pipeline)

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the complexity of each caption."""
        return [complexity(doc) for doc in parsed(self.pipeline, candidates)]
