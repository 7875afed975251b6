"""FSDP2: each process holds its share of the weights, gradients and optimizer state.

``fully_shard`` is called directly, as Accelerate quietly trains with plain data parallelism on CPU.
Each process holds a slice of every parameter (a DTensor); hooks gather a block's weights before it
computes, free them after, and average its gradient into the slices. Gradients are those of plain
data parallelism, to rounding, and checkpoints are the same files (Zhao et al. 2023,
arXiv:2304.11277; the per-parameter form is torch's ``fully_shard``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from training.compute.gather import num_processes
from training.config import TrainConfig
from training.optimization.layers import tower_blocks
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.spec import parse

OPTIMIZERS = (
    *("adamw", "stable_adamw", "lamb", "lion", "adopt"),
    *("adan", "nadamw", "laprop", "adabelief", "lars"),
)
"""Those whose step on slices is that on whole parameters, as the tests show."""


def refuse_sharding(config: TrainConfig, precision: str) -> None:
    """Raise UserError where a sharded run would not be the run that it should be.

    Args:
        config: Of a run that is to be sharded.
        precision: Of the run, ``no``, ``bf16`` or ``fp16``.
    """
    name, _ = parse(config.optimizer.name)
    if name not in OPTIMIZERS:
        raise UserError(
            f"The optimizer {name} does not know parameters in slices. Write --sharding none, or "
            f"--optimizer.name with one of {', '.join(OPTIMIZERS)}."
        )
    if precision == "fp16":
        raise UserError("Sharded weights do not go with fp16. Write --precision bf16 or fp32.")


def shard(encoder: DualEncoder, precision: str) -> None:
    """Leave each process its slices of the parameters; one process keeps them whole.

    On GPUs in bf16, blocks and the text tower are gathered in bf16 and their gradients averaged in
    fp32, inside the autocast that plain data parallelism has: products are the same, norms' weights
    are rounded. The root stays in fp32: bf16 would round the scale by up to a percent. On CPU, and
    for batch norm, which wants its statistics' type, all is gathered in fp32 under autocast.
    """
    if num_processes() == 1:
        return
    device = encoder.logit_scale.device
    mesh = init_device_mesh(device.type, (num_processes(),))
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    in_bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    is_rounded = precision == "bf16" and device.type == "cuda" and not norms
    policy = in_bf16 if is_rounded else MixedPrecisionPolicy()
    encoder.to(memory_format=torch.contiguous_format)  # slices have no channels last
    # The image tower's embeddings stay with the root: their positions are resized outside of it.
    for module in (*tower_blocks(encoder), encoder.text):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    # The root, too, is freed after forward: a memory's encoder is moved on in slices.
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True)
    encoder.register_load_state_dict_pre_hook(_slice_loaded)
    if norms:
        encoder.register_forward_pre_hook(_take_first_statistics)


@contextmanager
def whole(encoder: nn.Module) -> Iterator[None]:
    """Hold all weights on every process for a while: forward needs no other process then.

    For evaluation, where processes have different numbers of batches or none.
    """
    parts = [module for module in encoder.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def gathered(content: Any) -> Any:
    """Return dicts and lists of anything, with sharded tensors whole and on CPU.

    Every process must ask; those that are not the first get None in the place of such tensors. One
    tensor at a time is whole on the device.
    """
    if isinstance(content, DTensor):
        tensor = plain(content.detach())
        return tensor.cpu() if dist.get_rank() == 0 else None
    if isinstance(content, dict):
        return {key: gathered(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(gathered(value) for value in content)
    return content


def slice_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state as a checkpoint holds it, each tensor as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        number: {name: slice_like(value, parameters[number]) for name, value in held.items()}
        for number, held in state["state"].items()
    }
    return {**state, "state": own}


def slice_like(value: Any, parameter: Tensor) -> Any:
    """Return what is as large as a parameter as the parameter is: sliced, or in its memory format.

    Fused optimizers go through memory: state of a sharded run has no channels last, and the
    weights of convolutions in any other run have. Anything else is returned as it is.
    """
    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not is_whole or value.shape != parameter.shape:
        return value
    if not isinstance(parameter, DTensor):
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
    # Every process has read the whole value: nothing need be sent.
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.contiguous(), mesh, placements, src_data_rank=None)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor whole, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _slice_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = slice_like(state[prefix + name], parameter)


def _take_first_statistics(module: nn.Module, _: Any) -> None:
    """Take the batch-norm statistics of the first process, as plain data parallelism does."""
    if module.training and torch.is_grad_enabled():  # and not while one process evaluates
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
