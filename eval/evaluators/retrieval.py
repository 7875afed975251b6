"""Image-text retrieval, both ways, n:m: an image may have several captions and a caption images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.embed import EncodedSet
from eval.metrics import best_match_ranks, chance_recall_at_1, median_rank, recall_at_k
from vlp.encode import encode_texts
from vlp.encoder import DualEncoder
from vlp.errors import UserError


class Texts(NamedTuple):
    """The different captions of a set, and which image each belongs to."""

    features: Float[Tensor, "texts dim"]
    matches: Int64[Tensor, "matches 2"]
    """(image, text) for each pair that matches."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Find the caption of an image among all captions, and an image of a caption among all images.

    Equal captions (case and white space aside) are one text with several images, so a model is
    not asked to tell them apart. Recall at k is the share of queries with at least one match among
    the first k, in [0, 1], higher is better; ties count against it. ``chance@1`` is what a random
    order gets.
    """

    k: int | Sequence[int] = (1, 5, 10)
    """Depth of recall, or several; one that exceeds the number of items is left out."""
    lines: bool | None = None
    """Whether each line of a text is a caption of its own; None: where the dataset says so, as
    CLIP_benchmark's layout of COCO and Flickr30k does by ``dataset_type.txt``."""
    name: str = "retrieval"
    """What the figures' names start with."""

    def __post_init__(self) -> None:
        depths = self._depths if isinstance(self.k, int | tuple | list) else ()
        if not depths or not all(type(k) is int and k > 0 for k in depths):
            raise UserError(
                f"retrieval takes k as whole numbers from 1, got k={self.k!r}. Write k=(1, 5, 10)."
            )

    def __call__(self, encoder: DualEncoder, encoded: EncodedSet) -> dict[str, float]:
        """Return recall, median rank and chance for both directions, and their mean recall at 1."""
        texts = self._texts(encoder, encoded)
        to_text = self._direction(encoded.image, texts.features, texts.matches)
        to_image = self._direction(texts.features, encoded.image, texts.matches.flip(1))
        found = {f"{self.name}/image_to_text/{name}": value for name, value in to_text.items()}
        found |= {f"{self.name}/text_to_image/{name}": value for name, value in to_image.items()}
        if 1 in self._depths:
            both = (to_text["recall@1"] + to_image["recall@1"]) / 2
            found[f"{self.name}/mean_recall@1"] = both
        found[f"{self.name}/images"] = float(len(encoded.image))
        found[f"{self.name}/texts"] = float(len(texts.features))
        return found

    @property
    def _depths(self) -> Sequence[int]:
        return (self.k,) if isinstance(self.k, int) else self.k

    def _direction(self, queries: Tensor, items: Tensor, matches: Tensor) -> dict[str, float]:
        ranks = best_match_ranks(queries, items, matches)
        found = {f"recall@{k}": recall_at_k(ranks, k) for k in self._depths if k <= len(items)}
        found["median_rank"] = median_rank(ranks)
        found["chance@1"] = chance_recall_at_1(matches, len(items))
        return found

    def _texts(self, encoder: DualEncoder, encoded: EncodedSet) -> Texts:
        """Return each different caption once; only captions that are lines are encoded here."""
        lines = encoded.dataset.has_lines if self.lines is None else self.lines
        captions, first_rows, matches = _distinct(encoded, lines)
        if not captions:
            raise UserError("retrieval needs captions, and no sample has one. Give another task.")
        has_other = lines or encoded.dataset.has_lines
        features = encode_texts(encoder, captions) if has_other else encoded.text[first_rows]
        return Texts(features, torch.tensor(matches))


def _distinct(
    encoded: EncodedSet, lines: bool
) -> tuple[list[str], list[int], list[tuple[int, int]]]:
    """Return the different captions, the row where each is first seen, and (image, text) pairs."""
    place: dict[str, int] = {}
    captions, first_rows, matches = [], [], []
    for row, sample in enumerate(encoded.samples):
        for caption in sample.text.splitlines() if lines else [sample.text]:
            key = caption_key(caption)
            if not key:
                continue
            if key not in place:
                place[key] = len(captions)
                captions.append(caption.strip())
                first_rows.append(row)
            matches.append((row, place[key]))
    return captions, first_rows, matches
