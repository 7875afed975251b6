"""Retrieval with the captions of many languages, and how evenly a model serves them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipelines.captions import caption_key
from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval.evaluators.retrieval import WAYS, ranks_both_ways
from eval.features import Encode
from eval.metrics import chance_recall_at_1
from eval.ranking import Pairs
from eval.result import Bars, Result, mean_of, named, per_image, places_of
from vlp.console import say
from vlp.errors import UserError
from vlp.types import Sample


@dataclass(frozen=True, kw_only=True)
class Multilingual:
    """Find images by captions of each language, and captions by images.

    All languages are asked about the same images, those that have a caption in each: their figures
    can be compared. For each direction ``recall@1`` (and 5 and 10) of each language, its mean,
    least and standard deviation over languages, and how much the rank of one image's caption
    depends on the language: ``mean_rank_variance`` (Nie et al. 2024; arXiv 2406.18254)
    and ``mean_rank_deviation``, which their code averages in its place. Lower is better for these.
    """

    field: str = "captions"
    """The field of a sample's metadata that holds ``{language: caption}``."""
    languages: Sequence[str] | None = None
    """Which languages; None for all that any sample has."""
    name: str = "multilingual"
    """What the figures' names start with."""

    def check(self, dataset: Dataset) -> None:
        """Look for captions by language, before the dataset is encoded."""
        self._rows(some_samples(dataset))

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return recall by language, and how much it varies."""
        languages, rows = self._rows(encoded.samples)
        left_out = len(encoded.samples) - len(rows)
        if left_out:
            say(f"{self.name}: left out {left_out} samples without all {len(languages)} languages.")
        image = encoded.image[rows]
        ranks: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        figures: dict[str, float] = {}
        means: dict[str, Tensor] = {}
        for language in languages:
            said = [encoded.samples[row].metadata[self.field][language] for row in rows]
            captions, place = _distinct(said)
            matches = torch.stack([torch.arange(len(rows)), place], 1)
            pairs = Pairs(image, encode.texts(captions), matches)
            for way, of_queries in ranks_both_ways(pairs).items():
                # Of each image: what it finds, or what its caption finds.
                is_first_way = way == WAYS[0]
                by_image = of_queries if is_first_way else of_queries[place]
                ranks[way].append(by_image)
                num_items = len(captions) if is_first_way else len(rows)
                for k in (1, 5, 10):
                    if k <= num_items:
                        means[f"{way}/{language}/recall@{k}"] = (by_image <= k).double()
                given = matches if is_first_way else matches.flip(1)
                figures[f"{way}/{language}/chance@1"] = chance_recall_at_1(given, num_items)
        by_way = {way: torch.stack(of) for way, of in ranks.items()}  # [languages, images]
        for way, of in by_way.items():
            means |= {f"{way}/{name}": values for name, values in _of_images(of).items()}
        count, place = len(encoded.samples), torch.tensor(rows)
        per = {name: per_image(of, place, num_images=count) for name, of in means.items()}

        def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
            """Return what is no mean over images, if the set were these of its images."""
            images = places_of(drawn, place, count)
            return {
                f"{way}/{name}": value
                for way, of in by_way.items()
                for name, value in _over_languages(of[:, images]).items()
            }

        figures = {name: mean_of(of) for name, of in per.items()} | figures
        figures |= resample(torch.arange(count))
        figures |= {"languages": float(len(languages)), "images": float(len(rows))}
        ranges = {"*/mean_rank_*": (0.0, inf)}
        parts = _bars(figures, languages)
        return named(self.name, Result(figures, per, resample, parts, ranges=ranges))

    def _rows(self, samples: Sequence[Sample]) -> tuple[list[str], list[int]]:
        """Return the languages, and the samples that have a caption in each.

        Raises:
            UserError: There are fewer than two languages, or no sample has all of them.
        """
        count: Counter[str] = Counter()
        for sample in samples:
            count.update(_languages(sample, self.field))
        languages = sorted(count) if self.languages is None else list(self.languages)
        unknown = [language for language in languages if language not in count]
        if unknown or len(languages) < 2:
            has = ", ".join(f"{name} {number}" for name, number in count.most_common()) or "none"
            what = f"no caption in {unknown[0]!r}" if unknown else "fewer than two languages"
            raise UserError(
                f"multilingual found {what} in the field {self.field!r}; captions by language: "
                f"{has}. Write multilingual(field=..., languages=...)."
            )
        wanted = set(languages)
        rows = [i for i, sample in enumerate(samples) if wanted <= _languages(sample, self.field)]
        if not rows:
            raise UserError(
                f"No sample has a caption in all of {', '.join(languages)}. "
                f"Give fewer as languages=."
            )
        return languages, rows


def _languages(sample: Sample, field: str) -> set[str]:
    captions = sample.metadata.get(field)
    if not isinstance(captions, dict):
        return set()
    return {key for key, text in captions.items() if isinstance(text, str) and text.strip()}


def _distinct(captions: Sequence[str]) -> tuple[list[str], Int64[Tensor, "captions"]]:
    """Return each different caption once, and the place of each caption's own."""
    place: dict[str, int] = {}
    rows = [place.setdefault(caption_key(caption), len(place)) for caption in captions]
    first = {row: caption for row, caption in zip(reversed(rows), reversed(captions), strict=True)}
    return [first[row] for row in range(len(place))], torch.tensor(rows)


def _of_images(ranks: Int64[Tensor, "languages images"]) -> dict[str, Tensor]:
    """Return values of each image whose means over images are figures."""
    return {
        "recall@1": (ranks == 1).double().mean(0),
        "mean_rank_variance": ranks.double().var(0, unbiased=False),
        "mean_rank_deviation": ranks.double().std(0, unbiased=False),
    }


def _over_languages(ranks: Int64[Tensor, "languages images"]) -> dict[str, float]:
    """Return how unlike the languages' recalls are."""
    if not ranks.shape[1]:
        return {}
    recall = (ranks == 1).double().mean(1)  # [languages]
    return {
        "recall@1_least": recall.min().item(),
        "recall@1_deviation": recall.std(unbiased=False).item(),
    }


def _bars(figures: dict[str, float], languages: Sequence[str]) -> tuple[Bars, ...]:
    return tuple(
        Bars(
            way,
            f"Recall at 1, {way.replace('_', ' ')}",
            {language: figures[f"{way}/{language}/recall@1"] for language in languages},
        )
        for way in WAYS
    )
