"""What every loss must do, whichever it is, and what each is known to give."""

import math

import naive_losses
import open_clip
import pytest
import torch
import torch.nn.functional as F
from losses_support import (
    assert_same,
    drawn,
    filled,
    loss_of,
    number,
    part,
    run,
    unit,
    value_and_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode

from training.loss import needs, takes
from training.losses.decoupled import Decoupled
from training.losses.distill import Distill
from training.losses.hard_negative import HardNegative
from training.losses.matryoshka import Matryoshka
from training.losses.multi_positive import MultiPositive
from training.losses.sigmoid import Sigmoid
from training.losses.softmax import Softmax
from training.losses.uniformity import Uniformity
from training.losses.weighted import Weighted
from training.similarity.tiles import TILE_ELEMENTS
from vlp.errors import UserError
from vlp.spec import build, names, parse
from vlp.types import Pairs, Past, TeacherFeatures

EVERY_LOSS = pytest.mark.parametrize("name", names("training.losses"))
VARIANTS = (
    "softmax(label_smoothing=0.1, image_to_text=0.3)",
    "softmax(see='own')",
    "sigmoid(see='own')",
    "hard_negative(alpha=0.5, beta=1.0)",
    "hard_negative(alpha=0.0, beta=0.0, see='own')",
    "multi_positive(image_to_text=1.0, see='own')",
    "uniformity(alignment=0.5, in_modal=0.2, cross_modal=2.0, t=1.0)",
    "distill(teacher_scale=3.0)",
    "weighted(frozen='text')",
    "matryoshka(loss='sigmoid', dims=(2,))",
)


@pytest.fixture
def small_tiles(monkeypatch):
    """Walk tiles of 3 x 3, which divide no batch here."""
    monkeypatch.setitem(TILE_ELEMENTS, "cpu", 9)


@EVERY_LOSS
@pytest.mark.parametrize("groups", [None, 5])
def test_a_loss_equals_naive_loops_with_every_field_that_it_takes(name, groups):
    check_naive(name, loss_of(name), groups)


@pytest.mark.parametrize("spec", VARIANTS)
def test_options_of_a_loss_equal_naive_loops(spec, small_tiles):
    check_naive(parse(spec)[0], build("training.losses", spec), 5)


def check_naive(name, loss, groups):
    naive = getattr(naive_losses, name)
    pairs = filled(loss, drawn(10, groups))
    wanted = value_and_gradients(lambda s, b: naive(pairs, s, b, loss), pairs, 10.0, -3.0)
    assert_same(run(loss, pairs, bias=-3.0), wanted)


@EVERY_LOSS
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [None, 7])
def test_splitting_the_batch_over_processes_changes_nothing(name, processes, groups):
    loss = loss_of(name)
    pairs = filled(loss, drawn(24, groups))
    assert_same(run(loss, pairs, processes), run(loss, pairs), 1e-12)


@EVERY_LOSS
@pytest.mark.parametrize("processes", [1, 2])
def test_the_shape_of_the_tiles_changes_nothing(name, processes, monkeypatch):
    loss = loss_of(name)
    pairs = filled(loss, drawn(22, 7))
    whole = run(loss, pairs)
    for elements in (12, 150):
        monkeypatch.setitem(TILE_ELEMENTS, "cpu", elements)
        assert_same(run(loss, pairs, processes), whole, 1e-12)


@EVERY_LOSS
@pytest.mark.parametrize("processes", [1, 2])
def test_no_tensor_is_larger_than_the_features_or_a_tile(name, processes, monkeypatch):
    monkeypatch.setitem(TILE_ELEMENTS, "cpu", 128)
    loss = loss_of(name)
    pairs = filled(loss, drawn(32, 15))
    with Largest() as largest:
        run(loss, pairs, processes)
    assert largest.elements <= 2 * pairs.image.numel(), "[32, 32] would be 4 times that of images"


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that anything made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        for tensor in made:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 8)
        return result


