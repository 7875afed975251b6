"""What a run does about a step that its guard speaks of: says it, writes it down, goes back."""

import json
import math
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.checkpoints import remove_after
from training.guard import Guard, Rewind, Verdict
from training.log import keep_rows
from training.state import TrainState, restore
from vlp.checkpoint import list_checkpoints, step_of
from vlp.console import say
from vlp.errors import UserError
from vlp.types import Batch

SKIPPED = "skipped.jsonl"
"""Steps that were not taken: why, and on which samples. ``samples_read`` is where the batch begins
in the plan."""


def tell(
    verdict: Verdict,
    batch: Batch,
    guard: Guard,
    state: TrainState,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Say what is unusual about the step that was just judged, and write down one not taken.

    Raises:
        Rewind: The run is to go back.
        UserError: Too many steps in a row were not taken.
    """
    did = {"take": "It is taken", "skip": "It is left out"}.get(verdict.action, "It is not taken")
    say(f"Step {state.step}: {verdict.why}. {did}.")
    if verdict.action == "take":
        return
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
    if verdict.action == "rewind":
        raise Rewind
    if verdict.action == "stop":
        raise _stop(state, out, guard, verdict.why)


def forget_skipped(out: Path, state: TrainState) -> None:
    """Drop the rows of steps that a run which goes on will judge again."""
    if (out / SKIPPED).is_file():
        read = state.samples_seen + state.passed_over
        keep_rows(out / SKIPPED, lambda row: row["samples_read"] < read)


def go_back(guard: Guard, state: TrainState, out: Path, accelerator: Accelerator) -> None:
    """Bring the run back to a checkpoint from before the steps that were not taken.

    The data goes on behind them. Where there is no such checkpoint, the steps are left out and the
    run goes on.

    Raises:
        UserError: It went back to this checkpoint too often, or nothing helps.
    """
    read = state.samples_seen + state.passed_over
    stopped_at = state.step
    accelerator.wait_for_everyone()  # the main process may still write a checkpoint
    if not restore(state, out, until=_last_proven(state, guard)):
        if guard.in_a_row >= guard.options.patience:
            raise _stop(state, out, guard, "there is no checkpoint to go back to")
        say("There is no checkpoint from before to go back to. The step is left out.")
        return
    for later in [step for step in guard.returns if step > state.step]:
        del guard.returns[later]
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
    last = _last_proven(state, guard)
    good = [folder for folder in list_checkpoints(out) if step_of(folder) <= last]
    told = f"The last good checkpoint is {good[-1]}" if good else "There is no good checkpoint"
    mended = good and guard.options.on_spike != "rewind"
    rewind = ", or --guard.on-spike rewind to go on from there behind this data" if mended else ""
    return UserError(
        f"{guard.in_a_row} steps in a row were left out, up to step {state.step}: {why}. {told}; "
        f"{SKIPPED} names the samples. Try a lower --optimizer.learning-rate or --precision fp32"
        f"{rewind}."
    )


def _last_proven(state: TrainState, guard: Guard) -> int:
    """Return the newest step whose weights are known to be good: the next loss was a usual one."""
    return max([state.step - guard.in_a_row - 1, *guard.returns])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
