"""Image-text retrieval, both ways, n:m: an image may have several captions and a caption images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval.features import Encode
from eval.metrics import chance_recall_at_1, weighted_median
from eval.ranking import Pairs, drawn_others, match_auc, match_ranks
from eval.result import Curve, Histogram, Part, PerImage, Pictures, Result, mean_of, named
from vlp.errors import UserError

WAYS = ("image_to_text", "text_to_image")
SHOWN = 24
"""Misses in the report."""
DRAWN = 50_000
"""Similarities in the report's histogram, of each kind."""
DEEPEST = 100
"""Depth of the report's curve."""
NO_CAPTIONS = "{name} needs captions, and no sample has one. Give another task."


class Texts(NamedTuple):
    """The different captions of a set, and which image each belongs to."""

    captions: list[str]
    features: Float[Tensor, "texts dim"]
    matches: Int64[Tensor, "matches 2"]
    """(image, text) for each pair that matches."""


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

    def check(self, dataset: Dataset) -> None:
        """Look for captions, before the dataset is encoded.

        Raises:
            UserError: None of a thousand samples has one.
        """
        if not any(caption_key(sample.text) for sample in some_samples(dataset)):
            raise UserError(NO_CAPTIONS.format(name=self.name))

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return recall, reciprocal and median ranks both ways, their chance and sums, and the AUC.

        Raises:
            UserError: No sample has a caption, or there are fewer images than in a fold.
        """
        texts = self.texts(encode, encoded)
        image, num_images = encoded.image, len(encoded.image)
        pairs = Pairs(image, texts.features, texts.matches)
        both = ranks_both_ways(pairs)
        figures, means = {}, {}
        for way, ranks in both.items():
            matches = pairs.matches if way == WAYS[0] else pairs.matches.flip(1)
            figures[f"{way}/chance@1"] = chance_recall_at_1(matches, len(both[other(way)]))
            for name, values in self._per_query(ranks, len(both[other(way)])).items():
                means[f"{way}/{name}"] = over_images(values, way, pairs.matches, num_images)
        means |= self._folds(image, texts)
        has_others = len(pairs.matches) < num_images * len(texts.captions)
        if has_others:  # not where all captions are equal
            auc = match_auc(pairs)
            means["auc"] = auc.per_image(torch.arange(num_images), num_images=num_images)
        figures = {name: mean_of(of) for name, of in means.items()} | figures
        figures |= {"images": float(num_images), "texts": float(len(texts.captions))}
        medians = {
            f"{way}/median_rank": _median(ranks, way, pairs.matches) for way, ranks in both.items()
        }

        def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
            """Return the figures that are no means, if the set's queries were of these images."""
            again = {name: mean_of(PerImage(*(of[drawn] for of in means[name]))) for name in means}
            counts = torch.bincount(drawn, minlength=num_images).double()
            return self._sums(again) | {name: of(counts) for name, of in medians.items()}

        figures |= resample(torch.arange(num_images))
        parts = (_histogram(pairs), _by_depth(both), _misses(image, texts, both[WAYS[0]]))
        ranges = {"*/median_rank": (1.0, inf), "rsum": (0.0, 200.0 * len(self._depths))}
        return named(self.name, Result(figures, means, resample, parts, ranges=ranges))

    def texts(self, encode: Encode, encoded: EncodedSet) -> Texts:
        """Return each different caption once; only captions that are lines are encoded here.

        Raises:
            UserError: No sample has a caption.
        """
        lines = encoded.dataset.has_lines if self.lines is None else self.lines
        captions, first_rows, matches = _distinct(encoded, lines)
        if not captions:
            raise UserError(NO_CAPTIONS.format(name=self.name))
        has_other = lines or encoded.dataset.has_lines
        features = encode.texts(captions) if has_other else encoded.text[first_rows]
        return Texts(captions, features, torch.tensor(matches))

    @property
    def _depths(self) -> Sequence[int]:
        return (self.k,) if isinstance(self.k, int) else self.k

    def _per_query(self, ranks: Tensor, num_items: int) -> dict[str, Tensor]:
        """Return for each query what its means are of."""
        hits = {f"recall@{k}": (ranks <= k).double() for k in self._depths if k <= num_items}
        return hits | {"mrr": ranks.double().reciprocal()}

    def _sums(self, figures: dict[str, float]) -> dict[str, float]:
        recalls = {f"{way}/recall@{k}" for way in WAYS for k in self._depths} & figures.keys()
        found = {"rsum": 100 * sum(figures[name] for name in sorted(recalls))}
        if 1 in self._depths:
            found["mean_recall@1"] = sum(figures[f"{way}/recall@1"] for way in WAYS) / 2
        return found

    def _folds(self, image: Tensor, texts: Texts) -> dict[str, PerImage]:
        """Return the recalls within consecutive folds; every fold weighs the same."""
        if self.fold is None:
            return {}
        count = len(image) // self.fold
        if not count:
            raise UserError(
                f"retrieval has {len(image)} images, fewer than fold={self.fold}. Leave fold= out."
            )
        parts: dict[str, list[PerImage]] = {}
        for start in range(0, count * self.fold, self.fold):
            inside = (texts.matches[:, 0] >= start) & (texts.matches[:, 0] < start + self.fold)
            own, place = texts.matches[inside, 1].unique(return_inverse=True)
            matches = torch.stack([texts.matches[inside, 0] - start, place], 1)
            pairs = Pairs(image[start : start + self.fold], texts.features[own], matches)
            both = ranks_both_ways(pairs)
            for way, ranks in both.items():
                for name, hits in self._per_query(ranks, len(both[other(way)])).items():
                    mean = over_images(hits, way, pairs.matches, self.fold)
                    share = mean.weights / mean.weights.sum()
                    key = f"fold_{self.fold}/{way}/{name}"
                    parts.setdefault(key, []).append(PerImage(mean.values, share))
        rest = torch.zeros(2, len(image) - count * self.fold, dtype=torch.float64)
        return {
            name: PerImage(*(torch.cat(of) for of in zip(*folds, rest, strict=True)))
            for name, folds in parts.items()
            if len(folds) == count and "recall" in name
        }


