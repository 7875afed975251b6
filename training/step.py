"""One optimizer step: the gradient of the global batch, the step, and what stays behind."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.accumulate import average_gradients, encode, without_reduction
from training.diagnostics import watching
from training.gather import gather
from training.memory import Memory
from training.setup import Parts
from vlp.types import Batch, Pairs


def take_step(
    accelerator: Accelerator,
    encoder: nn.Module,
    optimizer: Any,
    batch: Batch,
    parts: Parts,
    *,
    memory: Memory | None = None,
    is_watched: bool = False,
) -> dict[str, Tensor]:
    """Take one optimizer step and return its figures, those of this process's rows.

    Args:
        accelerator: What the processes have in common.
        encoder: ``parts.encoder`` as the accelerator prepared it; the optimizer likewise.
        optimizer: Its rate is that of this step.
        batch: This process's pairs.
        parts: The objective, the pieces that towers encode at a time, the largest gradient.
        memory: Past pairs that the losses see, too, and that this step's are pushed to.
        is_watched: Also give the figures of ``training/diagnostics.py``.
    """
    batch = _to(batch, accelerator.device)
    figures, world = forward_backward(
        accelerator, encoder, batch, parts, memory=memory, is_watched=is_watched
    )
    norm = accelerator.clip_grad_norm_(encoder.parameters(), parts.clip_norm or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _limit_scale(parts)
    if memory is not None:
        if memory.key_encoder is not None:
            with accelerator.autocast():
                world = memory.keys(parts.encoder, batch, parts.pieces)
        memory.push(world)
    return figures if norm is None else figures | {"grad_norm": norm}


def forward_backward(
    accelerator: Accelerator,
    encoder: nn.Module,
    batch: Batch,
    parts: Parts,
    *,
    memory: Memory | None = None,
    is_watched: bool = False,
) -> tuple[dict[str, Tensor], Pairs]:
    """Leave the gradient of the global batch in every parameter; return figures and features.

    The loss of a process is the mean over its rows, and gradients are averaged over processes: by
    data parallelism while a whole batch goes backward, by us after the last of several pieces. The
    features are those of every process, without graphs.
    """
    is_split = parts.pieces.are_several(batch)
    with without_reduction(encoder) if is_split else nullcontext():
        local, encoding = encode(encoder, batch, parts.pieces)
        if parts.teacher is not None:
            with accelerator.autocast():
                local = local._replace(teacher=parts.teacher(batch, parts.pieces))
        world, rows = gather(local)
        if memory is not None:
            is_alone, past = world is local, memory.past(world)
            local = local._replace(past=past)
            world = local if is_alone else world._replace(past=past)
        with watching() if is_watched else nullcontext() as seen:
            losses = parts.objective.each(local, world, rows, encoding.scale, encoding.bias)
        loss = parts.objective.total(losses, encoding.scale, encoding.bias)
        accelerator.backward(loss)
    if is_split:
        average_gradients(encoder.parameters())
    figures = {"loss": loss}
    if len(losses) > 1:
        figures |= {f"loss/{name}": value for name, value in losses.items()}
    figures["scale"] = encoding.scale
    if encoding.bias is not None:
        figures["bias"] = encoding.bias
    if seen is not None:
        figures |= {f"batch/{name}": value for name, value in seen.figures().items()}
    features = Pairs(world.image.detach(), world.text.detach(), world.group, world.seed)
    return {name: value.detach() for name, value in figures.items()}, features


def over_processes(accelerator: Accelerator, figures: dict[str, Tensor]) -> dict[str, float]:
    """Return the figures of the global batch: means, or the least and largest of min and max.

    What was seen of a batch is left out where it is not finite: one group has no non-matches.
    """
    own = torch.stack([value.float() for value in figures.values()])
    every: Any = accelerator.gather(own[None])  # [processes, figures]
    rows = {"min": every.amin(0), "max": every.amax(0)}
    values = {
        name: rows.get(name.rpartition("/")[2], every.mean(0))[place].item()
        for place, name in enumerate(figures)
    }
    return {
        name: value
        for name, value in values.items()
        if math.isfinite(value) or not name.startswith("batch/")
    }


def _to(batch: Batch, device: torch.device) -> Batch:
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**moved)


@torch.no_grad()
def _limit_scale(parts: Parts) -> None:
    parts.encoder.logit_scale.clamp_(max=torch.tensor(parts.objective.max_scale).log().item())
