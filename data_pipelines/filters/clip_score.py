"""Pairs whose picture and caption do not fit each other, as a model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import BoundedFilter, Cost


@dataclass(frozen=True, kw_only=True)
class ClipScore(BoundedFilter):
    """Cosine of the features of picture and caption by a model, in [-1, 1].

    DataComp keeps ``top=0.3`` of the pool, or ``top=(0.02, 0.3)`` without the highest, which are
    often pictures of their own caption (Gadre et al. 2023, tables 25 to 28). LAION keeps
    ``min=0.28`` by OpenAI's ViT-B/32 (Schuhmann et al. 2022). With a model that was trained on few,
    clean pairs and ``top=0.15`` it is a data filtering network (Fang et al. 2023).
    """

    cost: ClassVar[Cost] = Cost.MODEL
    needs_picture: ClassVar[bool] = True
    model: str
    """What `vlp eval` takes: a run, a checkpoint folder, or a model that open_clip knows."""

    @property
    def models(self) -> tuple[str, ...]:
        """The model, which sees the pictures."""
        return (self.model,)

    def identity(self) -> str:
        """Return the hash of the model."""
        from data_pipelines.curation.features import model_hash

        return model_hash(self.model)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the cosine of each pair."""
        from data_pipelines.curation.features import image_features, text_features

        text = text_features(self.model, candidates)  # fails first where a caption is missing
        image = image_features(self.model, candidates)
        return (image * text).sum(axis=1).tolist()  # [candidates]
