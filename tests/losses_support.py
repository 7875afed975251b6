"""Batches of features that tests run losses on, whole or split over processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.loss import takes
from vlp.spec import build
from vlp.types import PADDING, Pairs, Past, TeacherFeatures

DIM = 8


def loss_of(name: str):
    """Return a loss by name, with widths that the drawn features have."""
    return build("training.losses", "matryoshka(dims=(3, 5))" if name == "matryoshka" else name)


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, DIM, dtype=torch.float64, generator=generator), dim=-1)


def drawn(count: int, groups: int | None = None) -> Pairs:
    """Return pairs of random features in fp64 that carry gradients."""
    generator = torch.Generator().manual_seed(count)
    image, text = unit(generator, 2, count)
    group = torch.arange(count) if groups is None else torch.arange(count) % groups
    return Pairs(image.requires_grad_(), text.requires_grad_(), group, torch.arange(count))


def filled(loss, pairs: Pairs) -> Pairs:
    """Return the pairs with every optional field that the loss takes."""
    count, generator = len(pairs.image), torch.Generator().manual_seed(1)
    past_group = torch.cat([torch.arange(3), torch.arange(1000, 1004)])
    of_none = torch.where(torch.arange(count) % 3 > 0, -1, PADDING)
    fields = {
        "views": {"views": unit(generator, 2, count).requires_grad_()},
        "text_views": {"text_views": unit(generator, 3, count).requires_grad_()},
        "hard_text": {
            "hard_text": unit(generator, count, 2).requires_grad_(),
            "hard_group": torch.stack([pairs.group.roll(1), of_none], 1),
        },
        "teacher": {"teacher": TeacherFeatures(*unit(generator, 2, count), scale=20.0)},
        "past": {"past": Past(*unit(generator, 2, 7), past_group, ceiling=0.4)},
    }
    for name, values in fields.items():
        if name in takes(loss):
            pairs = pairs._replace(**values)
    return pairs


def part(pairs: Pairs, rows: Tensor) -> Pairs:
    """Return the pairs that one process has."""
    sliced = {
        name: getattr(pairs, name)[rows]
        for name in ("image", "text", "group", "seed", "hard_text", "hard_group")
        if getattr(pairs, name) is not None
    }
    for name in ("views", "text_views"):
        if getattr(pairs, name) is not None:
            sliced[name] = getattr(pairs, name)[:, rows]
    if pairs.teacher is not None:
        taught = {name: getattr(pairs.teacher, name)[rows] for name in ("image", "text")}
        sliced["teacher"] = pairs.teacher._replace(**taught)
    return pairs._replace(**sliced)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def run(loss, pairs: Pairs, processes: int = 1, scale=10.0, bias=-10.0):
    """Return the loss of the whole batch and its gradients, split over processes."""
    rows = torch.arange(len(pairs.image))
    if processes == 1:
        return value_and_gradients(lambda s, b: loss(pairs, pairs, rows, s, b), pairs, scale, bias)

    def split(s, b):
        parts = [loss(part(pairs, own), pairs, own, s, b) for own in rows.chunk(processes)]
        return torch.stack(parts).mean()

    return value_and_gradients(split, pairs, scale, bias)


def value_and_gradients(function, pairs: Pairs, scale: float, bias: float):
    """Return the value, and the gradients of images, texts, scale, bias and all that carry one."""
    s, b = number(scale), number(bias)
    asked = [pairs.image, pairs.text, s, b]
    more = (pairs.hard_text, pairs.views, pairs.text_views)
    asked += [features for features in more if features is not None]
    value = function(s, b)
    gradients = torch.autograd.grad(value, asked, allow_unused=True)
    return value.detach(), [
        torch.zeros_like(x) if g is None else g for x, g in zip(asked, gradients, strict=True)
    ]


def assert_same(one, other, tolerance: float = 1e-9) -> None:
    """Hold that two values and all of their gradients are equal."""
    torch.testing.assert_close(one[0], other[0], atol=tolerance, rtol=0, check_dtype=False)
    for mine, theirs in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0)
