"""Image-text retrieval, both ways, n:m: an image may have several captions and a caption images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.encoded import EncodedSet
from eval.features import Encode
from eval.metrics import (
    best_match_ranks,
    chance_recall_at_1,
    mean_reciprocal_rank,
    median_rank,
    recall_at_k,
    roc_auc,
    similarities_of_pairs_and_others,
)
from eval.result import Histogram, Part, PerImage, Pictures, Result, mean_of, named, per_image
from vlp.errors import UserError

WAYS = ("image_to_text", "text_to_image")
SHOWN = 24
"""Misses in the report."""
DRAWN = 50_000
"""Similarities in the report's histogram, of each kind."""


class Texts(NamedTuple):
    """The different captions of a set, and which image each belongs to."""

    captions: list[str]
    features: Float[Tensor, "texts dim"]
    matches: Int64[Tensor, "matches 2"]
    """(image, text) for each pair that matches."""


class Ranks(NamedTuple):
    """Where each query finds its best match."""

    ranks: Int64[Tensor, "queries"]
    """From 1; 0 for a query without a match."""
    num_items: int


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Find the caption of an image among all captions, and an image of a caption among all images.

    Equal captions (case and white space aside) are one text with several images, so a model is
    not asked to tell them apart. Recall at k is the share of queries with at least one match among
    the first k, in [0, 1], higher is better; ties count against it. ``chance@1`` is what a random
    order gets, ``mrr`` the mean of 1 / rank, ``auc`` how likely a match is more similar than a pair
    that is none, and ``rsum`` the sum of all recalls both ways in percent, as papers print it.
    """

    k: int | Sequence[int] = (1, 5, 10)
    """Depth of recall, or several; one that exceeds the number of items is left out."""
    lines: bool | None = None
    """Whether each line of a text is a caption of its own; None: where the dataset says so, as
    CLIP_benchmark's layout of COCO and Flickr30k does by ``dataset_type.txt``."""
    fold: int | None = None
    """Images in a fold: recalls within folds, averaged, are given as well. 1000 is COCO's 1k test,
    the five folds of its 5,000 images in their order (Karpathy and Fei-Fei 2015)."""
    name: str = "retrieval"
    """What the figures' names start with."""

    def __post_init__(self) -> None:
        depths = self._depths if isinstance(self.k, int | tuple | list) else ()
        if not depths or not all(type(k) is int and k > 0 for k in depths):
            raise UserError(
                f"retrieval takes k as whole numbers from 1, got k={self.k!r}. Write k=(1, 5, 10)."
            )
        if self.fold is not None and self.fold < 2:
            raise UserError(f"retrieval takes folds of at least 2 images, got fold={self.fold}.")

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return recalls, ranks and chance of both directions, and what both come to."""
        texts = self.texts(encode, encoded)
        image, num_images = encoded.image, len(encoded.image)
        true, false = similarities_of_pairs_and_others(image, texts.features, texts.matches)
        both = ranks_both_ways(image, texts.features, texts.matches)
        figures, means = {}, {}
        for way, found in both.items():
            figures |= {f"{way}/{name}": value for name, value in self._recalls(found).items()}
            figures[f"{way}/mrr"] = mean_reciprocal_rank(found.ranks)
            figures[f"{way}/median_rank"] = median_rank(found.ranks)
            matches = texts.matches if way == WAYS[0] else texts.matches.flip(1)
            figures[f"{way}/chance@1"] = chance_recall_at_1(matches, found.num_items)
            for name, values in self._per_query(found).items():
                means[f"{way}/{name}"] = over_images(values, way, texts.matches, num_images)
        figures |= self._sums(figures)
        if len(false):  # none where all captions are equal
            figures["auc"] = roc_auc(true, false)
        figures |= {"images": float(num_images), "texts": float(len(texts.captions))}
        figures |= self._folds(image, texts)

        def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
            """Return the figures that are no means, if the set's queries were of these images."""
            again = {name: mean_of(PerImage(*(of[drawn] for of in means[name]))) for name in means}
            ranks = both[WAYS[0]].ranks[drawn]
            median = median_rank(ranks) if ranks.any() else torch.nan
            return self._sums(again) | {f"{WAYS[0]}/median_rank": median}

        parts = (_histogram(true, false), _misses(image, texts, both[WAYS[0]].ranks))
        return named(self.name, Result(figures, means, resample, parts))

    def texts(self, encode: Encode, encoded: EncodedSet) -> Texts:
        """Return each different caption once; only captions that are lines are encoded here.

        Raises:
            UserError: No sample has a caption.
        """
        lines = encoded.dataset.has_lines if self.lines is None else self.lines
        captions, first_rows, matches = _distinct(encoded, lines)
        if not captions:
            raise UserError("retrieval needs captions, and no sample has one. Give another task.")
        has_other = lines or encoded.dataset.has_lines
        features = encode.texts(captions) if has_other else encoded.text[first_rows]
        return Texts(captions, features, torch.tensor(matches))

    @property
    def _depths(self) -> Sequence[int]:
        return (self.k,) if isinstance(self.k, int) else self.k

    def _recalls(self, found: Ranks) -> dict[str, float]:
        depths = [k for k in self._depths if k <= found.num_items]
        return {f"recall@{k}": recall_at_k(found.ranks, k) for k in depths}

    def _per_query(self, found: Ranks) -> dict[str, Tensor]:
        """Return for each query what its means are of."""
        depths = [k for k in self._depths if k <= found.num_items]
        hits = {f"recall@{k}": (found.ranks <= k).double() for k in depths}
        return hits | {"mrr": found.ranks.double().reciprocal()}

    def _sums(self, figures: dict[str, float]) -> dict[str, float]:
        recalls = [value for name, value in figures.items() if "/recall@" in name]
        found = {"rsum": 100 * sum(recalls)}
        if 1 in self._depths:
            found["mean_recall@1"] = sum(figures[f"{way}/recall@1"] for way in WAYS) / 2
        return found

    def _folds(self, image: Tensor, texts: Texts) -> dict[str, float]:
        """Return the recalls within consecutive folds, averaged over the folds."""
        if self.fold is None:
            return {}
        count = len(image) // self.fold
        if not count:
            raise UserError(
                f"retrieval has {len(image)} images, fewer than fold={self.fold}. Leave fold= out."
            )
        found: dict[str, float] = {}
        for start in range(0, count * self.fold, self.fold):
            inside = (texts.matches[:, 0] >= start) & (texts.matches[:, 0] < start + self.fold)
            own, place = texts.matches[inside, 1].unique(return_inverse=True)
            matches = torch.stack([texts.matches[inside, 0] - start, place], 1)
            part = image[start : start + self.fold]
            for way, ranks in ranks_both_ways(part, texts.features[own], matches).items():
                for name, value in self._recalls(ranks).items():
                    key = f"fold_{self.fold}/{way}/{name}"
                    found[key] = found.get(key, 0.0) + value / count
        return found


