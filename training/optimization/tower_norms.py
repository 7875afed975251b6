"""Norms per tower: of the gradient, and of how far a step has moved the weights.

A tower whose gradient or update leaves its usual size is the first sign of a loss spike; in CLIP
it is mostly the image tower's patch embedding (Wortsman et al. 2023, arXiv:2304.13013, section 3).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

TOWERS = {"visual": "image", "text": "text"}
"""Names of the towers; scale and bias, which are neither's, are ``logits``."""


def gradient_norms(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the norm of the gradient as ``grad_norm``, and that of each tower.

    Not finite where any gradient is not.
    """
    gradients = [(name, p.grad) for name, p in encoder.named_parameters() if p.grad is not None]
    towers = _norms(gradients)
    whole = torch.stack(list(towers.values())).norm()
    return {"grad_norm": whole} | {f"grad_norm/{name}": norm for name, norm in towers.items()}


class Update:
    """The change of an encoder's trained weights over a step; holds a copy of them meanwhile."""

    @torch.no_grad()
    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._before = {
            name: p.clone() for name, p in encoder.named_parameters() if p.grad is not None
        }

    @torch.no_grad()
    def sizes(self) -> dict[str, Tensor]:
        """Return for each tower the norm of the change over the norm of the weights before it.

        About 1e-3 is usual of Adam at the peak of its learning rate.
        """
        weights, after = _norms(self._before.items()), dict(self._encoder.named_parameters())
        for name, before in self._before.items():
            before.sub_(after[name])
        changes = _norms(self._before.items())
        return {
            f"update/{name}": change / weights[name].clamp(min=1e-30)
            for name, change in changes.items()
        }


def _norms(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the norm over all tensors of each tower, by the names of parameters."""
    towers: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        towers.setdefault(TOWERS.get(name.split(".")[0], "logits"), []).append(tensor)
    return {tower: _whole(get_total_norm(own)) for tower, own in towers.items()}


def _whole(norm: Any) -> Tensor:
    """Return a norm that every process has; of sharded tensors (DTensor) each has but a part."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
