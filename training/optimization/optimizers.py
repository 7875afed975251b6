"""Optimizers by name: torch's AdamW, our StableAdamW, and timm's; a door to timm."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

from training.optimization.stable_adamw import StableAdamW
from training.options import OptimizerConfig
from vlp.errors import UserError, first_line, nearest
from vlp.spec import parse

OURS = ("adamw", "stable_adamw")
INEXACT = ("kron", "kronc", "kronw")
"""Of timm's: they keep what they need for the next step outside of their state."""


def optimizer_names() -> list[str]:
    """Return the names of all optimizers; timm's whose names begin with fused and bnb need GPUs."""
    return sorted({*OURS, *list_optimizers()} - set(INEXACT))


def build_optimizer(
    options: OptimizerConfig, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Return the optimizer that the options name, for groups of parameters.

    Betas and epsilon go to those that take two betas and an epsilon; others keep timm's own.

    Raises:
        UserError: There is no such optimizer, it refuses an argument, or it needs what is not
            installed.
    """
    name, arguments = parse(options.name)
    if name not in optimizer_names():
        raise UserError(f"There is no optimizer {name!r}. {nearest(name, optimizer_names())}")
    usual = {"lr": options.learning_rate, "eps": options.epsilon}
    betas = {"betas": (options.beta1, options.beta2)}
    try:
        if name == "adamw":
            # Fused is 6 times as fast as the loop over parameters, on CPU too.
            return torch.optim.AdamW(groups, **{**usual, **betas, "fused": True, **arguments})
        if name == "stable_adamw":
            return StableAdamW(groups, **{**usual, **betas, **arguments})
        info = get_optimizer_info(name)
        if info.second_order:
            raise UserError(f"The optimizer {name} needs second derivatives. Take another.")
        if info.num_betas != 2:
            betas = {}
        return create_optimizer_v2(groups, name, **{**usual, **betas, **arguments})
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise UserError(f"Cannot make the optimizer {options.name}: {first_line(error)}.") from None
