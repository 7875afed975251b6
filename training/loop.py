"""train(config): the loop, top to bottom."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_pipelines.loader import Loader, worker_error
from data_pipelines.plan import Plan, hash63
from data_pipelines.sources import find_shards
from training.config import TrainConfig
from training.log import RunLog, note
from training.setup import Parts, build_parts, cores_for_workers, start_processes
from training.stages import StagedEncoder, staged_batches
from training.state import TrainState, restore, save
from training.step import over_processes, take_step
from training.validation import validate
from vlp.checkpoint import list_checkpoints, paths_of
from vlp.console import progress, say, speaking
from vlp.errors import UserError
from vlp.output import check_output, read_record, remove_output, write_json, write_record

FREE_TO_CHANGE = (
    "data.shards",
    "data.keep",
    "data.workers",
    "data.max_bad",
    "log_every",
    "save_every",
    "keep.last",
    "keep.every",
    "keep.best",
    "validate_every",
    "image_piece",
    "text_piece",
)
"""Fields that a run may go on with other values of: they change nothing but rounding. Of
moved shards the checkpoint knows the names and counts."""
FAULTS = "faults.json"


def train(config: TrainConfig, out: Path, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Train a dual encoder, or go on with the run in ``out``; return the run's last figures.

    Only the main process speaks and writes; the others return None.

    Raises:
        UserError: Anything in the config, the data or the folder that the user can mend.
    """
    accelerator = start_processes(config)
    voice = nullcontext() if accelerator.is_main_process else speaking("quiet")
    with voice, cores_for_workers():
        return _train(config, out, accelerator, overwrite=overwrite)


def _train(
    config: TrainConfig, out: Path, accelerator: Accelerator, *, overwrite: bool
) -> dict[str, Any] | None:
    is_main = accelerator.is_main_process
    with accelerator.main_process_first():
        is_free = _check_out(out, config, overwrite=overwrite)
    parts = build_parts(config, accelerator)
    if is_main:
        _claim(out, config, overwrite=is_free)
    accelerator.wait_for_everyone()

    plan, identity = parts.loader.reader.plan, parts.loader.reader.identity()
    state = TrainState(parts.encoder, parts.optimizer, accelerator.scaler, parts.memory, identity)
    restore(state, out)
    parts.loader.take_up(state.ledger)
    staged = StagedEncoder(parts.encoder, accelerator, parts.course, config.optimizer)
    optimizer = accelerator.prepare(state.optimizer)
    steps = config.num_steps(plan.num_samples)
    _announce(config, parts, state, steps)

    log = RunLog(out, state.step, is_main=is_main)
    figures = log.figures
    with (
        closing(staged_batches(parts.loader, parts.course, state.samples_seen)) as batches,
        _ledger(parts.loader, out),
        progress(steps, "train") as advance,
    ):
        advance(state.step)
        while state.step < steps:
            with log.waiting():
                batch = next(batches)
            is_logged = _is_due(config.log_every, state.step + 1, steps)
            memory = state.memory if state.samples_seen >= parts.course.schedule.warmup else None
            torch.manual_seed(_step_seed(config.seed, state.step, accelerator.process_index))
            encoder = staged.at(state.samples_seen)
            rate = _set_learning_rate(optimizer, parts.course.rate(state.samples_seen))
            values = take_step(
                accelerator, encoder, optimizer, batch, parts, memory=memory, is_watched=is_logged
            )
            state.step += 1
            state.samples_seen += config.data.batch_size
            log.count(config.data.batch_size)
            advance(1)

            if is_logged:
                parts.loader.share(gather_object)
                whole = over_processes(accelerator, values) | {"learning_rate": rate}
                figures |= log.row(state, whole | log.speed() | parts.loader.speed())
                _check_finite(figures["loss"], state)
                log.line(state.step, steps, figures)
                advance(0, note(figures))
            if parts.validation and _is_due(config.validate_every, state.step, steps):
                if is_main:
                    figures |= log.row(state, validate(parts, parts.validation))
                accelerator.wait_for_everyone()
            if _is_due(config.save_every, state.step, steps):
                _save(state, parts.loader, out, config, is_main=is_main)
    log.close()
    accelerator.end_training()
    return _report(out, parts, state, figures) if is_main else None


def _check_out(out: Path, config: TrainConfig, *, overwrite: bool) -> bool:
    """Raise UserError unless the run may be written to ``out``; return whether it starts anew."""
    # A run that ended before its first checkpoint has nothing to lose.
    is_free = overwrite or (is_run(out) and not list_checkpoints(out))
    inputs, told = _inputs(config), asdict(config)
    check_output(out, "train", told, inputs=inputs, overwrite=is_free, free=FREE_TO_CHANGE)
    return is_free