@EVERY_LOSS
def test_right_pairs_cost_less_than_wrong_pairs(name):
    loss = loss_of(name)
    pairs = filled(loss, drawn(8))._replace(hard_text=None, hard_group=None, past=None)
    if pairs.teacher is not None:
        pairs = pairs._replace(teacher=TeacherFeatures(pairs.image.detach(), pairs.image.detach()))
    right = pairs._replace(text=pairs.image)
    wrong = pairs._replace(text=pairs.image.roll(1, 0))
    assert run(loss, right)[0] < run(loss, wrong)[0]


@EVERY_LOSS
def test_a_batch_of_one_group_has_nothing_to_tell_apart(name):
    # Alignment is of matches, and the sigmoid asks of each match, too, whether it is one.
    loss = Uniformity(alignment=0.0) if name == "uniformity" else loss_of(name)
    pairs = filled(loss, drawn(6, groups=1))
    if pairs.hard_group is not None:
        pairs = pairs._replace(hard_group=torch.zeros_like(pairs.hard_group))
    if pairs.past is not None:
        pairs = pairs._replace(past=pairs.past._replace(group=torch.zeros(7, dtype=torch.long)))
    value, gradients = run(loss, pairs)
    if name == "sigmoid":
        plain = run(loss, pairs._replace(hard_text=None, hard_group=None, past=None))
        assert_same((value, gradients[:4]), plain)
        return
    assert value.item() == pytest.approx(0, abs=1e-12)
    for gradient in gradients:
        assert gradient.abs().max().item() == pytest.approx(0, abs=1e-12)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loss_is_finite_at_its_largest_scale_with_equal_features(name, dtype):
    loss = loss_of(name)
    same = F.normalize(torch.ones(16, 8, dtype=dtype), dim=-1).requires_grad_()
    pairs = Pairs(same, same, torch.arange(16), torch.arange(16), teacher=teacher_of(loss, same))
    value, gradients = run(loss, pairs, scale=loss.max_scale)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients)


