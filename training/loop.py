"""train(config): the loop, top to bottom."""

import math
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_pipelines.plan import hash63
from training.announce import announce, report
from training.config import TrainConfig
from training.log import RunLog, note
from training.run_folder import check_out, claim, faults_written, write_faults
from training.setup import Parts, build_parts, cores_for_workers, start_processes
from training.stages import StagedEncoder, staged_batches
from training.state import TrainState, restore, save
from training.step import over_processes, take_step
from training.validation import validate
from vlp.console import progress, speaking
from vlp.errors import UserError


@dataclass(frozen=True)
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
    steps: int


def train(config: TrainConfig, out: Path, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Train a dual encoder, or go on with the run in ``out``; return the run's last figures.

    Only the main process speaks and writes; the others return None.

    Raises:
        UserError: Anything in the config, the data or the folder that the user can mend.
    """
    accelerator = start_processes(config)
    voice = nullcontext() if accelerator.is_main_process else speaking("quiet")
    with voice, cores_for_workers():
        run = _open(config, out, accelerator, overwrite=overwrite)
        announce(config, run.parts, run.state, run.steps)
        with faults_written(run.parts.loader, out):
            _turn(run)
        run.log.close()
        accelerator.end_training()
        is_main = accelerator.is_main_process
        return report(out, run.parts, run.state, run.log.figures) if is_main else None


def _open(config: TrainConfig, out: Path, accelerator: Accelerator, *, overwrite: bool) -> Run:
    """Return the run as it begins, or as its newest checkpoint left it."""
    with accelerator.main_process_first():
        is_free = check_out(out, config, overwrite=overwrite)
    parts = build_parts(config, accelerator)
    if accelerator.is_main_process:
        claim(out, config, overwrite=is_free)
    accelerator.wait_for_everyone()

    plan, identity = parts.loader.reader.plan, parts.loader.reader.identity()
    moving = {
        "memory": parts.memory,
        "scaler": accelerator.scaler,
        "teacher": parts.teacher,
    }
    others = {name: part for name, part in moving.items() if part is not None}
    state = TrainState(parts.encoder, parts.optimizer, others, identity)
    restore(state, out)
    parts.loader.take_up(state.ledger)
    encoder = StagedEncoder(parts.encoder, accelerator, parts.course, config.optimizer)
    optimizer = accelerator.prepare(state.optimizer)
    log = RunLog(out, state.step, is_main=accelerator.is_main_process)
    steps = config.num_steps(plan.num_samples)
    return Run(config, out, accelerator, parts, state, encoder, optimizer, log, steps)


def _turn(run: Run) -> None:
    """Take the steps that are left."""
    config, accelerator, parts, state = run.config, run.accelerator, run.parts, run.state
    steps, log = run.steps, run.log
    with (
        closing(staged_batches(parts.loader, parts.course, state.samples_seen)) as batches,
        progress(steps, "train") as advance,
    ):
        advance(state.step)
        while state.step < steps:
            with log.waiting():
                batch = next(batches)
            is_logged = _is_due(config.log_every, state.step + 1, steps)
            memory = parts.memory if state.samples_seen >= parts.course.schedule.warmup else None
            torch.manual_seed(_step_seed(config.seed, state.step, accelerator.process_index))
            encoder = run.encoder.at(state.samples_seen)
            rate = _set_learning_rate(run.optimizer, parts.course.rate(state.samples_seen))
            values = take_step(
                accelerator,
                encoder,
                run.optimizer,
                batch,
                parts,
                memory=memory,
                is_watched=is_logged,
            )
            state.step += 1
            state.samples_seen += config.data.batch_size
            log.count(config.data.batch_size)
            advance(1)

            if is_logged:
                _write_row(run, values, rate)
                advance(0, note(log.figures))
            if parts.validation and _is_due(config.validate_every, state.step, steps):
                if accelerator.is_main_process:
                    log.row(state, validate(parts, parts.validation))
                accelerator.wait_for_everyone()
            if _is_due(config.save_every, state.step, steps):
                _save(run)


def _write_row(run: Run, values: dict[str, torch.Tensor], rate: float) -> None:
    """Write the figures of this step, those of all processes together."""
    loader, log, state = run.parts.loader, run.log, run.state
    loader.share(gather_object)
    whole = over_processes(run.accelerator, values) | {"learning_rate": rate}
    row = log.row(state, whole | log.speed() | loader.speed())
    _check_finite(row["loss"], state)
    log.line(state.step, run.steps, row)


def _save(run: Run) -> None:
    """Write a checkpoint, which holds the ledger of the data too, and the ledger for people."""
    loader = run.parts.loader
    loader.share(gather_object)
    if run.accelerator.is_main_process:
        run.state.ledger = loader.ledger()
        save(run.state, run.out, run.config.keep)
        write_faults(loader, run.out)


def _check_finite(loss: float, state: TrainState) -> None:
    """Stop before checkpoints of a broken encoder push out the good ones."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} at step {state.step}. Lower --optimizer.learning-rate or use "
            f"--precision fp32; the last checkpoint is from before."
        )


def _step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of a step's dropout: a run that goes on draws what it would have drawn."""
    return hash63(f"{seed} {step} {process}")


def _set_learning_rate(optimizer: Any, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def _is_due(every: int, step: int, steps: int) -> bool:
    return step == steps or bool(every and step % every == 0)
