"""Every optimizer that can run here takes a step, and goes on exactly from its saved state."""

import io

import pytest
import torch

from training.optimization.optimizers import build_optimizer, optimizer_names
from training.optimization.stable_adamw import StableAdamW
from training.options import OptimizerConfig
from vlp.errors import UserError

ELSEWHERE = ("bnb", "fused", "adahessian")
HERE = [name for name in optimizer_names() if not name.startswith(ELSEWHERE)]


class Steps:
    """A small network that is trained on drawn numbers."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
        parameters = list(self.net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = build_optimizer(OptimizerConfig(name=name, learning_rate=1e-2), groups)

    def take(self, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            self.net(torch.randn(5, 8)).pow(3).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def saved(self) -> dict:
        """Return the state as a file gives it back."""
        file = io.BytesIO()
        torch.save([self.net.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", HERE)
def test_an_optimizer_goes_on_exactly_from_its_saved_state(name):
    whole, cut = Steps(name), Steps(name)
    before = [parameter.clone() for parameter in whole.net.parameters()]
    whole.take(0, 4)
    assert all(not torch.equal(a, b) for a, b in zip(before, whole.net.parameters(), strict=True))
    cut.take(0, 2)
    weights, state = cut.saved()
    cut = Steps(name)
    cut.net.load_state_dict(weights)
    cut.optimizer.load_state_dict(state)
    cut.take(2, 4)
    for a, b in zip(whole.net.parameters(), cut.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_options_reach_an_optimizer_of_timm():
    parameters = [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.3}]
    options = OptimizerConfig(name="lion(caution=True)", learning_rate=0.01, beta1=0.8, beta2=0.9)
    (group,) = build_optimizer(options, parameters).param_groups
    assert (group["lr"], group["betas"], group["caution"]) == (0.01, (0.8, 0.9), True)
    assert group["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stableadam", r"no optimizer 'stableadam'. Did you mean stable_adamw"),
        ("lion(speed=2)", r"Cannot make the optimizer lion\(speed=2\)"),
        ("adahessian", "needs second derivatives"),
        ("kron", "no optimizer 'kron'"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_a_line(name, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(
            OptimizerConfig(name=name), [{"params": [torch.nn.Parameter(torch.ones(2))]}]
        )


def test_stable_adamw_is_the_papers_algorithm():
    torch.manual_seed(1)
    parameter = torch.nn.Parameter(torch.randn(3))
    gradients = [torch.randn(3) * size for size in (1.0, 0.1, 30.0)]
    optimizer = StableAdamW([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2)
    wanted, mean, square = parameter.detach().clone(), torch.zeros(3), torch.zeros(3)
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        v, u = mean / (1 - 0.9**step), square / (1 - 0.99**step)
        rms = (gradient**2 / u.clamp(min=1e-12)).mean().sqrt()
        rate = 0.1 / max(1.0, rms.item())
        wanted = wanted - rate * 0.2 * wanted - rate * v / (u.sqrt() + 1e-6)
        torch.testing.assert_close(parameter.detach(), wanted)
    assert rms > 1  # the last gradient came as a surprise