def teacher_of(loss, features):
    return (
        TeacherFeatures(features.detach(), features.detach()) if "teacher" in needs(loss) else None
    )


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_autocast_finds_the_same_near_duplicates(name):
    generator = torch.Generator().manual_seed(0)
    image, text = unit(generator, 2, 256).float()
    past = Past(*unit(generator, 2, 1024).float(), torch.arange(1000, 2024), ceiling=0.3)
    pairs = Pairs(image, text, torch.arange(256), torch.arange(256), past=past)
    loss, rows = loss_of(name), torch.arange(256)
    plain = loss(pairs, pairs, rows, torch.tensor(10.0), torch.tensor(-5.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(pairs, pairs, rows, torch.tensor(10.0), torch.tensor(-5.0)) == plain


@EVERY_LOSS
def test_autocast_changes_nothing(name):
    loss = loss_of(name)
    pairs = filled(loss, drawn(12, 5))
    halves = [x if x is None else x.detach().float() for x in (pairs.image, pairs.text)]
    pairs = pairs._replace(image=halves[0].requires_grad_(), text=halves[1].requires_grad_())
    if pairs.hard_text is not None:
        pairs = pairs._replace(hard_text=pairs.hard_text.detach().float().requires_grad_())
    if pairs.past is not None:
        past = pairs.past
        pairs = pairs._replace(past=past._replace(image=past.image.float(), text=past.text.float()))

    def inside(s, b):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(pairs, pairs, torch.arange(12), s, b)

    assert_same(value_and_gradients(inside, pairs, 10.0, -10.0), run(loss, pairs), 0)


@EVERY_LOSS
def test_a_loss_refuses_a_field_that_it_cannot_use(name):
    loss, pairs = loss_of(name), drawn(4)
    field = next(field for field in ("views", "text_views") if field not in takes(loss))
    odd = pairs._replace(**{field: pairs.image.detach()[None]})
    with pytest.raises(UserError, match=f"cannot use {field}"):
        loss(odd, odd, torch.arange(4), number(1.0), number(0.0))


@pytest.mark.parametrize(
    "name", ["softmax", "sigmoid", "hard_negative", "decoupled", "multi_positive"]
)
def test_a_text_of_the_same_group_is_never_pushed_away(name):
    loss, pairs = loss_of(name), drawn(6)
    copied = pairs._replace(group=torch.tensor([0, 0, 2, 3, 4, 5]))
    pushes = {}
    for kind, batch in (("copy", copied), ("other", pairs)):
        first = torch.arange(1)
        value = loss(part(batch, first), batch, first, number(10.0), number(-10.0))
        gradient = torch.autograd.grad(value, batch.text)[0]
        pushes[kind] = float(gradient[1].detach() @ batch.image[0].detach())
    assert pushes["other"] > 0, "a text of another group is a negative"
    assert pushes["copy"] <= 0


@pytest.mark.parametrize(
    ("one", "other", "groups"),
    [
        (HardNegative(alpha=1.0, beta=0.0), Softmax(), 5),
        (HardNegative(alpha=0.0, beta=0.0), Decoupled(), 5),
        (MultiPositive(), Softmax(), None),
        (Matryoshka(dims=(8,)), Softmax(), 5),
        (Matryoshka(loss="sigmoid", dims=(8,)), Sigmoid(), 5),
    ],
)
def test_losses_that_are_said_to_be_equal_are(one, other, groups):
    pairs = filled(other, drawn(12, groups))
    assert_same(run(one, pairs), run(other, pairs))


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (Softmax(), math.log(4)),
        (HardNegative(alpha=0.5), math.log(3.5)),
        (Decoupled(), math.log(3)),
        (MultiPositive(), math.log(4)),
        (Uniformity(), 0.0),
        (Distill(), 0.0),
        (Weighted(), math.log(4)),
        (Matryoshka(dims=(1,)), math.log(4)),
    ],
)
def test_features_that_cannot_be_told_apart_give_the_value_that_the_loss_says(loss, wanted):
    same = torch.ones(4, 1)
    pairs = Pairs(same, same, torch.arange(4), torch.arange(4), teacher=teacher_of(loss, same))
    value = loss(pairs, pairs, torch.arange(4), torch.tensor(7.0), None)
    assert value.item() == pytest.approx(wanted, abs=1e-6)


def test_a_sigmoid_of_features_that_cannot_be_told_apart_is_n_log_2_at_scale_and_bias_0():
    same = torch.ones(4, 1)
    pairs = Pairs(same, same, torch.arange(4), torch.arange(4))
    value = Sigmoid()(pairs, pairs, torch.arange(4), torch.tensor(0.0), torch.tensor(0.0))
    assert value.item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("processes", [1, 2])
def test_both_equal_open_clip_in_value_and_gradient(processes, small_tiles):
    pairs = drawn(16)
    peers = open_clip.loss.ClipLoss(), open_clip.loss.SigLipLoss()
    for wanted, ours in (
        (lambda s, b: peers[0](pairs.image, pairs.text, s), Softmax()),
        (lambda s, b: peers[1](pairs.image, pairs.text, s, b), Sigmoid()),
    ):
        peer = value_and_gradients(wanted, pairs, 10.0, -10.0)
        assert_same(run(ours, pairs, processes), peer)


