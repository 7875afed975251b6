"""Each loss a second time, as loops over pairs: slow, plain, and sharing nothing with the first."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.types import PADDING, Pairs


def negatives(pairs: Pairs, i: int, way: str, see: str = "all") -> list[Tensor]:
    """Return the cosines of an anchor to all that it is told from."""
    anchors, others = (
        (pairs.image, pairs.text) if way == "image_to_text" else (pairs.text, pairs.image)
    )
    count = range(len(others))
    found = [anchors[i] @ others[j] for j in count if pairs.group[j] != pairs.group[i]]
    if pairs.hard_text is not None and pairs.hard_group is not None and way == "image_to_text":
        for j in count if see == "all" else [i]:
            for k in range(pairs.hard_text.shape[1]):
                if pairs.hard_group[j, k] not in (pairs.group[i], PADDING):
                    found.append(anchors[i] @ pairs.hard_text[j, k])
    if pairs.past is not None:
        past = pairs.past.text if way == "image_to_text" else pairs.past.image
        for feature, group in zip(past, pairs.past.group, strict=True):
            ceiling = pairs.past.ceiling
            is_near = ceiling is not None and others[i] @ feature > ceiling
            if group != pairs.group[i] and not is_near:
                found.append(anchors[i] @ feature)
    return found


def two_way(pairs: Pairs, loss, term):
    """Return the weighted mean over anchors and directions of a term."""
    total = 0
    for i in range(len(pairs.image)):
        total = total + loss.image_to_text * term(i, "image_to_text")
        total = total + (1 - loss.image_to_text) * term(i, "text_to_image")
    return total / len(pairs.image)


def softmax(pairs: Pairs, s: Tensor, b: Tensor, loss):
    def term(i, way):
        own = pairs.image[i] @ pairs.text[i]
        told = negatives(pairs, i, way, loss.see)
        log_sum = sum((s * c).exp() for c in [own, *told]).log()
        plain = pairs._replace(hard_text=None, past=None)
        kept = [own, *negatives(plain, i, way)]
        evenly = sum(s * c - log_sum for c in kept) / len(kept)
        return -(1 - loss.label_smoothing) * (s * own - log_sum) - loss.label_smoothing * evenly

    return two_way(pairs, loss, term)


def hard_negative(pairs: Pairs, s: Tensor, b: Tensor, loss):
    def term(i, way):
        own = (s * (pairs.image[i] @ pairs.text[i])).exp()
        told = [s * c for c in negatives(pairs, i, way, loss.see)]
        if not told:
            return 0 * s
        weights = [(loss.beta * logit).exp() for logit in told]
        weighted = [len(told) * w / sum(weights) for w in weights]
        pushed = sum(w * logit.exp() for w, logit in zip(weighted, told, strict=True))
        return -(own / (loss.alpha * own + pushed)).log()

    return two_way(pairs, loss, term)


def decoupled(pairs: Pairs, s: Tensor, b: Tensor, loss):
    def term(i, way):
        told = negatives(pairs, i, way, loss.see)
        own = s * (pairs.image[i] @ pairs.text[i])
        return sum((s * c).exp() for c in told).log() - own if told else 0 * s

    return two_way(pairs, loss, term)


def multi_positive(pairs: Pairs, s: Tensor, b: Tensor, loss):
    def term(i, way):
        pushed = sum((s * c).exp() for c in negatives(pairs, i, way, loss.see))
        terms = []
        for p in range(len(pairs.image)):
            if pairs.group[p] == pairs.group[i]:
                image, text = (i, p) if way == "image_to_text" else (p, i)
                match = (s * (pairs.image[image] @ pairs.text[text])).exp()
                terms.append(-(match / (match + pushed)).log())
        return sum(terms) / len(terms)

    return two_way(pairs, loss, term)


def sigmoid(pairs: Pairs, s: Tensor, b: Tensor, loss):
    total, count = 0, range(len(pairs.image))
    for i in count:
        for j in count:
            logit = s * (pairs.image[i] @ pairs.text[j]) + b
            sign = 1 if pairs.group[i] == pairs.group[j] else -1
            total = total - torch.log(1 / (1 + (-sign * logit).exp()))
    without = pairs._replace(hard_text=None, past=None)
    for way in ("image_to_text", "text_to_image"):
        for i in count:
            others = negatives(pairs, i, way, loss.see)[len(negatives(without, i, way)) :]
            total = total + sum(torch.log(1 + (s * c + b).exp()) for c in others)
    return total / len(pairs.image)


def uniformity(pairs: Pairs, s: Tensor, b: Tensor, loss):
    count = range(len(pairs.image))

    def spread(one, other):
        potentials = [
            (-loss.t * (2 - 2 * one[i] @ other[j])).exp()  # |a - b|^2 of unit-length rows
            for i in count
            for j in count
            if pairs.group[i] != pairs.group[j]
        ]
        return (sum(potentials) / len(potentials)).log() if potentials else 0 * one.sum()

    x, y = pairs.image, pairs.text
    alignment = sum((x[i] - y[i]).square().sum() for i in count) / len(x)
    in_modal = (spread(x, x) + spread(y, y)) / 2
    return loss.alignment * alignment + loss.in_modal * in_modal + loss.cross_modal * spread(x, y)


def shares(pairs: Pairs, anchor: Tensor, others: Tensor, i: int, scale) -> dict[int, Tensor]:
    """Return the softmax of an anchor over its own pair and those of other groups."""
    kept = [j for j in range(len(others)) if j == i or pairs.group[j] != pairs.group[i]]
    terms = {j: (scale * (anchor @ others[j])).exp() for j in kept}
    return {j: term / sum(terms.values()) for j, term in terms.items()}


def distill(pairs: Pairs, s: Tensor, b: Tensor, loss):
    assert pairs.teacher is not None
    total, (teacher_x, teacher_y, own_scale) = 0, pairs.teacher
    teacher_scale = loss.teacher_scale or own_scale or 100.0
    for i in range(len(pairs.image)):
        for x, y, u, v in (
            (pairs.image, pairs.text, teacher_x, teacher_y),
            (pairs.text, pairs.image, teacher_y, teacher_x),
        ):
            p = shares(pairs, x[i], y, i, s)
            q = shares(pairs, u[i], v, i, teacher_scale)
            total = total + sum(q[j] * (q[j] / p[j]).log() for j in q)
    return total / (2 * len(pairs.image))


def weighted(pairs: Pairs, s: Tensor, b: Tensor, loss):
    x, y = (pairs.image, pairs.text) if loss.frozen == "image" else (pairs.text, pairs.image)
    total, judges = 0, x if pairs.teacher is None else getattr(pairs.teacher, loss.frozen)
    for i in range(len(x)):
        p = shares(pairs, x[i], y, i, s)
        w = {j: ((1 + judges[i] @ judges[j]) / 2).detach() for j in p}
        total = total - sum(w[j] * p[j].log() for j in p) / sum(w.values())
        total = total - shares(pairs, y[i], x, i, s)[i].log()
    return total / (2 * len(x))


def matryoshka(pairs: Pairs, s: Tensor, b: Tensor, loss):
    values = []
    for dim in sorted({*loss.dims, pairs.image.shape[1]}):

        def cut(features, dim=dim):
            if dim == features.shape[-1]:
                return features
            return F.normalize(features[..., :dim], dim=-1)

        shorter = pairs._replace(image=cut(pairs.image), text=cut(pairs.text))
        if pairs.hard_text is not None:
            shorter = shorter._replace(hard_text=cut(pairs.hard_text))
        if pairs.past is not None:
            past = pairs.past._replace(image=cut(pairs.past.image), text=cut(pairs.past.text))
            shorter = shorter._replace(past=past)
        values.append(globals()[loss.loss](shorter, s, b, loss.inner))
    return sum(values) / len(values)