def ranks_both_ways(pairs: Pairs) -> dict[str, Int64[Tensor, "queries"]]:
    """Return the ranks by way; the pairs are of images and texts."""
    return dict(zip(WAYS, match_ranks(pairs), strict=True))


def other(way: str) -> str:
    """Return the other way."""
    return WAYS[1 - WAYS.index(way)]


def over_images(values: Tensor, way: str, matches: Tensor, num_images: int) -> PerImage:
    """Return a mean over queries as one over images, a text counting for all its images."""
    values, image, share = _by_image(values, way, matches)
    weights = torch.bincount(image, weights=share, minlength=num_images)
    sums = torch.bincount(image, weights=share * values, minlength=num_images)
    return PerImage(sums / weights.where(weights > 0, 1), weights)


def _by_image(values: Tensor, way: str, matches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values of queries, the image that each belongs to, and its share in the query."""
    if way == WAYS[0]:
        rows = matches[:, 0].unique()  # images without a caption are no queries
        return values[rows], rows, torch.ones(len(rows), dtype=torch.float64)
    image, text = matches.T
    return values[text], image, 1 / torch.bincount(text).double()[text]


def _median(ranks: Tensor, way: str, matches: Tensor) -> Callable[[Tensor], float]:
    """Return the median rank by how often each image is there."""
    values, image, share = _by_image(ranks, way, matches)
    order = values.argsort()
    values, image, share = values[order], image[order], share[order]
    return lambda counts: weighted_median(values, counts[image] * share)


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


def _histogram(pairs: Pairs) -> Part:
    some = {"of a match": pairs.own[:: max(1, len(pairs.own) // DRAWN)]}
    each = -(-DRAWN // len(pairs.queries))
    others = [similarity[:, 0] for _, similarity, _ in drawn_others(pairs, each)]
    some |= {"of other pairs": torch.cat(others)} if sum(map(len, others)) else {}
    return Histogram("similarities", "Similarities", some, "cosine")


def _by_depth(both: dict[str, Tensor]) -> Part:
    """Return the recall at every depth up to a hundred."""
    series = {}
    for way, ranks in both.items():
        depth = min(DEEPEST, len(both[other(way)]))
        hits = torch.bincount(ranks.clamp(max=depth + 1), minlength=depth + 2)[1 : depth + 1]
        shares = hits.cumsum(0) / (ranks > 0).sum()
        series[way.replace("_", " ")] = list(enumerate(shares.tolist(), 1))
    return Curve("depth", "Recall by depth", series, "items looked at")


def _misses(image: Tensor, texts: Texts, ranks: Tensor) -> Part:
    """Return the images whose captions come last, and the captions that came first."""
    rows = [row for row in ranks.argsort(descending=True)[:SHOWN].tolist() if ranks[row] > 1]
    first = (image[rows] @ texts.features.T).argmax(1).tolist()
    captions = [
        f"{texts.captions[found]} (its own at {ranks[row]})"
        for row, found in zip(rows, first, strict=True)
    ]
    return Pictures("misses", "Images that are furthest from their captions", rows, captions)