def ranks_both_ways(image: Tensor, text: Tensor, matches: Tensor) -> dict[str, Ranks]:
    """Return the ranks by way; ``matches`` are (image, text)."""
    return {
        WAYS[0]: Ranks(best_match_ranks(image, text, matches), len(text)),
        WAYS[1]: Ranks(best_match_ranks(text, image, matches.flip(1)), len(image)),
    }


def over_images(values: Tensor, way: str, matches: Tensor, num_images: int) -> PerImage:
    """Return a mean over queries as one over images, a text counting for all its images."""
    matches = matches.unique(dim=0)
    if way == WAYS[0]:
        rows = matches[:, 0].unique()  # images without a caption are no queries
        return per_image(values[rows], rows, num_images=num_images)
    image, text = matches.T
    share = 1 / torch.bincount(text).double()[text]  # [matches]
    weights = torch.bincount(image, weights=share, minlength=num_images)
    sums = torch.bincount(image, weights=share * values[text], minlength=num_images)
    return PerImage(sums / weights.where(weights > 0, 1), weights)


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


def _histogram(true: Tensor, false: Tensor) -> Part:
    some = {
        name: of[:: max(1, len(of) // DRAWN)]
        for name, of in (("of a match", true), ("of other pairs", false))
        if len(of)
    }
    return Histogram("similarities", "Similarities", some, "cosine")


def _misses(image: Tensor, texts: Texts, ranks: Tensor) -> Part:
    """Return the images whose captions come last, and the captions that came first."""
    rows = [row for row in ranks.argsort(descending=True)[:SHOWN].tolist() if ranks[row] > 1]
    first = (image[rows] @ texts.features.T).argmax(1).tolist()
    captions = [
        f"{texts.captions[found]} (its own at {ranks[row]})"
        for row, found in zip(rows, first, strict=True)
    ]
    return Pictures("misses", "Images that are furthest from their captions", rows, captions)
