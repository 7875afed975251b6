"""One optimizer step: the gradient of the global batch, the step, and what stays behind."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import clip_grads_with_norm_

from training.compute.accumulate import average_gradients, encode, without_reduction
from training.compute.gather import gather
from training.memory import Memory
from training.optimization.guard import Verdict
from training.optimization.tower_norms import Update, gradient_norms
from training.setup import Parts
from training.similarity.diagnostics import watching
from training.similarity.matches import hard_above_match
from vlp.encoder import DualEncoder
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
) -> tuple[dict[str, Tensor], Verdict]:
    """Take one optimizer step if the guard lets it pass; return its figures and the verdict.

    The figures are those of this process's rows; the verdict is that of all. A step that is not
    taken changes nothing of the encoder and the optimizer.

    Args:
        accelerator: What the processes have in common.
        encoder: ``parts.encoder`` as the accelerator prepared it; the optimizer likewise.
        optimizer: Its rate is that of this step.
        batch: This process's pairs.
        parts: The objective, the pieces that towers encode at a time, the largest gradient, the
            guard, the moving average.
        memory: Past pairs that the losses see, too, and that this step's are pushed to.
        is_watched: Also give the batch's diagnostics and the update's size.
    """
    batch = _to(batch, accelerator.device)
    statistics = _running_statistics(parts.encoder)
    before = [value.clone() for value in statistics]
    figures, world = forward_backward(
        accelerator, encoder, batch, parts, memory=memory, is_watched=is_watched
    )
    accelerator.unscale_gradients()  # of fp16
    figures |= gradient_norms(parts.encoder)
    verdict = _judge(accelerator, parts, figures, batch, world)
    if verdict.action == "take":
        update = Update(parts.encoder) if is_watched else None
        if parts.clip_norm:
            clip_grads_with_norm_(encoder.parameters(), parts.clip_norm, figures["grad_norm"])
        optimizer.step()
        _limit_scale(parts)
        figures |= update.sizes() if update else {}
        _follow(accelerator, parts, memory, batch, world)
    else:
        for value, kept in zip(statistics, before, strict=True):
            value.copy_(kept)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # as the optimizer's step would have
    optimizer.zero_grad(set_to_none=True)
    return figures, verdict


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
    features are those of every process, without graphs, and the past that the losses saw.
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
    if is_watched and local.hard_text is not None:
        figures["batch/hard_above_match"] = hard_above_match(local)
    features = Pairs(
        world.image.detach(), world.text.detach(), world.group, world.seed, past=world.past
    )
    return {name: value.detach() for name, value in figures.items()}, features


def cut_captions(encoder: DualEncoder, batch: Batch) -> Batch:
    """Return the batch without the places of captions that are padding in all of them.

    Processes may cut to different lengths: a feature does not depend on it, but by rounding.
    """
    tokens = {name: getattr(batch, name) for name in ("tokens", "text_views", "hard_tokens")}
    tokens = {name: value for name, value in tokens.items() if value is not None}
    length = max(encoder.caption_length(value.flatten(0, -2)) for value in tokens.values())
    return batch._replace(**{name: value[..., :length] for name, value in tokens.items()})


def over_processes(accelerator: Accelerator, figures: dict[str, Tensor]) -> dict[str, float]:
    """Return the figures of the global batch: means, or the least and largest of min and max.

    Those that are not finite are left out: the guard tells of loss and gradient, and a batch of one
    group has no non-matches.
    """
    own = torch.stack([value.float() for value in figures.values()])
    every: Any = accelerator.gather(own[None])  # [processes, figures]
    rows = {"min": every.amin(0), "max": every.amax(0)}
    values = {
        name: rows.get(name.rpartition("/")[2], every.mean(0))[place].item()
        for place, name in enumerate(figures)
    }
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _judge(
    accelerator: Accelerator, parts: Parts, figures: dict[str, Tensor], batch: Batch, world: Pairs
) -> Verdict:
    """Return what is done with the step, the same on every process: the one wait for the device."""
    own = torch.stack([figures["loss"].float(), figures["grad_norm"].float()])
    mean: Any = accelerator.reduce(own, reduction="mean")
    loss, norm = mean.tolist()
    trained = sum(p.grad is not None for p in parts.encoder.parameters())
    kind = [trained, batch.images.shape[-1], len(world.past.group) if world.past else 0]
    scaler = accelerator.scaler
    is_rescaled = not math.isfinite(norm) and scaler is not None and scaler.get_scale() > 1
    return parts.guard.judge(loss, norm, kind=kind, is_rescaled=is_rescaled)


def _follow(
    accelerator: Accelerator, parts: Parts, memory: Memory | None, batch: Batch, world: Pairs
) -> None:
    """Let the moving average and the memory follow the encoder after a step."""
    if parts.average is not None:
        parts.average.update(parts.encoder)
    if memory is not None:
        if memory.key_encoder is not None:
            with accelerator.autocast():
                world = memory.keys(parts.encoder, batch, parts.pieces)
        memory.push(world)


def _running_statistics(encoder: nn.Module) -> list[Tensor]:
    """Return what a forward pass changes of norms that are trained: a bad one would spoil it."""
    norms = [m for m in encoder.modules() if isinstance(m, _NormBase) and m.training]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


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
