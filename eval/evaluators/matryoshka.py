"""How much of a model is left when its features are cut to their first coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from eval.evaluators.retrieval import WAYS, Retrieval, Texts, over_images, ranks_both_ways
from eval.evaluators.zero_shot import Labelled, ZeroShot
from eval.features import Encode
from eval.metrics import class_ranks
from eval.prefixes import area_by_octave, funnel_search, prefix, prefix_lengths, shortest_enough
from eval.ranking import Pairs
from eval.result import Curve, PerImage, Result, mean_of, named, per_image
from vlp import spec
from vlp.errors import UserError

KEPT = 200
"""Items that a funnel's first stage keeps; each later one keeps half, down to ``KEPT_LAST``."""
KEPT_LAST = 10


@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """Ask a task of prefixes of the features, renormalised (Kusupati et al. 2022).

    For each length, ``recall@1`` both ways of a ``retrieval`` and ``acc@1`` of a ``zero_shot``,
    whose classifier is cut after its templates' mean was taken. For each figure, its ``area`` over
    log2 of the length, and the ``shortest`` prefix with 99 % of the whole's. ``funnel`` searches
    images by text with the shortest prefix first and ranks what it keeps again by longer ones;
    ``agreement`` is how often it finds the same image first as an exact search, ``cost`` its
    multiplications as a share of that one's.
    """

    tasks: str | Sequence[str] = ("retrieval",)
    """``retrieval``, ``"zero_shot(classes='classes.json')"``, or both, written as if alone."""
    lengths: Sequence[int] | None = None
    """Prefix lengths; None for 8, 16, 32, ... The whole length is always among them."""
    name: str = "matryoshka"
    """What the figures' names start with."""

    def __post_init__(self) -> None:
        if self.lengths is not None and not all(type(m) is int and m > 0 for m in self.lengths):
            raise UserError(f"matryoshka takes lengths from 1, got {self.lengths!r}.")
        if not self._tasks:
            raise UserError(
                "matryoshka has no task to ask of prefixes. Write tasks=('retrieval',)."
            )
        for task in self._tasks:
            if not isinstance(task, Retrieval | ZeroShot):
                raise UserError(
                    f"matryoshka asks retrieval and zero_shot of prefixes, not {task.name}."
                )

    def check(self, dataset: Dataset) -> None:
        """Check the tasks, before the dataset is encoded."""
        for task in self._tasks:
            getattr(task, "check", lambda _: None)(dataset)

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return the figures of each prefix, of all of them, and of the funnel."""
        lengths = self._lengths_of(encode.encoder.dim)
        means: dict[str, dict[int, PerImage]] = {}
        figures: dict[str, float] = {}
        per: dict[str, PerImage] = {}
        for task in self._tasks:
            if isinstance(task, Retrieval):
                texts = task.texts(encode, encoded)
                means |= _recalls(encoded.image, texts, lengths)
                per |= _funnel(encoded.image, texts, lengths)
                figures |= _cost(len(encoded.image), lengths)
            else:
                found = task.labelled(encode, encoded)
                means["acc@1"] = _accuracies(encoded.image, found, lengths)
        per |= {f"{m}/{name}": mean for name, of in means.items() for m, mean in of.items()}
        curves = {name: {m: mean_of(mean) for m, mean in of.items()} for name, of in means.items()}

        def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
            """Return what is made of a whole curve, if the set's queries were of these images."""
            found = {}
            for name, of in means.items():
                curve = {m: mean_of(PerImage(*(x[drawn] for x in mean))) for m, mean in of.items()}
                found[f"{name}_area"] = area_by_octave(curve)
            return found

        figures |= {name: mean_of(of) for name, of in per.items()}
        figures |= resample(torch.arange(len(encoded.image)))
        figures |= {f"{name}_shortest": float(shortest_enough(of)) for name, of in curves.items()}
        series = {name: [(float(m), v) for m, v in of.items()] for name, of in curves.items()}
        part = Curve("prefixes", "Figures of prefixes of the features", series, "prefix length")
        return named(self.name, Result(figures, per, resample, (part,)))

    @cached_property
    def _tasks(self) -> list[Any]:
        tasks = (self.tasks,) if isinstance(self.tasks, str) else self.tasks
        return [spec.build("eval.evaluators", task) for task in tasks]

    def _lengths_of(self, dim: int) -> list[int]:
        if self.lengths is None:
            return prefix_lengths(dim)
        too_long = [length for length in self.lengths if length > dim]
        if too_long:
            raise UserError(
                f"matryoshka was given the length {too_long[0]}, and features have {dim}."
            )
        return sorted({*self.lengths, dim})


def _recalls(image: Tensor, texts: Texts, lengths: Sequence[int]) -> dict[str, dict[int, PerImage]]:
    """Return recall at 1 of each way and length."""
    found: dict[str, dict[int, PerImage]] = {f"{way}/recall@1": {} for way in WAYS}
    for length in lengths:
        pairs = Pairs(prefix(image, length), prefix(texts.features, length), texts.matches)
        for way, ranks in ranks_both_ways(pairs).items():
            hits = (ranks == 1).double()
            found[f"{way}/recall@1"][length] = over_images(hits, way, pairs.matches, len(image))
    return found


def _accuracies(image: Tensor, found: Labelled, lengths: Sequence[int]) -> dict[int, PerImage]:
    """Return the accuracy of each length."""
    accuracies = {}
    for length in lengths:
        cut = prefix(image[found.rows], length), prefix(found.weights, length)
        right = class_ranks(*cut, found.labels) == 1
        accuracies[length] = per_image(right, found.rows, num_images=len(image))
    return accuracies


def _funnel(image: Tensor, texts: Texts, lengths: Sequence[int]) -> dict[str, PerImage]:
    """Return how a funnel finds the images of captions."""
    if len(lengths) < 2:
        return {}
    stages = list(zip(lengths, _kept(len(image), len(lengths)), strict=True))
    kept = funnel_search(texts.features, image, stages)
    exact = funnel_search(texts.features, image, [(lengths[-1], 1)])
    text = torch.arange(len(kept))[:, None]
    code = texts.matches[:, 1] * len(image) + texts.matches[:, 0]
    is_match = torch.isin(text * len(image) + kept, code)  # [texts, kept]
    found = {f"{WAYS[1]}/recall@{k}": is_match[:, :k].any(1) for k in (1, KEPT_LAST)}
    found["agreement"] = kept[:, 0] == exact[:, 0]
    matches = texts.matches.unique(dim=0)
    return {
        f"funnel/{name}": over_images(hits.double(), WAYS[1], matches, len(image))
        for name, hits in found.items()
    }


def _cost(num_images: int, lengths: Sequence[int]) -> dict[str, float]:
    """Return the multiplications of a funnel as a share of those of an exact search."""
    if len(lengths) < 2:
        return {}
    counts = _kept(num_images, len(lengths))
    work = num_images * lengths[0]
    work += sum(k * m for k, m in zip(counts, lengths[1:], strict=False))
    return {"funnel/cost": work / (num_images * lengths[-1])}


def _kept(num_images: int, stages: int) -> list[int]:
    """Return how many images each stage of a funnel keeps."""
    return [min(num_images, max(KEPT_LAST, KEPT >> stage)) for stage in range(stages)]
