"""The processes of a run: what they compute with, and how long they wait for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from data_pipelines.plan import check_processes
from training.config import TrainConfig
from vlp.errors import UserError

PATIENCE = timedelta(minutes=30)
"""For what one process does alone while the others wait, as writing a checkpoint or trying a shard
again. It is for a process that hangs: of one that died, its closed connections tell at once."""
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)
"""How gloo and NCCL say that another process is gone or does not answer."""


def start_processes(config: TrainConfig) -> Accelerator:
    """Return Accelerate's view of the processes and the precision of the run."""
    AcceleratorState._reset_state()  # of a run before in this process, as in the tour
    has_gpu = torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _computes_bf16(has_gpu=has_gpu) else "fp32"
    if precision == "fp16" and not has_gpu:
        raise UserError("fp16 needs a GPU. Write --precision fp32, or bf16.")
    is_one_of_several = has_gpu and "LOCAL_RANK" in os.environ
    group = InitProcessGroupKwargs(
        backend="cpu:gloo,cuda:nccl" if is_one_of_several else None, timeout=PATIENCE
    )
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=not has_gpu,
        kwargs_handlers=[group],
    )
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


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """End in one line when another process is gone, instead of with what its connection says."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise UserError(
                "Another process of the run ended or does not answer; what it or the launcher "
                "printed says why. Run the same command again to go on from the last checkpoint."
            ) from None
        raise


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone."""
    return isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in LOST)


def _computes_bf16(*, has_gpu: bool) -> bool:
    """Return whether the hardware multiplies bf16 faster than fp32, and does not imitate it."""
    if has_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
