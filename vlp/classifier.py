"""Zero-shot classification: class names in caption templates become the weights of a classifier."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp.checkpoint import load_encoder
from vlp.console import say, show_table
from vlp.encode import encode_images, encode_texts, to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import open_image

PLACE = re.compile(r"\{c?\}")
"""Where a template takes the class name: ``{}``, or ``{c}`` as CLIP_benchmark writes it."""
Templates = Sequence[str] | Mapping[str, Sequence[str]]
BARE = ("{}",)
"""The templates where none are given: the class name alone."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set, and how its samples name theirs."""

    names: tuple[str, ...]
    """As they stand in a caption."""
    ids: tuple[int | str, ...] | None = None
    """What a sample's label says of each class; None where it is the name or the place, from 0."""
    templates: tuple[str, ...] | Mapping[str, tuple[str, ...]] = BARE
    """Captions with ``{}`` or ``{c}`` for the name, or by each name those of its own (CuPL)."""
    label_key: str = "cls"
    """The field of a sample's metadata that holds its label."""

    def __post_init__(self) -> None:
        check_names(self.names)
        check_templates(self.templates, self.names)
        if self.ids is not None:
            if len(self.ids) != len(self.names):
                raise UserError(
                    f"There are {len(self.names)} class names and {len(self.ids)} ids. "
                    f"Give one id for each name."
                )
            check_distinct([str(own) for own in self.ids])


def build_classifier(
    encoder: DualEncoder, names: Sequence[str], templates: Templates
) -> Float[Tensor, "classes dim"]:
    """Return a unit-length row for each class: norm(mean over templates of norm(caption)).

    The protocol of CLIP (Radford et al. 2021, section 3.1.4), in fp32 on the CPU. The same as
    ``open_clip.build_zero_shot_classifier``, transposed. Where each class has captions of its own
    (CuPL, Pratt et al. 2023), the mean is over those.

    Raises:
        UserError: There is no name or no template, or one cannot be used.
    """
    return classifier_of(partial(encode_texts, encoder), names, templates)


def classifier_of(
    encode: Callable[[Sequence[str]], Tensor], names: Sequence[str], templates: Templates
) -> Float[Tensor, "classes dim"]:
    """Return the same of captions that ``encode`` turns into a unit-length row each."""
    check_names(names)
    check_templates(templates, names)
    captions = [class_captions(name, templates) for name in names]
    features = encode([caption for own in captions for caption in own])
    means = [own.mean(dim=0) for own in features.split([len(own) for own in captions])]
    return F.normalize(torch.stack(means), dim=-1)


def class_captions(name: str, templates: Templates) -> list[str]:
    """Return the captions of a class."""
    if isinstance(templates, Mapping):
        return [fill(caption, name) for caption in templates[name]]
    return [fill(template, name) for template in templates]


def probabilities(
    encoder: DualEncoder,
    image_features: Float[Tensor, "images dim"],
    weights: Float[Tensor, "classes dim"],
) -> Float[Tensor, "images classes"]:
    """Return how likely each class is for each image, in [0, 1].

    A model trained with a softmax shares one probability among the classes, so a row sums to 1;
    one trained with a sigmoid gives each class its own, whatever the others are (Zhai et al. 2023).
    """
    logits = encoder.logit_scale.detach().exp().cpu() * (image_features @ weights.T)
    if encoder.logit_bias is None:
        return logits.softmax(dim=-1)
    return torch.sigmoid(logits + encoder.logit_bias.detach().cpu())


def classify(
    model: str, image: str, *, classes: Sequence[str], templates: Templates
) -> list[dict[str, Any]]:
    """Return ``{"class", "probability", "cosine"}`` for each class name, the likeliest first.

    Raises:
        UserError: The image, the model, a class name or a template cannot be used.
    """
    check_names(classes)
    check_distinct(classes)
    check_templates(templates, classes)
    picture = open_image(image)
    encoder = to_best_device(load_encoder(model))
    features = encode_images(encoder, [picture])  # [1, dim]
    weights = build_classifier(encoder, classes, templates)
    cosines = (features @ weights.T)[0].tolist()
    shares = probabilities(encoder, features, weights)[0].tolist()
    found = [
        {"class": name, "probability": share, "cosine": cosine}
        for name, share, cosine in zip(classes, shares, cosines, strict=True)
    ]
    # By cosine: probabilities of 1.0 or 0.0 after rounding would lose the order.
    found.sort(key=lambda row: -row["cosine"])
    say(f"{image}: {_kind(encoder, len(classes))}")
    show_table(("class", "probability", "cosine"), [tuple(row.values()) for row in found])
    return found


def fill(template: str, name: str) -> str:
    """Return the caption of a class; other braces stay as they are."""
    return PLACE.sub(lambda _: name, template)


def check_templates(templates: Templates, names: Sequence[str] = ()) -> None:
    """Raise UserError unless every template has a place for the class name.

    Captions that are each class's own need no such place, but every class needs some.
    """
    if isinstance(templates, Mapping):
        missing = next((name for name in names if not templates.get(name)), None)
        if missing is not None:
            raise UserError(
                f"The class {missing!r} has no caption. Give a list of captions for each class, "
                f"under its name."
            )
        return
    if not templates:
        raise UserError('There is no template. Give one such as "a photo of a {}", or "{}".')
    for template in templates:
        if not isinstance(template, str) or not PLACE.search(template):
            raise UserError(
                f"The template {template!r} has no place for the class name. "
                f'Write {{}} or {{c}} where it goes, as in "a photo of a {{}}".'
            )


def check_names(names: Sequence[str]) -> None:
    """Raise UserError unless there is a class and every class has a name."""
    if not names:
        raise UserError("There are no classes. Give at least one class name.")
    for place, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"Class {place} of {len(names)} is {name!r}. Give each class a name.")


def check_distinct(names: Sequence[str]) -> None:
    """Raise UserError where a class name stands twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"The class {twice[0]!r} stands twice. Give each class name once.")


def _kind(encoder: DualEncoder, num_classes: int) -> str:
    if encoder.is_sigmoid:
        return "each class has a probability of its own (sigmoid model)."
    return f"the {num_classes} classes share one probability (softmax model)."
