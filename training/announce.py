"""What a run says when it begins and when it is over."""

import math
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _NormBase

from data_pipelines.plan import Plan
from training.compute.gather import num_processes
from training.config import TrainConfig
from training.remine import num_met
from training.rewind import SKIPPED
from training.run_folder.report import REPORT
from training.setup import Parts
from training.state import TrainState
from vlp.console import say


def announce(config: TrainConfig, out: Path, parts: Parts, state: TrainState, steps: int) -> None:
    """Say what will be trained, on what, for how long, and where it is written."""
    count = sum(p.numel() for p in parts.encoder.parameters())
    say(
        f"Training {config.model.name} ({count / 1e6:.1f} M parameters) with "
        f"{' + '.join(config.loss)} on {_amount(parts.loader.reader.plan)} of "
        f"{' '.join(config.data.shards)}: {steps} steps of {config.data.batch_size}."
    )
    if parts.teacher:
        kind = "features on disk" if parts.teacher.features else "a frozen model"
        say(f"Teacher: {parts.teacher.name}, {kind}.")
    for line in parts.schedule.lines():
        say(line)
    if config.negatives:
        names = " ".join(config.negatives)
        say(f"Hard captions by {names}, share of the samples: {config.negatives_share}.")
    if num_processes() > 1 and any(isinstance(m, _NormBase) for m in parts.encoder.modules()):
        say("Batch norms take their statistics of each process's own pairs, not of all.")
    if config.data.mined:
        _announce_mined(config, parts, state)
    if config.ema:
        half = math.log(2) / (1 - config.ema) * config.data.batch_size
        say(f"The moving average of the weights forgets half in {half:,.0f} samples.")
    if config.data.weights:
        _announce_mix(config, parts, steps)
    say(f"Figures, {REPORT} and checkpoints are in {out}.")
    if state.step:
        say(f"Going on from step {state.step}, {state.samples_seen} samples seen.")


def report(out: Path, parts: Parts, state: TrainState, figures: dict[str, Any]) -> dict[str, Any]:
    """Say how the run went and return it as data."""
    loader = parts.loader
    tally = loader.tally
    cut = tally.captions_cut / max(1, tally.reads)
    faults = loader.faults()
    loss = f", loss {figures['loss']:.4g}" if "loss" in figures else ""
    say(f"Trained {state.step} steps, {state.samples_seen} samples{loss}. See {out / REPORT}.")
    if parts.guard.skipped:
        say(f"{parts.guard.skipped} steps were left out; {SKIPPED} names their samples.")
    if cut:
        length = loader.reader.tokenizer.length
        say(f"{cut:.1%} of the captions were longer than {length} tokens and were cut off.")
    if tally.hard_due:
        say(
            f"{tally.hard_captions / tally.hard_due:.3g} hard captions a sample; "
            f"{tally.hard_without / tally.hard_due:.1%} of the samples got none: nothing in their "
            f"caption can be changed."
        )
    if faults:
        say(
            f"Faults of the data: {faults.summary()}. {tally.substituted} times another sample of "
            f"the shard took a broken one's place."
        )
    return {
        "out": str(out),
        "steps": state.step,
        "samples_seen": state.samples_seen,
        "skipped": parts.guard.skipped,
        "captions_cut": cut,
        "hard_captions": tally.hard_captions,
        "without_hard_captions": tally.hard_without,
        "faults": faults.as_dict(),
        "substituted": tally.substituted,
        "metrics": figures,
    }


def _amount(plan: Plan) -> str:
    return (
        "shards drawn with replacement"
        if plan.num_samples is None
        else f"{plan.num_samples} samples"
    )


def _announce_mined(config: TrainConfig, parts: Parts, state: TrainState) -> None:
    """Say how much of a batch is hard, and whether any false negatives meet."""
    met = num_met(parts.loader, state)
    told = f"{met} samples of this epoch meet" if met else "no samples meet"
    say(
        f"Hard batches: {config.data.hard} of each is alike, by {config.data.mined}; {told} that "
        f"should be kept apart."
    )


def _announce_mix(config: TrainConfig, parts: Parts, steps: int) -> None:
    """Say how often each source of a mix will have been read through."""
    epochs = parts.loader.reader.plan.epochs(steps * config.data.batch_size)
    for source, number in zip(config.data.shards, epochs, strict=True):
        if number is not None:
            say(f"  {source}: {number:.3g} epochs")
