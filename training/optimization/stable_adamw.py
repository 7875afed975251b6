"""AdamW whose step shrinks where its second moment lags behind the gradient."""

from typing import Any

import torch


class StableAdamW(torch.optim.Optimizer):
    """AdamW with Adafactor's update clipping (Wortsman et al. 2023, algorithm 2).

    Loss spikes follow when a gradient grows faster than its running square: the update is then
    far longer than the learning rate says. Here the rate of each tensor is divided by the root
    mean square of gradient / sqrt(second moment), where that is above 1; so no clipping of the
    whole gradient is needed. The bias of both moments is taken out by betas that grow to theirs.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, self.state[parameter], group)


def _step(parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = 0
        state["mean"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["square"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    state["step"] += 1
    gradient, mean, square = parameter.grad, state["mean"], state["square"]
    assert gradient is not None
    beta1, beta2 = (_debiased(beta, state["step"]) for beta in group["betas"])
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    surprise = (gradient.square() / square.clamp(min=group["eps"] ** 2)).mean().sqrt()
    rate = group["lr"] / surprise.clamp(min=1.0)
    update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter
    parameter.sub_(rate * update)


def _debiased(beta: float, step: int) -> float:
    """Return the beta of a step from 1: 0 at first, then up to ``beta``."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)
