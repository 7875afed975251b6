"""Zero-shot classification: each image is given the class whose captions are nearest to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from eval.answers import OneLabel, several_labels
from eval.calibration import Logits
from eval.features import Encode
from eval.prompts import (
    class_of_samples,
    classes_of,
    classes_of_samples,
    has_several_labels,
    keep_classes,
    read_classes,
    read_templates,
)
from eval.result import Result, named
from vlp.classifier import BARE, Classes, Templates, classifier_of
from vlp.console import say
from vlp.errors import UserError
from vlp.types import Sample


class Labelled(NamedTuple):
    """The images of a set that have a class, and a classifier of it."""

    rows: Int64[Tensor, "images"]
    """Where each stands in the set."""
    labels: Int64[Tensor, "images"]
    weights: Float[Tensor, "classes dim"]
    classes: Classes


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Name what an image shows without training on the classes (Radford et al. 2021).

    ``acc@1``, ``acc@5`` (left out below five classes), ``mean_per_class_recall``, ``f1`` and
    ``jaccard`` (means over the classes that have images) are shares in [0, 1], higher is better;
    ``chance`` is what a guess gets, 1 / classes. Samples whose label is no class are left out and
    counted.

    Probabilities are the model's own: a softmax at its scale, or each class's sigmoid. ``ece``,
    ``mce``, ``nll`` and ``brier`` say how far to trust them, lower is better; with ``fitted_``
    before, after each half of the images was read at the ``temperature`` fitted to the other.

    Where labels are lists, an image may show several classes: ``mean_average_precision``,
    ``mean_average_precision_11_points`` (VOC 2007's) and ``jaccard``, the overlap of an image's n
    labels with its n best classes, take the place of all that.
    """

    classes: str | Sequence[str] | None = None
    """A ``.txt`` or ``.json`` file of class names, or the names; None for those that the
    dataset brings, such as ``classnames.txt`` beside CLIP_benchmark's shards."""
    part: str | None = None
    """Which class list of a nested file, such as ``concept.train``."""
    subset: str | Sequence[str | int | bool] | None = None
    """A file or list of the classes that the dataset is of, where it is not of all, as ImageNet-A:
    ids, names, places, or a truth value for each class."""
    label: str | None = None
    """The field of the metadata with the label; None for the file's ``label_key``, or ``cls``."""
    templates: str | Sequence[str] | None = None
    """``imagenet`` for CLIP's 80 templates, a file of templates or of captions of each class's own
    (CuPL), or templates; None for those of the classes file."""
    group: str | None = None
    """A field of the metadata, such as FMoW's region: ``worst_group_acc@1`` is the accuracy of the
    group that fares worst."""
    group_without: Sequence[str] = ()
    """Values that are no group, as WILDS leaves out FMoW's region "Other"."""
    name: str = "zero_shot"
    """What the figures' names start with; two tasks need two names."""

    def __post_init__(self) -> None:
        if self.part is not None and not isinstance(self.classes, str):
            raise UserError("zero_shot has part= and no file. Write classes='classes.json'.")
        if self.classes is not None:
            _ = self._given  # a wrong file ends the command before anything is encoded

    def check(self, dataset: Dataset) -> None:
        """Say what the classes are, before the dataset is encoded.

        Raises:
            UserError: No classes were given, and the dataset brings none; or none of a thousand
                samples has one.
        """
        classes, samples = self._classes_of(dataset), some_samples(dataset)
        classes_of_samples(classes, samples)
        self._groups(samples)
        say(f"{self.name}: {len(classes.names)} classes, {_describe(classes.templates)}.")

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return accuracy and calibration, or the precision of several labels."""
        classes = self._classes_of(encoded.dataset)
        if has_several_labels(classes, encoded.samples):
            return named(self.name, self._several_labels(encode, encoded, classes))
        found = self.labelled(encode, encoded)
        left_out = len(encoded.samples) - len(found.rows)
        if left_out:
            say(f"{self.name}: left out {left_out} samples whose {classes.label_key} is no class.")
        scale, bias = encode.encoder.logit_scale.exp().item(), encode.encoder.logit_bias
        logits = Logits(
            encoded.image[found.rows],
            found.weights,
            found.labels,
            scale,
            None if bias is None else bias.item(),
        )
        groups, group_names = self._groups([encoded.samples[row] for row in found.rows.tolist()])
        answers = OneLabel(
            logits, found.rows, len(encoded.samples), classes.names, groups, group_names
        )
        return named(self.name, answers.result())

    def labelled(self, encode: Encode, encoded: EncodedSet) -> Labelled:
        """Return the images that have one class, and the classifier."""
        classes = self._classes_of(encoded.dataset)
        labels = torch.tensor(class_of_samples(classes, encoded.samples))
        rows = (labels >= 0).nonzero()[:, 0]
        weights = classifier_of(encode.texts, classes.names, classes.templates)
        return Labelled(rows, labels[rows], weights, classes)

    def _several_labels(self, encode: Encode, encoded: EncodedSet, classes: Classes) -> Result:
        labels = torch.zeros(len(encoded.samples), len(classes.names), dtype=torch.bool)
        for row, own in enumerate(classes_of_samples(classes, encoded.samples)):
            labels[row, own] = True
        weights = classifier_of(encode.texts, classes.names, classes.templates)
        return several_labels(encoded.image, weights, labels, classes.names)

    def _groups(self, samples: Sequence[Sample]) -> tuple[Tensor | None, list[str]]:
        """Return the number of each sample's group, -1 without one, and the groups' names."""
        if self.group is None:
            return None, []
        said = [sample.metadata.get(self.group) for sample in samples]
        said = [None if str(value) in self.group_without else value for value in said]
        names = sorted({str(value) for value in said if value is not None})
        if not names:
            raise UserError(f"No sample has the group {self.group!r}. Write group='FIELD'.")
        place = {name: number for number, name in enumerate(names)}
        return torch.tensor([-1 if v is None else place[str(v)] for v in said]), names

    @cached_property
    def _given(self) -> Classes:
        """The classes of the file, read once: a training run must not fail when it moves."""
        assert self.classes is not None
        return self._with_options(read_classes(self.classes, part=self.part))

    def _classes_of(self, dataset: Dataset) -> Classes:
        return self._given if self.classes is not None else self._with_options(classes_of(dataset))

    def _with_options(self, classes: Classes) -> Classes:
        if self.subset is not None:
            classes = keep_classes(classes, self.subset)
        if self.label is not None:
            classes = replace(classes, label_key=self.label)
        if self.templates is not None:
            classes = replace(classes, templates=read_templates(self.templates))
        return classes


def _describe(templates: Templates) -> str:
    if isinstance(templates, Mapping):
        return f"{sum(map(len, templates.values()))} captions of the classes' own"
    if tuple(templates) == BARE:
        return "no templates: the caption of a class is its bare name"
    count = "1 template" if len(templates) == 1 else f"{len(templates)} templates, the first"
    return f"{count}: {templates[0]!r}"
