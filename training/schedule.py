"""Learning rate as a function of the step, and which parameters decay."""

import math

from torch import nn


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Return the rate of step 0, 1, ...: a linear warm-up to ``peak``, then a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(encoder: nn.Module, weight_decay: float) -> list[dict]:
    """Return AdamW's groups: norms, biases, scale and bias do not decay (CLIP, section 2.5)."""
    trained = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    vectors = [p for name, p in trained if p.ndim < 2]
    matrices = [p for name, p in trained if p.ndim >= 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
