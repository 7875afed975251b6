"""What a run does about a step that its guard speaks of: says it, writes it down, goes back."""

import json
import math
from collections import Counter
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.optimization.guard import Guard, Verdict
from training.run_folder.checkpoints import remove_after
from training.run_folder.log import keep_rows
from training.state import TrainState, restore
from vlp.checkpoint import list_checkpoints, step_of
from vlp.console import say
from vlp.errors import UserError
from vlp.types import Batch

SKIPPED = "skipped.jsonl"
"""Steps that were not taken: why, and on which samples. ``samples_read`` is where the batch begins
in the plan."""


def skip_or_rewind(
    verdict: Verdict,
    batch: Batch,
    guard: Guard,
    state: TrainState,
    out: Path,
    accelerator: Accelerator,
) -> bool:
    """Do what is due about the unusual step that was just judged; return whether the run went back.

    It is said, and written down if it was not taken. A step that asks to go back where there is no
    checkpoint to go back to is left out like others.

    Raises:
        UserError: Too many steps in a row were not taken, or the run went back too often.
    """
    action, why = verdict.action, verdict.why
    if action == "rewind" and not _proven(state, guard, out):
        action = "stop" if guard.in_a_row >= guard.options.patience else "skip"
        why += ", and there is no checkpoint from before to go back to"
    did = {"take": "It is taken", "skip": "It is left out"}.get(action, "It is not taken")
    say(f"Step {state.step}: {why}. {did}.")
    if action == "take":
        return False
    _write_down(verdict._replace(action=action, why=why), batch, state, out, accelerator)
    if action == "stop":
        raise _stop(state, out, guard, why)
    if action == "rewind":
        _go_back(guard, state, out, accelerator)
    return action == "rewind"


def forget_skipped(out: Path, state: TrainState) -> None:
    """Drop the rows of steps that a run which goes on will judge again."""
    if (out / SKIPPED).is_file():
        read = state.samples_seen + state.passed_over
        keep_rows(out / SKIPPED, lambda row: row["samples_read"] < read)


def _write_down(
    verdict: Verdict, batch: Batch, state: TrainState, out: Path, accelerator: Accelerator
) -> None:
    """Add a step that was not taken, with the samples of all processes, to ``skipped.jsonl``."""
    keys = gather_object([batch.keys])
    seen = state.samples_seen - len(batch.keys) * len(keys)
    if accelerator.is_main_process:
        row = {
            "step": state.step,
            "samples_seen": seen,
            "samples_read": seen + state.passed_over,
            "why": verdict.why,
            "action": verdict.action,
            "loss": _finite(verdict.loss),
            "grad_norm": _finite(verdict.grad_norm),
            "keys": {str(process): own for process, own in enumerate(keys)},
        }
        with (out / SKIPPED).open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _go_back(guard: Guard, state: TrainState, out: Path, accelerator: Accelerator) -> None:
    """Bring the run back to a checkpoint from before the steps that were not taken.

    The data goes on behind them, and so do the counts of steps not taken, spikes and returns.

    Raises:
        UserError: It went back to this checkpoint too often.
    """
    read = state.samples_seen + state.passed_over
    stopped_at = state.step
    skipped, spikes, returns = guard.skipped, guard.spikes, guard.returns
    mined = state.mined  # the data goes on, and so does its plan
    is_restored = restore(state, out, until=_last_proven(state, guard))
    assert is_restored, "only asked for where there is a checkpoint"
    guard.skipped, guard.spikes, state.mined = skipped, spikes, mined
    guard.returns = Counter({step: n for step, n in returns.items() if step <= state.step})
    guard.returns[state.step] += 1
    if guard.returns[state.step] > guard.options.rewinds:
        raise UserError(
            f"The run went back to step {state.step} {guard.options.rewinds} times and met a spike "
            f"each time. Lower --optimizer.learning-rate, or write --guard.on-spike note."
        )
    state.passed_over = read - state.samples_seen
    say(
        f"Going back from step {stopped_at} to step {state.step}. From now on "
        f"{state.passed_over} samples are passed over."
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remove_after(out, state.step)


def _stop(state: TrainState, out: Path, guard: Guard, why: str) -> UserError:
    """Return the error of too many steps left out, with what is true of the checkpoints."""
    saved, good = list_checkpoints(out), _proven(state, guard, out)
    if good:
        told = f"The last good checkpoint is {good[-1]}"
    elif saved:
        told = f"The newest checkpoint is {saved[-1]}; no step was taken since, it may be broken"
    else:
        told = "There is no checkpoint"
    mended = good and guard.options.on_spike != "rewind"
    rewind = ", or --guard.on-spike rewind to go on from there behind this data" if mended else ""
    return UserError(
        f"{guard.in_a_row} steps in a row were left out, up to step {state.step}: {why}. {told}; "
        f"{SKIPPED} names the samples. Try a lower --optimizer.learning-rate or --precision fp32"
        f"{rewind}."
    )


def _proven(state: TrainState, guard: Guard, out: Path) -> list[Path]:
    """Return the checkpoints whose weights are known to be good, the newest last."""
    last = _last_proven(state, guard)
    return [folder for folder in list_checkpoints(out) if step_of(folder) <= last]


def _last_proven(state: TrainState, guard: Guard) -> int:
    """Return the newest step whose weights are known to be good: the next loss was a usual one."""
    return max([state.step - guard.in_a_row - 1, *guard.returns])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
