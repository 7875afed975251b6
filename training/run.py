"""A run at work, as it begins or as its newest checkpoint left it."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from training.cadence import Cadence
from training.compute.flops import peak_flops
from training.compute.profiler import StepProfiler
from training.config import TrainConfig
from training.duration import RunLength
from training.optimization.stages import StagedEncoder
from training.remine import take_up_plan
from training.rewind import forget_skipped
from training.run_folder.folder import check_out, claim
from training.run_folder.log import RunLog
from training.setup import Parts, build_parts
from training.signals import SaveRequests
from training.state import TrainState, restore


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run at work: what the loop turns over, and where it writes."""

    config: TrainConfig
    out: Path
    accelerator: Accelerator
    parts: Parts
    state: TrainState
    encoder: StagedEncoder
    optimizer: Any
    """As the accelerator prepared it."""
    log: RunLog
    profiler: StepProfiler
    requests: SaveRequests
    length: RunLength
    steps: int
    lock: IO[str] | None
    """Of the folder, by the main process: no other may train in it meanwhile."""


def open_run(config: TrainConfig, out: Path, accelerator: Accelerator, *, overwrite: bool) -> Run:
    """Return the run as it begins, or as its newest checkpoint left it."""
    with accelerator.main_process_first():
        is_free = check_out(out, config, overwrite=overwrite)
    parts = build_parts(config, accelerator)
    lock = claim(out, config, overwrite=is_free) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()

    plan, state = parts.loader.reader.plan, _first_state(parts, accelerator)
    restore(state, out)
    take_up_plan(parts.loader, state, out)
    parts.loader.take_up(state.ledger)
    encoder = StagedEncoder(parts.encoder, accelerator, parts.schedule, config.optimizer)
    optimizer = accelerator.prepare(state.optimizer)
    is_main = accelerator.is_main_process
    if is_main:
        forget_skipped(out, state)
    return Run(
        config=config,
        out=out,
        accelerator=accelerator,
        parts=parts,
        state=state,
        encoder=encoder,
        optimizer=optimizer,
        log=RunLog(
            out,
            state.step,
            config,
            is_main=is_main,
            num_devices=accelerator.num_processes,
            peak=peak_flops(accelerator.device, accelerator.mixed_precision),
        ),
        profiler=StepProfiler(out, config.speed.profiled(), is_main=is_main),
        requests=SaveRequests(
            Cadence.parse(config.save_every, "save_every").minutes, is_main=is_main
        ),
        length=config.run_length(plan.num_samples),
        steps=config.num_steps(plan.num_samples),
        lock=lock,
    )


def _first_state(parts: Parts, accelerator: Accelerator) -> TrainState:
    """Return the state of a run that has taken no step."""
    moving = {
        "memory": parts.memory,
        "scaler": accelerator.scaler,
        "teacher": parts.teacher,
        "average": parts.average,
        "guard": parts.guard,
    }
    return TrainState(
        encoder=parts.encoder,
        optimizer=parts.optimizer,
        others={name: part for name, part in moving.items() if part is not None},
        data=parts.loader.reader.identity(),
        validation=parts.validation.identity if parts.validation else "",
        averaged=parts.averaged,
    )
