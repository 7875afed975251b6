"""Features from every process, with gradients: the one place where a batch meets its world.

The convention of every loss here: all processes have the same number of pairs; the loss of a
process is the mean over its rows; the mean over processes is the loss of the global batch. The
backward pass sums what every process owes to a feature, and data parallelism averages parameters'
gradients, so a batch split over processes has exactly the gradient of the whole.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from vlp.types import Pairs


def gather(local: Pairs) -> tuple[Pairs, Int64[Tensor, "batch"]]:
    """Return the pairs of every process in rank order, and the rows that are this process's.

    Features, views and hard captions carry gradients to the process that made them; groups, seed
    and teacher do not. The past is the same on every process, and is not gathered.
    """
    num_pairs = len(local.image)
    if num_processes() == 1:
        return local, torch.arange(num_pairs, device=local.image.device)
    rows = torch.arange(num_pairs, device=local.image.device) + dist.get_rank() * num_pairs
    world = local._replace(
        image=_GatherRows.apply(local.image),
        text=_GatherRows.apply(local.text),
        group=_gather(local.group),
        seed=_gather(local.seed),
    )
    for name in ("views", "text_views"):
        views = getattr(local, name)
        if views is not None:
            views = _GatherRows.apply(views.transpose(0, 1).contiguous())  # [world, views, dim]
            world = world._replace(**{name: views.transpose(0, 1)})
    if local.hard_text is not None:
        world = world._replace(hard_text=_GatherRows.apply(local.hard_text))
    if local.hard_group is not None:
        world = world._replace(hard_group=_gather(local.hard_group))
    if local.teacher is not None:
        taught = {name: _gather(getattr(local.teacher, name)) for name in ("image", "text")}
        world = world._replace(teacher=local.teacher._replace(**taught))
    return world, rows


def num_processes() -> int:
    """Return how many processes train together; 1 where none were started."""
    is_started = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if is_started else 1


class _GatherRows(torch.autograd.Function):
    """All-gather along the first axis; backward sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy, since autograd may hand the same gradient to others. all_reduce and not
        # reduce_scatter, which gloo lacks for some types.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, dist.ReduceOp.SUM)
        start = dist.get_rank() * ctx.num_rows
        return total[start : start + ctx.num_rows]


def _gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)
