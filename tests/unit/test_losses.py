"""What every loss must do, whichever it is, and what each is known to give."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from training.losses.sigmoid import Sigmoid
from training.losses.softmax import Softmax
from vlp.errors import UserError
from vlp.spec import build, names
from vlp.types import Pairs

EVERY_LOSS = pytest.mark.parametrize("name", names("training.losses"))


def drawn(count: int, dim: int = 8, groups: int | None = None) -> Pairs:
    """Return pairs of random features in fp64 that carry gradients."""
    generator = torch.Generator().manual_seed(count)
    image, text = F.normalize(
        torch.randn(2, count, dim, dtype=torch.float64, generator=generator), dim=-1
    )
    group = torch.arange(count) if groups is None else torch.arange(count) % groups
    return Pairs(image.requires_grad_(), text.requires_grad_(), group, torch.arange(count))


def part(pairs: Pairs, rows: torch.Tensor) -> Pairs:
    return Pairs(*(field[rows] for field in pairs[:4]))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def run(loss, pairs: Pairs, processes: int, scale=10.0, bias=-10.0):
    """Return the loss of the whole batch and its gradients, split over processes."""
    s, b = number(scale), number(bias)
    parts = [
        loss(part(pairs, rows), pairs, rows, s, b)
        for rows in torch.arange(len(pairs.image)).chunk(processes)
    ]
    total = torch.stack(parts).mean()
    gradients = torch.autograd.grad(total, [pairs.image, pairs.text, s, b], allow_unused=True)
    return total, gradients


@EVERY_LOSS
@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("groups", [None, 7])
def test_splitting_the_batch_over_processes_changes_nothing(name, processes, groups):
    loss, pairs = build("training.losses", name), drawn(24, groups=groups)
    whole, whole_gradients = run(loss, pairs, 1)
    split, split_gradients = run(loss, pairs, processes)
    assert split.item() == pytest.approx(whole.item(), abs=1e-12)
    for one, other in zip(whole_gradients, split_gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@EVERY_LOSS
def test_right_pairs_cost_less_than_wrong_pairs(name):
    loss, pairs = build("training.losses", name), drawn(8)
    right = pairs._replace(text=pairs.image)
    wrong = pairs._replace(text=pairs.image.roll(1, 0))
    assert run(loss, right, 1)[0] < run(loss, wrong, 1)[0]


@EVERY_LOSS
def test_a_text_of_the_same_group_is_never_pushed_away(name):
    loss, pairs = build("training.losses", name), drawn(6)
    copied = pairs._replace(group=torch.tensor([0, 0, 2, 3, 4, 5]))
    pushes = {}
    for kind, batch in (("copy", copied), ("other", pairs)):
        first = torch.arange(1)
        value = loss(part(batch, first), batch, first, number(10.0), number(-10.0))
        gradient = torch.autograd.grad(value, batch.text)[0]
        pushes[kind] = float(gradient[1].detach() @ batch.image[0].detach())
    assert pushes["other"] > 0, "a text of another group is a negative"
    assert pushes["copy"] <= 0


@EVERY_LOSS
def test_a_loss_is_finite_at_its_largest_scale_with_equal_features_in_bf16(name):
    loss = build("training.losses", name)
    same = F.normalize(torch.ones(16, 8, dtype=torch.bfloat16), dim=-1).requires_grad_()
    pairs = Pairs(same, same, torch.arange(16), torch.arange(16))
    value, gradients = run(loss, pairs, 1, scale=loss.max_scale)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@EVERY_LOSS
def test_a_loss_refuses_a_field_that_it_cannot_use(name):
    loss, pairs = build("training.losses", name), drawn(4)
    odd = pairs._replace(views=pairs.image.detach()[None])
    with pytest.raises(UserError, match="cannot use views"):
        loss(odd, odd, torch.arange(4), number(1.0), number(0.0))


@pytest.mark.parametrize("groups", [None, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_naive_loops(groups, smoothing):
    pairs, count, s = drawn(12, groups=groups), 12, 10.0
    total = 0.0
    for anchors, others in ((pairs.image, pairs.text), (pairs.text, pairs.image)):
        for i in range(count):
            kept = [j for j in range(count) if j == i or pairs.group[j] != pairs.group[i]]
            logits = {j: s * float(anchors[i].detach() @ others[j].detach()) for j in kept}
            log_sum = math.log(sum(math.exp(v) for v in logits.values()))
            logs = {j: v - log_sum for j, v in logits.items()}
            total -= (1 - smoothing) * logs[i] + smoothing * sum(logs.values()) / len(logs)
    value = run(Softmax(label_smoothing=smoothing), pairs, 1)[0]
    assert value.item() == pytest.approx(total / (2 * count), abs=1e-12)


@pytest.mark.parametrize("groups", [None, 5])
def test_sigmoid_equals_naive_loops(groups):
    pairs, count = drawn(12, groups=groups), 12
    total = 0.0
    for i in range(count):
        for j in range(count):
            sign = 1 if pairs.group[i] == pairs.group[j] else -1
            logit = 10.0 * float(pairs.image[i].detach() @ pairs.text[j].detach()) - 10.0
            total += math.log(1 + math.exp(-sign * logit))
    assert run(Sigmoid(), pairs, 1)[0].item() == pytest.approx(total / count, abs=1e-12)


def test_softmax_of_pairs_that_cannot_be_told_apart_is_log_n():
    same = torch.ones(4, 1)
    pairs = Pairs(same, same, torch.arange(4), torch.arange(4))
    value = Softmax()(pairs, pairs, torch.arange(4), torch.tensor(1.0), None)
    assert value.item() == pytest.approx(math.log(4))


def test_both_equal_open_clip_in_value_and_gradient():
    pairs = drawn(16)
    for ours, peer in (
        (Softmax(), open_clip.loss.ClipLoss()),
        (Sigmoid(), open_clip.loss.SigLipLoss()),
    ):
        value, gradients = run(ours, pairs, 1)
        s, b = number(10.0), number(-10.0)
        extra = (b,) if isinstance(ours, Sigmoid) else ()
        other = peer(pairs.image, pairs.text, s, *extra)
        wanted = torch.autograd.grad(other, [pairs.image, pairs.text, s, *extra])
        assert value.item() == pytest.approx(other.item(), abs=1e-9)
        for mine, theirs in zip(gradients, wanted, strict=False):
            torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


def test_sigmoid_without_a_bias_says_what_is_missing():
    pairs = drawn(4)
    with pytest.raises(UserError, match="needs an encoder with a bias"):
        Sigmoid()(pairs, pairs, torch.arange(4), number(1.0), None)
