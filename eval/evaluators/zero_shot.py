"""Zero-shot classification: each image is given the class whose captions are nearest to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from data_pipelines.embed import EncodedSet
from data_pipelines.shards import ShardSet
from eval.metrics import class_ranks, mean_per_class_recall, top_k_accuracy
from eval.prompts import (
    BARE,
    Classes,
    class_of_samples,
    classes_beside,
    read_classes,
    read_templates,
    some_samples,
)
from vlp.classifier import build_classifier
from vlp.console import say
from vlp.encoder import DualEncoder
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Name what an image shows without training on the classes (Radford et al. 2021, section 3.1).

    ``acc@1``, ``acc@5`` (left out below five classes) and ``mean_per_class_recall`` are shares in
    [0, 1], higher is better; ``chance`` is what a guess gets, 1 / classes. Samples whose label is
    no class are left out and counted.
    """

    classes: str | Sequence[str] | None = None
    """A ``.txt`` or ``.json`` file of class names, or the names; None for ``classnames.txt`` beside
    the shards, as CLIP_benchmark lays them out."""
    part: str | None = None
    """Which class list of a nested file, such as ``concept.train``."""
    label: str | None = None
    """The field of the metadata with the label; None for the file's ``label_key``, or ``cls``."""
    templates: str | Sequence[str] | None = None
    """A file of templates, or templates; None for those of the classes file."""
    name: str = "zero_shot"
    """What the figures' names start with; two tasks need two names."""

    def __post_init__(self) -> None:
        if self.part is not None and not isinstance(self.classes, str):
            raise UserError("zero_shot has part= and no file. Write classes='classes.json'.")
        if self.classes is not None:
            _ = self._given  # a wrong file ends the command before anything is encoded

    def check(self, shards: ShardSet) -> None:
        """Say what the classes are, before the shards are encoded.

        Raises:
            UserError: No classes were given, and there are none beside the shards; or none of a
                thousand samples has one.
        """
        classes = self._classes_of(shards.shards)
        class_of_samples(classes, some_samples(shards))
        say(f"{self.name}: {len(classes.names)} classes, {_describe(classes.templates)}.")

    def __call__(self, encoder: DualEncoder, encoded: EncodedSet) -> dict[str, float]:
        """Return accuracy, chance and how many samples they are of."""
        classes = self._classes_of(entry.shard for entry in encoded.entries)
        labels = torch.tensor(class_of_samples(classes, encoded.samples))
        has_class = labels >= 0
        labels, left_out = labels[has_class], int((~has_class).sum())
        weights = build_classifier(encoder, classes.names, classes.templates)
        ranks = class_ranks(encoded.image[has_class], weights, labels)
        found = {"acc@1": top_k_accuracy(ranks, 1)}
        if len(classes.names) >= 5:
            found["acc@5"] = top_k_accuracy(ranks, 5)
        found["mean_per_class_recall"] = mean_per_class_recall(ranks, labels)
        found |= {"chance": 1 / len(classes.names), "samples": float(len(labels))}
        if left_out:
            say(f"{self.name}: left out {left_out} samples whose {classes.label_key} is no class.")
            found["left_out"] = float(left_out)
        return {f"{self.name}/{name}": value for name, value in found.items()}

    @cached_property
    def _given(self) -> Classes:
        """The classes of the file, read once: a training run must not fail when it moves."""
        assert self.classes is not None
        return self._with_options(read_classes(self.classes, part=self.part))

    def _classes_of(self, shards: Iterable[Path]) -> Classes:
        if self.classes is not None:
            return self._given
        return self._with_options(classes_beside(shards))

    def _with_options(self, classes: Classes) -> Classes:
        if self.label is not None:
            classes = replace(classes, label_key=self.label)
        if self.templates is not None:
            classes = replace(classes, templates=read_templates(self.templates))
        return classes


def _describe(templates: Sequence[str]) -> str:
    if tuple(templates) == BARE:
        return "no templates: the caption of a class is its bare name"
    count = "1 template" if len(templates) == 1 else f"{len(templates)} templates, the first"
    return f"{count}: {templates[0]!r}"
