"""What is seen of a batch while its loss is computed."""

import pytest
import torch
from losses_support import drawn, filled, loss_of, part

from training.losses.matryoshka import Matryoshka
from training.losses.softmax import Softmax
from training.losses.uniformity import Uniformity
from training.similarity.diagnostics import watching
from training.similarity.matches import hard_above_match
from training.similarity.tiles import TILE_ELEMENTS
from vlp.types import PADDING

TILED = ["softmax", "sigmoid", "hard_negative", "decoupled", "multi_positive", "matryoshka"]
SCALE, BIAS = torch.tensor(20.0), torch.tensor(-3.0)


def seen_by(loss, pairs, rows):
    local = pairs if len(rows) == len(pairs.image) else part(pairs, rows)
    with watching() as seen:
        loss(local, pairs, rows, SCALE, BIAS)
    return seen.figures()


def from_the_whole_matrix(pairs) -> dict[str, float]:
    cosines = pairs.image.detach() @ pairs.text.detach().T
    other = pairs.group[:, None] != pairs.group
    own, told = cosines.diagonal(), cosines[other]
    text_best = cosines.masked_fill(~other, -2).amax(1)
    image_best = cosines.masked_fill(~other, -2).amax(0)
    sizes = pairs.group.bincount()
    return {
        "accuracy/image_to_text": (own > text_best).double().mean(),
        "accuracy/text_to_image": (own > image_best).double().mean(),
        "above_match": ((text_best > own).double().mean() + (image_best > own).double().mean()) / 2,
        "duplicates": sizes[sizes > 1].sum().double(),
        "match/mean": own.mean(),
        "match/min": own.min(),
        "match/max": own.max(),
        "non_match/mean": told.mean(),
        "non_match/min": told.min(),
        "non_match/max": told.max(),
    }


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("processes", [1, 3])
def test_tiled_losses_see_what_the_whole_matrix_shows(name, processes, monkeypatch):
    monkeypatch.setitem(TILE_ELEMENTS, "cpu", 20)
    loss = loss_of(name)
    pairs = filled(loss, drawn(12, groups=9))
    parts = [seen_by(loss, pairs, rows) for rows in torch.arange(12).chunk(processes)]
    wanted = from_the_whole_matrix(pairs)
    assert parts[0].keys() == wanted.keys()
    for key, value in wanted.items():
        reduce = {"min": torch.min, "max": torch.max}.get(key.rpartition("/")[2], torch.mean)
        found = reduce(torch.stack([figures[key] for figures in parts]))
        assert found.item() == pytest.approx(value.item(), abs=1e-5), key


def test_nothing_is_seen_of_losses_that_walk_no_pairs_of_images_and_texts():
    pairs = drawn(6)
    assert seen_by(Uniformity(), pairs, torch.arange(6)) == {}


def test_the_widest_prefix_is_what_is_seen():
    pairs = drawn(6)
    one = seen_by(Matryoshka(dims=(2, 5)), pairs, torch.arange(6))
    assert one == seen_by(Softmax(), pairs, torch.arange(6))


def test_watching_changes_no_gradient_and_ends_with_its_block():
    pairs = drawn(6)
    rows = torch.arange(6)
    values = []
    for _ in range(2):
        with watching() as seen:
            values.append(Softmax()(pairs, pairs, rows, SCALE, None))
        values.append(Softmax()(pairs, pairs, rows, SCALE * 2, None))
    assert values[0] == values[2] != values[1]
    assert seen.figures()["match/max"] <= 1
    gradients = [torch.autograd.grad(v, pairs.image, retain_graph=True)[0] for v in values[:2]]
    assert torch.isfinite(gradients[0]).all()


@pytest.mark.parametrize("processes", [1, 3])
def test_hard_captions_above_the_match_are_counted_and_padding_is_not(processes):
    pairs = filled(Softmax(), drawn(12, groups=9))
    assert pairs.hard_text is not None
    assert pairs.hard_group is not None
    above = [
        bool(pairs.image[i] @ pairs.hard_text[i, k] >= pairs.image[i] @ pairs.text[i])
        and pairs.hard_group[i, k] not in (PADDING, pairs.group[i])
        for i in range(12)
        for k in range(2)
    ]
    rows = torch.arange(12).chunk(processes)
    found = torch.stack([hard_above_match(part(pairs, own)) for own in rows]).mean().item()
    assert 0 < found == pytest.approx(sum(above) / 24)
