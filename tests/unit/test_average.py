"""The moving average of the weights, and who takes it for the model of a run."""

import copy

import pytest
import torch
from training_support import VIT

from training.config import TrainConfig
from training.optimization.average import Average
from vlp.checkpoint import find_checkpoint, load_encoder, load_weights, save_encoder
from vlp.encoder import create_encoder
from vlp.errors import UserError
from vlp.manifest import seal


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return create_encoder({"model_cfg": VIT}).train()


def test_the_average_is_that_of_the_plain_definition_with_a_decay_that_warms_up(towers):
    average = Average(towers, 0.6)
    name = "visual.proj"
    wanted = towers.state_dict()[name].double()
    for number in range(8):
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter += torch.randn_like(parameter)
        average.update(towers)
        decay = min(0.6, (1 + number) / (10 + number))
        wanted = decay * wanted + (1 - decay) * towers.state_dict()[name].double()
    found = average.encoder.state_dict()[name].double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert not average.encoder.training
    assert not any(p.requires_grad for p in average.encoder.parameters())


def test_weights_that_stay_are_their_own_average_to_the_bit(towers):
    average = Average(towers, 0.9999)
    for _ in range(5):
        average.update(towers)
    assert all(map(torch.equal, average.encoder.parameters(), towers.parameters()))


def test_buffers_are_copied(encoder):
    trained = copy.deepcopy(encoder)
    average = Average(trained, 0.9)
    running = {n: b for n, b in trained.named_buffers() if "running" in n or "num_batches" in n}
    assert running
    for value in running.values():
        value += 3
    average.update(trained)
    own = dict(average.encoder.named_buffers())
    assert all(torch.equal(own[name], value) for name, value in running.items())


def test_the_model_of_a_run_is_its_average_and_of_a_checkpoint_its_own(towers, tmp_path, capsys):
    folder = tmp_path / "run" / "checkpoints" / "step_0000002"
    (folder / "ema").mkdir(parents=True)
    save_encoder(towers, folder)
    average = Average(towers, 0.9)
    with torch.no_grad():
        for parameter in average.encoder.parameters():
            parameter += 1
    save_encoder(average.encoder, folder / "ema")
    seal(folder)
    for name, wanted in ((tmp_path / "run", average.encoder), (folder, towers)):
        found = load_encoder(name)
        assert all(map(torch.equal, found.parameters(), wanted.parameters()))
    assert "the moving average of its weights is taken" in capsys.readouterr().out
    load_weights(towers, folder / "ema")
    assert all(map(torch.equal, towers.parameters(), average.encoder.parameters()))
    (folder / "ema" / "open_clip_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        find_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match=r"Write 0 up to below 1, as 0.9999"):
        TrainConfig(ema=decay)
