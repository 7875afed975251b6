"""Losses add up by their weights."""

import pytest
import torch

from training.config import TrainConfig
from training.loss import check_loss
from training.losses.sigmoid import Sigmoid
from training.losses.softmax import Softmax
from training.losses.uniformity import Uniformity
from training.objective import build_objective, warn_of_scales
from vlp.errors import UserError
from vlp.types import Pairs, Past, TeacherFeatures


def pairs() -> Pairs:
    image, text = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=-1)
    return Pairs(image, text, torch.arange(6), torch.arange(6))


def test_losses_add_up_by_their_weights():
    batch, rows = pairs(), torch.arange(6)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0)
    objective = build_objective(["softmax(label_smoothing=0.1)", "sigmoid(weight=0.25)"])
    values = objective.each(batch, batch, rows, scale, bias)
    softmax = Softmax(label_smoothing=0.1)(batch, batch, rows, scale, None)
    sigmoid = Sigmoid()(batch, batch, rows, scale, bias)
    assert values == {"softmax": softmax, "sigmoid": sigmoid}
    total = objective(batch, batch, rows, scale, bias)
    torch.testing.assert_close(total, softmax + 0.25 * sigmoid)


def test_a_bias_is_wanted_where_any_loss_wants_one_and_the_least_scale_is_allowed(capsys):
    objective = build_objective(["softmax", "sigmoid"])
    assert objective.start_bias == Sigmoid.start_bias
    assert objective.start_scale == Softmax.start_scale
    assert objective.max_scale == 100
    warn_of_scales(objective)
    assert "want different scales" in capsys.readouterr().err
    with_sigmoid = build_objective(["uniformity", "sigmoid"])
    assert with_sigmoid.start_scale == Sigmoid.start_scale, "uniformity takes no scale"
    assert build_objective(["softmax"]).start_bias is None
    warn_of_scales(with_sigmoid)
    assert not capsys.readouterr().err


def test_each_loss_sees_the_fields_that_it_takes_and_what_none_takes_is_refused():
    batch, rows = pairs(), torch.arange(6)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    more = batch._replace(past=Past(batch.text, batch.image, rows + 6))
    objective = build_objective(["softmax", "uniformity"])
    found = objective.each(more, more, rows, scale, bias)
    assert found["softmax"] == Softmax()(more, more, rows, scale, None)
    assert found["softmax"] > Softmax()(batch, batch, rows, scale, None)
    assert found["uniformity"] == Uniformity()(batch, batch, rows, scale, None)
    with pytest.raises(UserError, match="softmax and uniformity cannot use teacher"):
        objective(
            more._replace(teacher=TeacherFeatures(batch.image, batch.text)), more, rows, scale, bias
        )
    inside = build_objective(["matryoshka(loss='softmax', dims=(4,))"])
    assert inside.each(more, more, rows, scale, None)["matryoshka"] > 0


def test_what_a_run_cannot_give_its_losses_is_found_before_it_begins():
    for specs, fields, message in (
        (["softmax", "distill"], (), "distill needs teacher, which --teacher gives"),
        (["softmax"], ("past", "views"), "cannot use views. Leave out --data.image-views"),
        (["sigmoid", "matryoshka(dims=(16,))"], (), "at least 16 numbers; those of the model have"),
        (["matryoshka(loss='distill', dims=(4,))"], (), "matryoshka needs teacher"),
    ):
        with pytest.raises(UserError, match=message):
            build_objective(specs).check(fields, dim=8)
    build_objective(["softmax", "distill", "matryoshka(dims=(8,))"]).check(("teacher", "past"), 8)


def test_every_parameter_gets_a_gradient_although_no_loss_takes_it():
    batch, rows = pairs(), torch.arange(6)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0, requires_grad=True)
    build_objective(["softmax"])(batch, batch, rows, scale, bias).backward()
    assert bias.grad == 0


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "declares no start_scale"),
        ({"takes": "past"}, "takes 'past'. Write a tuple"),
        ({"takes": (), "needs": ("teachers",)}, r"needs \('teachers',\). Write a tuple"),
    ],
)
def test_a_loss_from_elsewhere_that_is_none_says_what_it_lacks(declared, message):
    if declared:
        declared |= {"start_scale": 1.0, "start_bias": None, "max_scale": 100.0}
    with pytest.raises(UserError, match=message):
        check_loss(type("Odd", (), declared)())


def test_a_loss_that_is_there_twice_is_numbered():
    objective = build_objective(["softmax", "softmax(label_smoothing=0.1)", "sigmoid"])
    assert list(objective.losses) == ["softmax", "softmax_2", "sigmoid"]


@pytest.mark.parametrize("weight", ["0", "-1", "'a'", "1e999"])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(UserError, match=r"weight is .* Write a number above 0"):
        build_objective([f"softmax(weight={weight})"])


def test_a_config_takes_one_loss_as_a_text():
    assert TrainConfig(loss="sigmoid").loss == ("sigmoid",)
    with pytest.raises(UserError, match="no loss"):
        TrainConfig(loss=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_top": 5}, r"memory-top needs past pairs. Write --memory 65536"),
        ({"memory": 8, "memory_momentum": 1.0}, r"memory_momentum is 1.0"),
        ({"image_piece": -1}, r"image_piece is -1. Write 0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)
