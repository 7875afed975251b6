"""Linear classifiers on frozen features: of all training images, and of a few for each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from eval.evaluators.zero_shot import Labelled, ZeroShot
from eval.features import Encode
from eval.metrics import class_ranks, mean_per_class_recall
from eval.open_dataset import open_dataset
from eval.probe import Probe, draw_shots, fit_probe, split_off, sweep_strength
from eval.result import Curve, Result, named, per_image, places_of
from vlp.errors import UserError

MOST_TO_CHOOSE_BY = 4
"""Images of a class that few shots are chosen by: min(shots, 4), as in CoOp (Zhou et al. 2022)."""


class Part(NamedTuple):
    """Rows to learn from or to be asked about, and their classes."""

    rows: Float[Tensor, "rows dim"]
    labels: Int64[Tensor, "rows"]

    def to(self, device: torch.device) -> "Part":
        """Return it on a device, so that the probe is learnt where the encoder is."""
        return Part(self.rows.to(device), self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Learn the classes by logistic regression on features that stay as they are.

    ``acc@1``, ``acc@5`` and ``mean_per_class_recall`` are of a probe on all training images and the
    features before the projection, its ``strength`` of regularisation swept as in CLIP (Radford et
    al. 2021, appendix A.3) on a fifth of the training images, and fitted again to all.

    ``few_shot/4/acc@1`` learns from 4 images of each class and begins with the zero-shot classifier
    (Radenovic et al. 2023, DiHT, on few-shot probing): on projected features at the model's scale,
    the weights are held to the class captions by the strength, so ``few_shot/0`` is zero-shot. Mean
    and ``acc@1_deviation`` over ``seeds`` draws, each chosen on other training images. All in
    [0, 1], higher is better.
    """

    train: str | None = None
    """The dataset to learn from; None for the folder ``train`` beside the evaluated one, as
    CLIP_benchmark lays them out."""
    classes: str | Sequence[str] | None = None
    """As of ``zero_shot``, and so are the next three."""
    part: str | None = None
    label: str | None = None
    templates: str | Sequence[str] | None = None
    shots: Sequence[int] = (1, 2, 4, 8, 16)
    """Images of each class to learn from; () for the probe on all images only."""
    seeds: int = 3
    """Draws of the few shots."""
    name: str = "linear_probe"
    """What the figures' names start with."""

    needs_pooled = True

    def __post_init__(self) -> None:
        if self.seeds < 1 or not all(type(count) is int and count > 0 for count in self.shots):
            raise UserError(
                f"linear_probe takes shots and seeds from 1, got shots={self.shots!r}, "
                f"seeds={self.seeds}. Write shots=(1, 2, 4, 8, 16)."
            )
        _ = self._zero_shot  # wrong classes end the command before anything is encoded

    def check(self, dataset: Dataset) -> None:
        """Look for the labels of both sets, before either is encoded.

        Raises:
            UserError: There is nothing to learn from, it is what is asked about, or has no labels.
        """
        train = self._train_set(dataset)
        if train.identity == dataset.identity:
            raise UserError(f"{self.name} would learn from what it is asked about. Give train=.")
        self._zero_shot.check(dataset)
        self._zero_shot.check(train)

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return the accuracy of the probe on all images, and of those on few."""
        train = encode.dataset(
            self._train_set(encoded.dataset), self.name, pooled=True, only="images"
        )
        known, asked = (self._zero_shot.labelled(encode, of) for of in (train, encoded))
        _check_classes(known, asked)
        draws = self._draws(known)  # too few images end the command before anything is learnt
        count, device = len(encoded.samples), encode.encoder.logit_scale.device
        figures, ranks = _on_all(
            _pooled(train, known).to(device), _pooled(encoded, asked).to(device), len(known.weights)
        )
        means = {"acc@1": ranks == 1}
        if len(known.weights) >= 5:
            means["acc@5"] = ranks <= 5
        per = {name: per_image(of, asked.rows, num_images=count) for name, of in means.items()}
        figures = {name: of.double().mean().item() for name, of in means.items()} | figures
        right = _few_shot(
            Part(train.image[known.rows], known.labels).to(device),
            Part(encoded.image[asked.rows], asked.labels).to(device),
            known.weights.to(device),
            encode.encoder.logit_scale.exp().item(),
            draws,
        )
        shares = {f"few_shot/{shots}/acc@1": of.mean(0) for shots, of in right.items()}
        per |= {name: per_image(of, asked.rows, num_images=count) for name, of in shares.items()}
        figures |= {name: of.mean().item() for name, of in shares.items()}
        figures |= _deviations(right, torch.arange(len(asked.rows)))
        figures["chance"] = 1 / len(known.weights)
        figures |= {"images": float(len(asked.rows)), "training_images": float(len(known.rows))}

        def resample(drawn: Int64[Tensor, "drawn"]) -> dict[str, float]:
            """Return what is no mean over images, if the set were these of its images."""
            images = places_of(drawn, asked.rows, count)
            recall = mean_per_class_recall(ranks[images], asked.labels[images])
            return {"mean_per_class_recall": recall} | _deviations(right, images)

        return named(self.name, Result(figures, per, resample, _curve(figures, self.shots)))

    @cached_property
    def _zero_shot(self) -> ZeroShot:
        """Knows the classes, labels and captions."""
        return ZeroShot(
            classes=self.classes,
            part=self.part,
            label=self.label,
            templates=self.templates,
            name=self.name,
        )

    def _train_set(self, dataset: Dataset) -> Dataset:
        if self.train is not None:
            train = open_dataset(self.train)
        else:
            folder = Path(dataset.name).resolve().parent / "train"
            if not folder.is_dir():
                raise UserError(
                    f"{self.name} has nothing to learn from: there is no folder {folder}. "
                    f"Write linear_probe(train='SHARDS')."
                )
            train = open_dataset(str(folder))
        return train if self.classes is not None else same_classes(train, dataset)

    def _draws(self, known: Labelled) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """Return the rows to learn from and to choose by, of each number of shots and seed."""
        return {
            shots: [
                draw_shots(
                    known.labels,
                    shots,
                    min(shots, MOST_TO_CHOOSE_BY),
                    seed=seed,
                    names=known.classes.names,
                )
                for seed in range(self.seeds)
            ]
            for shots in self.shots
        }


def same_classes(train: Dataset, dataset: Dataset) -> Dataset:
    """Return the training set with the classes of the evaluated one, whatever others it has.

    Raises:
        UserError: Labels are places, and they would mean other classes in training.
    """
    own, theirs = dataset.classes, train.classes
    if own is None or theirs is None or own == theirs:
        return train
    if own.ids is None:
        raise UserError(
            f"{train.name} has other classes than {dataset.name}. Give one list as classes=."
        )
    return replace(train, classes=own)


def _few_shot(
    train: Part,
    test: Part,
    weights: Tensor,
    scale: float,
    draws: dict[int, list[tuple[Tensor, Tensor]]],
) -> dict[int, Float64[Tensor, "seeds images"]]:
    """Return by shots, 0 among them, whether the probe of each draw gets each image right."""
    if not draws:
        return {}
    found = {0: (_ranks(test, Probe.of(weights)) == 1).double()[None]}
    for shots, drawn in draws.items():
        right = [_on_few(train, test, weights, scale, *rows) for rows in drawn]
        found[shots] = torch.stack(right).double()
    return found


def _deviations(right: dict[int, Tensor], images: Tensor) -> dict[str, float]:
    """Return how far the accuracies of the draws of few shots lie apart, on some test images."""
    return {
        f"few_shot/{shots}/acc@1_deviation": of[:, images].mean(1).std(unbiased=False).item()
        for shots, of in right.items()
        if shots
    }


def _on_all(train: Part, test: Part, num_classes: int) -> tuple[dict[str, float], Tensor]:
    """Return figures of the probe on all training images, and the rank of each test image."""
    learnt, chosen_by = split_off(train.labels)
    last: list[Probe] = []

    def fit(strength: float) -> Probe:
        rows, labels = train.rows[learnt], train.labels[learnt]
        start = last[-1] if last else None
        last.append(fit_probe(rows, labels, num_classes, strength=strength, start=start))
        return last[-1]

    held_out = Part(train.rows[chosen_by], train.labels[chosen_by])
    sweep = sweep_strength(fit, lambda probe: _accuracy(held_out, probe))
    probe = fit_probe(train.rows, train.labels, num_classes, strength=sweep.strength)
    ranks = _ranks(test, probe)
    return {
        "mean_per_class_recall": mean_per_class_recall(ranks, test.labels.cpu()),
        "validation_acc@1": sweep.accuracies[sweep.strength],
        "strength": sweep.strength,
    }, ranks


def _on_few(
    train: Part, test: Part, weights: Tensor, scale: float, learnt: Tensor, chosen_by: Tensor
) -> Tensor:
    """Return which test images a probe on few training images gets right."""

    def fit(strength: float) -> Probe:
        return fit_probe(
            scale * train.rows[learnt],
            train.labels[learnt],
            len(weights),
            strength=strength,
            start=Probe.of(weights),
            centre=weights,
        )

    held_out = Part(train.rows[chosen_by], train.labels[chosen_by])
    sweep = sweep_strength(fit, lambda probe: _accuracy(held_out, probe))
    return _ranks(test, fit(sweep.strength)) == 1


def _ranks(part: Part, probe: Probe) -> Int64[Tensor, "rows"]:
    """Return the rank of each row's own class, the bias as one more coordinate."""
    ones = part.rows.new_ones(len(part.rows), 1)
    weights = torch.cat([probe.weight, probe.bias[:, None]], 1)  # [classes, dim + 1]
    return class_ranks(torch.cat([part.rows, ones], 1), weights, part.labels).cpu()


def _accuracy(part: Part, probe: Probe) -> float:
    return (_ranks(part, probe) == 1).double().mean().item()


def _pooled(encoded: EncodedSet, labelled: Labelled) -> Part:
    assert encoded.image_pooled is not None, "the rows before the projection were asked for"
    return Part(encoded.image_pooled[labelled.rows], labelled.labels)


def _check_classes(known: Labelled, asked: Labelled) -> None:
    missing = sorted({*asked.labels.tolist()} - {*known.labels.tolist()})
    if missing:
        raise UserError(
            f"{len(missing)} classes have images to be asked about and none to learn from, such as "
            f"{known.classes.names[missing[0]]!r}. Give a training set with all of them."
        )


def _curve(figures: dict[str, float], shots: Sequence[int]) -> tuple[Curve, ...]:
    if not shots:
        return ()
    points = [(float(count), figures[f"few_shot/{count}/acc@1"]) for count in (0, *sorted(shots))]
    title = "Accuracy by training images of each class"
    series = {"few shots": points, "all images": [(x, figures["acc@1"]) for x, _ in points]}
    return (Curve("few_shot", title, series, "images of each class"),)
