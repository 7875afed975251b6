"""How much of a model is left when its features are cut to their first coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from eval.evaluators.retrieval import WAYS, Retrieval, Texts, over_images, ranks_both_ways
from eval.evaluators.zero_shot import Labelled, ZeroShot
from eval.features import Encode
from eval.metrics import class_ranks
from eval.prefixes import area_by_octave, funnel_search, prefix, prefix_lengths, shortest_enough
from eval.result import Curve, PerImage, Result, mean_of, named, per_image
from vlp import spec
from vlp.errors import UserError

KEPT = 200
"""Items that a funnel's first stage keeps; each later one keeps half, down to ``KEPT_LAST``."""
KEPT_LAST = 10


@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """Ask a task of prefixes of the features, renormalised (Kusupati et al. 2022, section 4).

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
        for task in self._tasks:
            if isinstance(task, Retrieval):
                texts = task.texts(encode, encoded)
                means |= _recalls(encoded.image, texts, lengths)
                figures |= _funnel(encoded.image, texts, lengths)
            else:
                found = task.labelled(encode, encoded)
                means["acc@1"] = _accuracies(encoded.image, found, lengths)
        per = {f"{m}/{name}": mean for name, of in means.items() for m, mean in of.items()}
        curves = {name: {m: mean_of(mean) for m, mean in of.items()} for name, of in means.items()}
        for name, curve in curves.items():
            figures |= {f"{m}/{name}": value for m, value in curve.items()}
            figures[f"{name}_area"] = area_by_octave(curve)
            figures[f"{name}_shortest"] = float(shortest_enough(curve))
        series = {name: [(float(m), v) for m, v in of.items()] for name, of in curves.items()}
        part = Curve("prefixes", "Figures of prefixes of the features", series, "prefix length")
        return named(self.name, Result(figures, per, parts=(part,)))

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
        cut = prefix(image, length), prefix(texts.features, length)
        for way, of in ranks_both_ways(*cut, texts.matches).items():
            hits = (of.ranks == 1).double()
            mean = over_images(hits, way, texts.matches, len(image))
            found[f"{way}/recall@1"][length] = mean
    return found


def _accuracies(image: Tensor, found: Labelled, lengths: Sequence[int]) -> dict[int, PerImage]:
    """Return the accuracy of each length."""
    accuracies = {}
    for length in lengths:
        cut = prefix(image[found.rows], length), prefix(found.weights, length)
        right = class_ranks(*cut, found.labels) == 1
        accuracies[length] = per_image(right, found.rows, num_images=len(image))
    return accuracies


def _funnel(image: Tensor, texts: Texts, lengths: Sequence[int]) -> dict[str, float]:
    """Return how a funnel finds the images of captions, and what it saves."""
    if len(lengths) < 2:
        return {}
    counts = [min(len(image), max(KEPT_LAST, KEPT >> stage)) for stage in range(len(lengths))]
    kept = funnel_search(texts.features, image, list(zip(lengths, counts, strict=True)))
    exact = funnel_search(texts.features, image, [(lengths[-1], 1)])
    text = torch.arange(len(kept))[:, None]
    code = texts.matches[:, 1] * len(image) + texts.matches[:, 0]
    is_match = torch.isin(text * len(image) + kept, code)  # [texts, kept]
    work = len(image) * lengths[0]
    work += sum(k * m for k, m in zip(counts, lengths[1:], strict=False))
    return {
        f"funnel/{WAYS[1]}/recall@1": is_match[:, :1].any(1).double().mean().item(),
        f"funnel/{WAYS[1]}/recall@{KEPT_LAST}": is_match[:, :KEPT_LAST]
        .any(1)
        .double()
        .mean()
        .item(),
        "funnel/agreement": (kept[:, 0] == exact[:, 0]).double().mean().item(),
        "funnel/cost": work / (len(image) * lengths[-1]),
    }
