"""Captions that an evaluation set holds, too."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.evaluation_sets import caption_windows, set_identity, windows
from data_pipelines.curation.rules import BoundedFilter
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluationCaption(BoundedFilter):
    """Number of runs of 8 words of the caption that a caption of the evaluation set has, too.

    None may. 8 words are what PaLM was checked by (Chowdhery et al. 2022, section 8); GPT-3 by 13
    (Brown et al. 2020, appendix C), which few captions have. Shorter captions share no such run, so
    names of classes are not looked for. Case and white space make no difference.
    """

    max: float | None = 0
    against: str
    """Evaluation shards."""
    words: int = 8
    """Words of a run."""

    def __post_init__(self) -> None:
        BoundedFilter.__post_init__(self)
        if self.words < 1:
            raise UserError(f"words={self.words} is no run. Give 1 or more.")

    def identity(self) -> str:
        """Return what tells the evaluation shards from others."""
        return set_identity(self.against)

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of runs of each caption that the evaluation set has."""
        known = caption_windows(self.against, self.words)
        return [sum(own in known for own in windows(one.text, self.words)) for one in candidates]