def test_sums_that_no_shared_offset_reaches_are_right():
    # At scale 100 a sum lies anywhere between exp(-100) and exp(100); fp32 ends at exp(88).
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
    text = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-0.8, -0.6]], requires_grad=True)
    pairs = Pairs(image, text, torch.arange(3), torch.arange(3))
    value, gradients = run(Softmax(), pairs, scale=100.0)
    wide = pairs._replace(
        image=image.detach().double().requires_grad_(), text=text.detach().double().requires_grad_()
    )
    wanted = value_and_gradients(
        lambda s, b: naive_losses.softmax(wide, s, b, Softmax()), wide, 100.0, 0.0
    )
    assert value.item() == pytest.approx(wanted[0].item(), rel=1e-6)
    for mine, theirs in zip(gradients, wanted[1], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_near_the_end_of_training_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    x, noise = F.normalize(
        torch.randn(2, 512, 64, dtype=torch.float64, generator=generator), dim=-1
    )
    y = F.normalize(0.6 * x + (1 - 0.6**2) ** 0.5 * noise, dim=-1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        image, text = (z.to(torch.float32).to(dtype).requires_grad_() for z in (x, y))
        pairs = Pairs(image, text, torch.arange(512), torch.arange(512))
        value, found = run(Softmax(), pairs, scale=100.0)
        gradients.append(found)
    assert 1e-4 < value.item() < 1e-2
    for mine, wanted in zip(gradients[0][:3], gradients[1][:3], strict=True):
        assert (mine - wanted).norm() / wanted.norm() < 4e-6  # bf16 logits: 2e-2


def test_an_empty_past_changes_nothing():
    pairs = drawn(6)
    empty = Past(torch.zeros(0, 8).double(), torch.zeros(0, 8).double(), torch.zeros(0).long())
    for loss in (Softmax(), Sigmoid(), HardNegative()):
        assert_same(run(loss, pairs._replace(past=empty)), run(loss, pairs))


def test_sigmoid_without_a_bias_says_what_is_missing():
    pairs = drawn(4)
    with pytest.raises(UserError, match="needs an encoder with a bias"):
        Sigmoid()(pairs, pairs, torch.arange(4), number(1.0), None)


def test_a_teachers_own_scale_is_taken_where_none_is_given():
    pairs = filled(Distill(), drawn(8, 5))
    assert_same(run(Distill(), pairs), run(Distill(teacher_scale=20.0), pairs))
    unknown = pairs._replace(teacher=pairs.teacher._replace(scale=None))
    assert_same(run(Distill(), unknown), run(Distill(teacher_scale=100.0), pairs))


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_without_a_teacher_the_frozen_tower_is_its_own(frozen):
    loss, pairs = Weighted(frozen=frozen), drawn(8, 5)
    own = pairs._replace(teacher=TeacherFeatures(pairs.image.detach(), pairs.text.detach()))
    assert_same(run(loss, pairs), run(loss, own))
    wanted = value_and_gradients(
        lambda s, b: naive_losses.weighted(pairs, s, b, loss), pairs, 10.0, 0.0
    )
    assert_same(run(loss, pairs), wanted)


def test_distilling_without_a_teacher_says_what_is_missing():
    pairs = drawn(4)
    with pytest.raises(UserError, match="distill needs teacher, which --teacher gives"):
        Distill()(pairs, pairs, torch.arange(4), number(1.0), None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("softmax(label_smoothing=1.0)", "label_smoothing is 1.0"),
        ("softmax(image_to_text=1.5)", "image_to_text is 1.5. Write a weight from 0 to 1"),
        ("softmax(see='most')", "see cannot be 'most'"),
        ("hard_negative(beta=-1.0)", "beta is -1.0. Write 0 or more"),
        ("hard_negative(beta=1e8)", "beta is 100000000.0. Write 0 or more, up to 100"),
        ("uniformity(t=1e200)", "t is 1e+200. Write a sharpness above 0"),
        ("uniformity(t=0.0)", "t is 0.0"),
        ("uniformity(in_modal=-1.0)", "in_modal is -1.0. Write a weight of 0 or more"),
        ("distill(teacher_scale=0.0)", "teacher_scale is 0.0"),
        ("matryoshka(dims=())", "dims is ()"),
        ("matryoshka(loss='softmaxx')", "no loss called 'softmaxx'"),
    ],
)
def test_an_option_out_of_range_says_what_may_be_written(spec, message):
    with pytest.raises(UserError) as error:
        build("training.losses", spec)
    assert message in str(error.value)


def test_a_prefix_wider_than_the_features_says_what_may_be_written():
    with pytest.raises(UserError, match="at least 64 numbers; those of the model have 8"):
        run(Matryoshka(dims=(64,)), drawn(4))
