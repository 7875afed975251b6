"""The guard: what it lets pass, what it finds to be a spike, and that it forgets nothing."""

import statistics

import numpy as np
import pytest
import torch
from training_support import VIT, colours

from training import step
from training.compute.processes import start_processes
from training.config import TrainConfig
from training.losses.softmax import Softmax
from training.optimization.guard import Guard
from training.optimization.tower_norms import Update, gradient_norms
from training.options import DataConfig, GuardConfig, ModelConfig, OptimizerConfig
from training.setup import build_parts
from vlp.encoder import create_encoder
from vlp.errors import UserError

NAN, INF = float("nan"), float("inf")


def actions(guard: Guard, *losses: float, norm: float = 1.0, kind: int = 0) -> list[str]:
    return [guard.judge(loss, norm, kind=[kind]).action for loss in losses]


def noise(count: int, seed: int = 0) -> list[float]:
    return (3 + 0.1 * np.random.default_rng(seed).standard_normal(count)).tolist()


def test_what_is_not_finite_is_left_out_and_too_often_in_a_row_stops_the_run():
    guard = Guard(GuardConfig(patience=3))
    assert actions(guard, NAN, INF, 1.0, NAN, NAN, NAN) == [
        *("skip", "skip", "take"),
        *("skip", "skip", "stop"),
    ]
    assert actions(Guard(GuardConfig()), 1.0, norm=INF) == ["skip"]
    assert guard.figures == {"guard/skipped": 5, "guard/spikes": 0}


def test_a_gradient_that_fp16_has_overflowed_does_not_count_while_its_scale_can_fall():
    guard = Guard(GuardConfig(patience=2))
    for _ in range(5):
        verdict = guard.judge(1.0, INF, kind=[], is_rescaled=True)
        assert (verdict.action, verdict.why) == ("skip", "")
    assert guard.judge(1.0, INF, kind=[]).why == "the gradient is inf"
    assert guard.judge(NAN, INF, kind=[], is_rescaled=True).action == "stop"


def test_spikes_are_those_of_the_plain_definition():
    random = np.random.default_rng(1)
    losses, norms = 3 + 0.1 * random.standard_t(2, size=(2, 400))
    guard, found = Guard(GuardConfig(window=64, spike=5.0)), []
    for loss, norm in zip(losses.tolist(), norms.tolist(), strict=True):
        found.append(bool(guard.judge(loss, norm, kind=[]).why))
    wanted = []
    for now in range(400):
        is_spike = False
        for values in (losses, norms):
            window = values[max(0, now - 64) : now]
            if len(window) >= 32:
                middle = statistics.median(window)
                deviation = 1.4826 * statistics.median([abs(x - middle) for x in window])
                is_spike |= values[now] > middle + 5 * max(deviation, 0.01 * middle)
        wanted.append(bool(is_spike))
    assert found == wanted
    assert 0 < sum(found) < 40


@pytest.mark.parametrize("on_spike", ["note", "skip", "rewind"])
def test_what_is_done_about_a_spike_is_what_was_asked_for(on_spike):
    guard = Guard(GuardConfig(window=16, on_spike=on_spike, patience=4))
    assert set(actions(guard, *noise(16))) == {"take"}
    verdict = guard.judge(9.0, 1.0, kind=[0])
    assert verdict.action == {"note": "take"}.get(on_spike, on_spike)
    assert verdict.why.startswith("the loss is 9, ")
    last = actions(guard, NAN, NAN, NAN, NAN)[-1]
    assert last == ("rewind" if on_spike == "rewind" else "stop")


def test_nothing_is_a_spike_where_none_is_looked_for_or_the_level_is_another_for_a_reason():
    assert set(actions(Guard(GuardConfig(window=8, spike=0)), *noise(8), 99.0)) == {"take"}
    guard = Guard(GuardConfig(window=8, on_spike="skip"))
    assert set(actions(guard, *noise(8))) == {"take"}
    assert set(actions(guard, *(x + 9 for x in noise(8)), kind=1)) == {"take"}


def test_a_new_level_is_the_usual_one_after_half_a_window():
    guard = Guard(GuardConfig(window=16))
    told = [bool(guard.judge(x, 1.0, kind=[]).why) for x in [*noise(16), *[8.0] * 12]]
    assert told[16:] == [True] * 8 + [False] * 4


