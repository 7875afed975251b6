"""Pairs whose picture fits its caption only by the text that it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.ocr import reader_identity, without_texts
from data_pipelines.curation.rules import BoundedFilter, Cost


@dataclass(frozen=True, kw_only=True)
class MaskedClipScore(BoundedFilter):
    """Cosine of the features of the caption and of the picture without its text, in [-1, 1].

    T-MARS (Maini et al. 2023): text is masked before the picture is scored, so that pictures of
    their own caption fall. They keep the better half, ``top=0.5``. A line of text is filled with
    the mean colour of the pixels about it. Pictures without text score as by ``clip_score``.
    """

    cost: ClassVar[Cost] = Cost.READING
    needs_picture: ClassVar[bool] = True
    model: str
    """What `vlp eval` takes: a run, a checkpoint folder, or a model that open_clip knows."""

    def identity(self) -> str:
        """Return the version of the reader and the hash of the model."""
        from data_pipelines.curation.features import model_hash

        return f"{reader_identity()} {model_hash(self.model)}"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the cosine of each pair."""
        from data_pipelines.curation.features import picture_features, text_features

        text = text_features(self.model, candidates)  # fails first where a caption is missing
        image = picture_features(self.model, [without_texts(one) for one in candidates])
        return (image * text).sum(axis=1).tolist()  # [candidates]