def is_run(folder: Path) -> bool:
    """Return whether `vlp train` wrote the folder."""
    record = read_record(folder)
    return record is not None and record["command"] == "train"


def _inputs(config: TrainConfig) -> list[Path]:
    """Return every file and folder that the run reads: its output may be none of them."""
    model = config.model
    models = paths_of(model.name, model.weights, model.image_weights, model.text_weights)
    data = config.data
    shards = [source for source in (*data.shards, data.validation) if source]
    return [*find_shards(shards), *paths_of(*shards, *data.keep), *models]


def _check_finite(loss: float, state: TrainState) -> None:
    """Stop before checkpoints of a broken encoder push out the good ones."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} at step {state.step}. Lower --optimizer.learning-rate or use "
            f"--precision fp32; the last checkpoint is from before."
        )


def _claim(out: Path, config: TrainConfig, *, overwrite: bool) -> None:
    if overwrite:
        remove_output(out)
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, "train", asdict(config))


def _announce(config: TrainConfig, parts: Parts, state: TrainState, steps: int) -> None:
    count = sum(p.numel() for p in parts.encoder.parameters())
    say(
        f"Training {config.model.name} ({count / 1e6:.1f} M parameters) with "
        f"{' + '.join(config.loss)} on {_amount(parts.loader.reader.plan)} of "
        f"{' '.join(config.data.shards)}: {steps} steps of {config.data.batch_size}."
    )
    for line in parts.course.lines():
        say(line)
    if config.data.weights:
        _announce_mix(config, parts, steps)
    if state.step:
        say(f"Going on from step {state.step}, {state.samples_seen} samples seen.")


def _step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of a step's dropout: a run that goes on draws what it would have drawn."""
    return hash63(f"{seed} {step} {process}")


def _set_learning_rate(optimizer: Any, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def _is_due(every: int, step: int, steps: int) -> bool:
    return step == steps or bool(every and step % every == 0)


def _amount(plan: Plan) -> str:
    return (
        "shards drawn with replacement"
        if plan.num_samples is None
        else f"{plan.num_samples} samples"
    )


def _announce_mix(config: TrainConfig, parts: Parts, steps: int) -> None:
    """Say how often each source of a mix will have been read through."""
    epochs = parts.loader.reader.plan.epochs(steps * config.data.batch_size)
    for source, number in zip(config.data.shards, epochs, strict=True):
        if number is not None:
            say(f"  {source}: {number:.3g} epochs")


@contextmanager
def _ledger(loader: Loader, out: Path) -> Iterator[None]:
    """Write down what was wrong with the data although a run stops for it.

    The process that fails knows what all had found at the last row of figures, and its own since.
    """
    try:
        yield
        loader.judge(first_reads=1)  # a run of few samples, too
    except (UserError, KeyboardInterrupt, RuntimeError) as error:
        if out.is_dir():  # of a run on several machines, another may not see it
            write_json(out / FAULTS, loader.faults().as_dict())
        if isinstance(error, RuntimeError) and (told := worker_error(error)):
            raise told from None
        raise


def _save(
    state: TrainState, loader: Loader, out: Path, config: TrainConfig, *, is_main: bool
) -> None:
    """Write a checkpoint, which holds the ledger of the data too, and the ledger for people."""
    loader.share(gather_object)
    if is_main:
        state.ledger = loader.ledger()
        save(state, out, config.keep)
        write_json(out / FAULTS, loader.faults().as_dict())


def _report(out: Path, parts: Parts, state: TrainState, figures: dict[str, Any]) -> dict[str, Any]:
    loader = parts.loader
    tally = loader.tally
    cut = tally.captions_cut / max(1, tally.reads)
    faults = loader.faults()
    say(f"Trained {state.step} steps, {state.samples_seen} samples. Checkpoints are in {out}.")
    if cut:
        length = loader.reader.tokenizer.length
        say(f"{cut:.1%} of the captions were longer than {length} tokens and were cut off.")
    if faults:
        say(
            f"Faults of the data: {faults.summary()}. {tally.substituted} times another sample of "
            f"the shard took a broken one's place."
        )
    return {
        "out": str(out),
        "steps": state.step,
        "samples_seen": state.samples_seen,
        "captions_cut": cut,
        "faults": faults.as_dict(),
        "substituted": tally.substituted,
        "metrics": figures,
    }