def test_a_guard_that_is_restored_judges_as_if_it_had_never_stopped():
    losses = [*noise(20), NAN, 9.0, *noise(10, seed=1), NAN, NAN]
    guard = Guard(GuardConfig(window=16, on_spike="skip", patience=3))
    whole = actions(guard, *losses)
    for cut in (5, 21, 22, 33):
        first = Guard(guard.options)
        begun, second = actions(first, *losses[:cut]), Guard(guard.options)
        second.load_state_dict(first.state_dict())
        assert begun + actions(second, *losses[cut:]) == whole
        assert second.state_dict() == guard.state_dict()


def test_a_guard_that_is_restored_knows_how_often_the_run_went_back():
    guard, other = Guard(GuardConfig()), Guard(GuardConfig())
    guard.returns[4] += 2
    other.returns[9] += 1
    other.load_state_dict(guard.state_dict())
    assert other.returns == {4: 2}
    other.returns[4] += 1
    assert guard.returns == {4: 2}
    del (older := guard.state_dict())["returns"]  # of a checkpoint from before they were kept
    other.load_state_dict(older)
    assert not other.returns


def test_norms_of_towers_are_those_of_all_their_gradients_and_changes():
    encoder = create_encoder({"model_cfg": VIT}).train()
    for number, parameter in enumerate(encoder.parameters()):
        parameter.grad = torch.full_like(parameter, number / 100)
    encoder.text.ln_final.weight.grad = None
    norms = gradient_norms(encoder)
    kinds = {"visual": "image", "text": "text"}
    update = Update(encoder)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    sizes = update.sizes()
    for tower in ("image", "text", "logits"):
        own = [n for n in before if kinds.get(n.split(".")[0], "logits") == tower]
        own = [n for n in own if n != "text.ln_final.weight"]
        after = dict(encoder.named_parameters())
        gradient = torch.cat([after[n].grad.flatten() for n in own]).norm()
        change = torch.cat([(after[n].detach() - before[n]).flatten() for n in own]).norm()
        weight = torch.cat([before[n].flatten() for n in own]).norm()
        torch.testing.assert_close(norms[f"grad_norm/{tower}"], gradient, rtol=1e-4, atol=0)
        torch.testing.assert_close(sizes[f"update/{tower}"], change / weight, rtol=1e-4, atol=0)
    whole = torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    torch.testing.assert_close(norms["grad_norm"], whole)


def test_a_step_that_is_not_taken_changes_nothing(tmp_path, monkeypatch):
    config = TrainConfig(
        model=ModelConfig(name="tiny"),  # its image tower has batch norm
        data=DataConfig(
            shards=(str(colours(tmp_path / "d", 32)),), batch_size=8, workers=0, lanes=1
        ),
        optimizer=OptimizerConfig(warmup="0%"),
        memory=16,
        memory_momentum=0.9,
        ema=0.9,
        precision="fp32",
    )
    accelerator = start_processes(config)
    parts = build_parts(config, accelerator)
    encoder, optimizer = accelerator.prepare(parts.encoder.train(), parts.optimizer)
    batches = parts.loader.batches(0)

    def turn() -> str:
        return step.take_step(
            accelerator, encoder, optimizer, next(batches), parts, memory=parts.memory
        )[1].action

    def everything() -> list[torch.Tensor]:
        held = [parts.encoder, parts.averaged, parts.memory]
        moments = [v for s in parts.optimizer.state.values() for v in s.values()]
        return [t.clone() for part in held for t in part.state_dict().values()] + moments

    assert turn() == "take"
    before = [t.clone() for t in everything()]
    call = Softmax.__call__
    monkeypatch.setattr(Softmax, "__call__", lambda *given: call(*given) * NAN)
    assert turn() == "skip"
    assert all(map(torch.equal, before, everything()))
    assert all(p.grad is None for p in parts.encoder.parameters())
    monkeypatch.undo()
    assert turn() == "take"
    assert not all(map(torch.equal, before, everything()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patience": 0}, "guard.patience is 0. Write 1 or more"),
        ({"window": 3}, "guard.window is 3. Write 8 or more"),
        ({"rewinds": 0}, "guard.rewinds is 0"),
        ({"spike": -1.0}, "guard.spike is -1.0. Write a number such as 10, or 0"),
        ({"spike": NAN}, "guard.spike is nan"),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong, message):
    with pytest.raises(UserError, match=message):
        GuardConfig(**wrong)
