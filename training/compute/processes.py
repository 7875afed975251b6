"""The processes of a run: what they compute with, and how long they wait for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from data_pipelines.plan import check_processes
from training.config import TrainConfig
from vlp.console import warn
from vlp.errors import UserError, said_by_first_process

PATIENCE = timedelta(minutes=30)
"""For what one process does alone while the others wait, as writing a checkpoint or trying a shard
again. It is for a process that hangs: of one that died, its closed connections tell at once."""

LAUNCHER_DEFAULTS = {
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
"""What `accelerate launch` may set for Accelerate, and how a run needs it. Its precision is not
read: a run has its own."""


def start_processes(config: TrainConfig) -> Accelerator:
    """Return Accelerate's view of the processes and the precision of the run."""
    AcceleratorState._reset_state()  # of a run before in this process, as in the tour
    has_gpu = torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _computes_bf16(has_gpu=has_gpu) else "fp32"
    with said_by_first_process():
        if precision == "fp16" and not has_gpu:
            raise UserError("fp16 needs a GPU. Write --precision fp32, or bf16.")
        _refuse_launcher_options()
    is_one_of_several = has_gpu and "LOCAL_RANK" in os.environ
    group = InitProcessGroupKwargs(
        backend="cpu:gloo,cuda:nccl" if is_one_of_several else None, timeout=PATIENCE
    )
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=not has_gpu,
        kwargs_handlers=[group],
    )
    _warn_of_one_process()
    check_processes(config.data.batch_size, accelerator.num_processes)
    return accelerator


@contextmanager
def cores_for_workers() -> Iterator[None]:
    """Leave two cores to the workers, however many they are, unless OMP_NUM_THREADS is set.

    Threads of one kernel wait for each other: two of them on two cores, one of which is busy
    reading, took ten times as long as one (measured). Their number changes rounding, so a run
    that goes on with other workers keeps it.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else before
        own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, own - 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_launcher_options() -> None:
    """Raise UserError where `accelerate launch` would change a run: Accelerate reads it by itself.

    It would wrap and compile the encoder its own way, and divide the loss by what it accumulates.
    """
    changed = [
        name
        for name, usual in LAUNCHER_DEFAULTS.items()
        if os.environ.get(name, usual).lower() != usual
    ]
    if changed:
        raise UserError(
            f"`accelerate launch`, or its config, sets {' and '.join(changed)}. Leave that out, "
            f"or use torchrun, and write --sharding fsdp, --image-piece or --speed.compile."
        )


def _warn_of_one_process() -> None:
    """Warn where several processes were asked for: without GPUs the launcher starts one."""
    # It names a port to meet at then, but no rank.
    if {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys() and "RANK" not in os.environ:
        warn(
            "`accelerate launch` started one process and not several, as it does with --cpu. Write "
            "`accelerate launch --multi_gpu --num_processes N`, on CPUs, too, or `torchrun "
            "--nproc-per-node=N`."
        )


def _computes_bf16(*, has_gpu: bool) -> bool:
    """Return whether the hardware multiplies bf16 faster than fp32, and does not imitate it."""
    if has_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
