"""The moving average of an encoder's weights (EMA), which is often better than the newest."""

import copy
from typing import Any

import torch
from torch import nn

from vlp.encoder import DualEncoder


class Average:
    """An encoder whose weights follow those of another: ``decay`` of its own stay in each update.

    Of ``n`` updates before, the decay is at most (1 + n) / (10 + n), so that the random weights of
    the start are soon forgotten (TensorFlow's ExponentialMovingAverage with num_updates). Buffers,
    such as batch-norm statistics, are copied.
    """

    def __init__(self, encoder: DualEncoder, decay: float) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def update(self, encoder: DualEncoder) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        follow(self.encoder, encoder, 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all but the weights, which are a checkpoint of their own."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Become what it was, but for the weights."""
        self.updates = state["updates"]


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, share: float) -> None:
    """Move weights a share of the way to another module's, in [0, 1]; buffers become its own."""
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), share)
    for own, other in zip(follower.buffers(), leader.buffers(), strict=True):
        own.copy_(other)
