"""train(config): the loop, top to bottom."""

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from data_pipelines.plan import hash63
from training.announce import announce, report
from training.cadence import Cadence
from training.compute.fsdp import whole
from training.compute.processes import cores_for_workers, start_processes
from training.compute.shared_errors import errors_said_once
from training.config import TrainConfig
from training.optimization.guard import Verdict
from training.optimization.stages import staged_batches
from training.options import KeepConfig
from training.remine import is_mining_due, mine_again
from training.rewind import skip_or_rewind
from training.run import Run, open_run
from training.run_folder.card import write_card
from training.run_folder.folder import faults_written, write_faults
from training.run_folder.log import note, validation_note
from training.run_folder.report import reported, write_report
from training.run_folder.sessions import RunStatus, begin_session
from training.state import save
from training.step import cut_captions, over_processes, take_step
from training.validation import Validation, validate
from vlp.console import progress, say, speaking, warn
from vlp.errors import nearest
from vlp.types import Batch


def train(config: TrainConfig, out: Path, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Train a dual encoder, or go on with the run in ``out``; return the run's last figures.

    Only the main process speaks and writes; the others return None.

    Raises:
        UserError: Anything in the config, the data or the folder that the user can mend.
        Stopped: A signal asked the run to end; it has saved, and the same call goes on.
    """
    with errors_said_once(), cores_for_workers():
        accelerator = start_processes(config)
        is_main = accelerator.is_main_process
        with speaking(None if is_main else "quiet"):
            run = open_run(config, out, accelerator, overwrite=overwrite)
            announce(config, out, run.parts, run.state, run.steps)
            if is_main and run.state.step < run.steps:
                begin_session(out, config, accelerator, run.parts, run.state, run.steps)
            with run.requests, reported(run), faults_written(run.parts.loader, out):
                while run.state.step < run.steps and not run.requests.signal:
                    if is_mining_due(run):
                        mine_again(run)
                    _turn(run)
            run.log.close()
            accelerator.wait_for_everyone()  # a launcher ends all when one ends before it has saved
            accelerator.end_training()
            run.requests.raise_if_stopped(run.state.step, run.steps)
            return report(out, run.parts, run.state, run.log.figures) if is_main else None


def _turn(run: Run) -> None:
    """Take the steps that are left, or those until a signal, new batches, or a return."""
    config, parts, state = run.config, run.parts, run.state
    steps, log, requests, is_owed = run.steps, run.log, run.requests, False
    stream = staged_batches(parts.loader, parts.schedule, state.samples_seen, state.passed_over)
    with closing(stream) as batches, progress(steps, "train") as advance:
        advance(state.step)
        while state.step < steps and not requests.signal and not is_mining_due(run):
            run.profiler.before(state.step + 1)
            with log.waiting():
                batch = next(batches)
            is_logged = (state.step + 1) % config.log_every == 0 or state.step + 1 == steps
            values, rate, verdict = _step(run, batch, is_watched=is_logged)
            run.profiler.after(state.step, is_last=state.step == steps)
            advance(1)
            if verdict.why and skip_or_rewind(
                verdict, batch, parts.guard, state, run.out, run.accelerator
            ):
                log.go_back(state.step)
                return

            if is_logged:
                _write_row(run, values, rate)
                advance(0, note(log.figures))
            if parts.validation and _is_due(run, config.validate_every):
                _validate(run, parts.validation)
            is_owed = requests.agree() or _is_due(run, config.save_every) or is_owed
            # While steps are left out it can wait for the next that is taken, but not at an end.
            if is_owed and (not parts.guard.in_a_row or requests.signal or state.step == steps):
                _save(run)
                is_owed = False
    if state.step == steps:
        parts.loader.judge(first_reads=1)  # a run of few samples, too


def _step(
    run: Run, batch: Batch, *, is_watched: bool
) -> tuple[dict[str, torch.Tensor], float, Verdict]:
    """Take a step and count it; return its figures, its learning rate and the guard's verdict."""
    config, parts, state = run.config, run.parts, run.state
    if config.speed.cut_captions:
        batch = cut_captions(parts.encoder, batch)
    is_warm = state.samples_seen >= parts.schedule.learning_rate.warmup
    torch.manual_seed(_step_seed(config.seed, state.step, run.accelerator.process_index))
    encoder = run.encoder.at(state.samples_seen)
    rate = _set_learning_rate(run.optimizer, parts.schedule.rate(state.samples_seen))
    values, verdict = take_step(
        run.accelerator,
        encoder,
        run.optimizer,
        batch,
        parts,
        memory=parts.memory if is_warm else None,
        is_watched=is_watched,
    )
    state.step += 1
    state.samples_seen += config.data.batch_size
    run.log.count(config.data.batch_size, parts.flops.of(batch, run.encoder.stage))
    return values, rate, verdict


def _write_row(run: Run, values: dict[str, torch.Tensor], rate: float) -> None:
    """Write the figures of this step, those of all processes together."""
    loader, log, state = run.parts.loader, run.log, run.state
    loader.share(gather_object)
    figures = over_processes(run.accelerator, values) | {"learning_rate": rate}
    figures |= run.parts.guard.figures
    row = log.row(state, figures | log.speed() | loader.speed())
    log.line(state.step, run.steps, row)


def _validate(run: Run, validation: Validation) -> None:
    """Write and say how the encoder does on held-out shards, which all processes find out."""
    parts = run.parts
    encoder = parts.averaged or parts.encoder
    with whole(encoder):
        figures = validate(encoder, validation, parts.objective)
    run.log.row(run.state, figures)
    say(f"step {run.state.step}/{run.steps}  {validation_note(figures)}")
    best = run.config.keep.best
    if best.startswith("validation/") and best not in figures and run.accelerator.is_main_process:
        known = nearest(best, figures)
        warn(f"No checkpoint is kept as the best: there is no figure {best!r}. {known}")


def _save(run: Run) -> None:
    """Write a checkpoint, which holds the ledger of the data too, and the ledger for people.

    While steps are left out it pushes out no other: the weights may be broken.
    """
    loader = run.parts.loader
    keep = KeepConfig(every=1) if run.parts.guard.in_a_row else run.config.keep
    loader.share(gather_object)
    moving = run.state.moving()
    if run.accelerator.is_main_process:
        run.state.ledger = loader.ledger()
        run.log.flush()
        save(run.state, moving, run.out, keep)
        write_faults(loader, run.out)
        step, samples_seen = run.state.step, run.state.samples_seen
        write_card(run.out, step=step, samples_seen=samples_seen)
        write_report(run.out, RunStatus(step, samples_seen))


def _step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of a step's dropout: a run that goes on draws what it would have drawn."""
    return hash63(f"{seed} {step} {process}")


def _set_learning_rate(optimizer: Any, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def _is_due(run: Run, every: str) -> bool:
    """Return whether what is done so often, and at the end, is due after this step."""
    seen, batch_size = run.state.samples_seen, run.config.data.batch_size
    is_crossed = Cadence.parse(every, "every").is_due(seen - batch_size, seen, run.length)
    return run.state.step == run.steps or is_crossed
