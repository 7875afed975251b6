"""Stages at work: what is frozen keeps its batch-norm statistics, and pictures change size."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from data_pipelines.loader import Loader
from training.optimization.groups import frozen_names
from training.optimization.schedule import Schedule
from training.options import OptimizerConfig
from vlp.types import Batch


def freeze(encoder: nn.Module, frozen: set[str]) -> None:
    """Train all of an encoder but what is named; its frozen norms use the statistics they have.

    The optimizer leaves out what has no gradient, so its state of a frozen parameter waits.
    """
    encoder.train()
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name not in frozen)
    trained = trained_norms(encoder, frozen)
    for name, module in encoder.named_modules():
        if isinstance(module, _NormBase):
            module.train(name in trained)


def trained_norms(encoder: nn.Module, frozen: set[str]) -> set[str]:
    """Return the names of the batch norms that are not wholly in what is frozen."""
    found = set()
    for name, module in encoder.named_modules():
        if isinstance(module, _NormBase):
            # A norm without weights goes with what it lies in.
            owner = name if module.affine else name.rpartition(".")[0]
            inside = [
                f"{owner}.{own}" for own, _ in encoder.get_submodule(owner).named_parameters()
            ]
            if not inside or not frozen.issuperset(inside):
                found.add(name)
    return found


class StagedEncoder:
    """The encoder as the present stage trains it, wrapped for the processes."""

    def __init__(
        self,
        encoder: nn.Module,
        accelerator: Accelerator,
        schedule: Schedule,
        options: OptimizerConfig,
    ) -> None:
        self._encoder, self._accelerator, self._schedule = encoder, accelerator, schedule
        fixed = {name for name, p in encoder.named_parameters() if not p.requires_grad}
        self._frozen = [fixed | frozen_names(encoder, options, stage) for stage in schedule.stages]
        self.stage = -1
        """Number of the present stage."""
        self._wrapped = encoder

    def at(self, samples_seen: int) -> nn.Module:
        """Return the module to call for the step that begins after this many samples."""
        stage = self._schedule.stage_at(samples_seen)
        if stage != self.stage:
            is_first, self.stage = self.stage < 0, stage
            freeze(self._encoder, self._frozen[stage])
            if is_first and isinstance(self._encoder, FSDPModule):
                # Its hooks do what a wrapper would: only autocast is left to prepare.
                self._wrapped = self._accelerator.prepare_model(self._encoder, evaluation_mode=True)
            elif is_first:
                self._wrapped = self._accelerator.prepare(self._encoder)
            elif isinstance(self._wrapped, DistributedDataParallel):
                self._wrapped = self._wrap_again(self._wrapped)
        return self._wrapped

    def _wrap_again(self, wrapped: DistributedDataParallel) -> nn.Module:
        """Wrap anew: data parallelism waits for the gradients that it knew of when it was made."""
        wrapped._remove_autograd_hooks()
        encoder = self._accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        return self._accelerator.prepare(encoder)


def staged_batches(
    loader: Loader, schedule: Schedule, samples_seen: int, passed_over: int = 0
) -> Generator[Batch]:
    """Yield the batches that follow, with pictures of each stage's size.

    Samples passed over count in the data alone: stages begin after as many samples seen.
    """
    reader = loader.reader
    full = reader.image_size
    try:
        while True:
            side = schedule.image_size(samples_seen)
            loader.reader = replace(reader, image_size=(side, side) if side else full)
            with closing(loader.batches(samples_seen + passed_over)) as batches:
                while schedule.image_size(samples_seen) == side:
                    yield next(batches)
                    samples_seen += reader.plan.batch_size
    finally:
        loader.reader = reader
