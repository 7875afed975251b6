"""The checkpoints of a run on disk: whole or not there, verified, and no more than asked for."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from training.options import KeepConfig
from vlp.checkpoint import list_checkpoints, step_of
from vlp.console import say
from vlp.errors import UserError, first_line
from vlp.manifest import damage, flush, seal

SPARE = 1.05
"""Room asked for on the disk, for each byte that a checkpoint takes."""


@contextmanager
def new_checkpoint(run: Path, step: int, num_bytes: int) -> Iterator[Path]:
    """Yield an empty folder that becomes ``checkpoints/step_0001000`` once it is whole.

    Args:
        run: The run's folder.
        step: The run's step.
        num_bytes: Size of what will be written, about.

    Raises:
        UserError: The disk is full. The checkpoints before stay as they are.
    """
    folder = run / "checkpoints" / f"step_{step:07d}"
    part = _part(folder)
    part.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(run)
    free = shutil.disk_usage(part.parent).free
    if free < SPARE * num_bytes:
        raise UserError(
            f"The disk of {run} has {free / 2**20:,.0f} MiB left; the checkpoint of step {step} "
            f"takes about {num_bytes / 2**20:,.0f}. {_how_to_go_on(run)}"
        )
    try:
        part.mkdir()
        yield part
        seal(part)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors have their own
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"Cannot write the checkpoint of step {step} ({first_line(error)}). "
            f"{_how_to_go_on(run)}"
        ) from None
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one that the run went on before
    part.rename(folder)
    flush(folder.parent)


def newest(run: Path, *, until: float = math.inf) -> Path | None:
    """Return the newest checkpoint that is as it was written; None where there is none at all.

    Damaged ones are named and passed over, those of steps after ``until`` are not looked at.

    Raises:
        UserError: There are checkpoints, and all of them are damaged.
    """
    saved = [folder for folder in list_checkpoints(run) if step_of(folder) <= until]
    for folder in reversed(saved):
        found = damage(folder)
        if found is None:
            return folder
        say(f"The checkpoint {folder} is damaged ({found}); the one before is taken.")
    if saved:
        raise UserError(f"All checkpoints of {run} are damaged. Write --overwrite to start anew.")
    return None


def remove_old(run: Path, keep: KeepConfig) -> None:
    """Remove the checkpoints that need not stay."""
    saved = list_checkpoints(run)
    best = _best_step(run, [step_of(folder) for folder in saved], keep.best)
    for folder in saved[: -keep.last]:
        step = step_of(folder)
        if step != best and not (keep.every and step % keep.every == 0):
            gone = _part(folder)
            folder.rename(gone)  # half of a checkpoint must not bear its name
            shutil.rmtree(gone)


def remove_parts(run: Path) -> None:
    """Remove what is left of checkpoints that were being written or removed at a kill."""
    for part in (run / "checkpoints").glob(".step_*.part"):
        shutil.rmtree(part, ignore_errors=True)


def remove_after(run: Path, step: int) -> None:
    """Remove the checkpoints that the run has gone back behind."""
    for folder in list_checkpoints(run):
        if step_of(folder) > step:
            shutil.rmtree(folder)


def is_cost(figure: str) -> bool:
    """Return whether lower is better, as of a loss or a rank."""
    return "loss" in figure or "rank" in figure


def _best_step(run: Path, steps: list[int], figure: str) -> int | None:
    """Return which of these steps has the best value of a figure in ``metrics.jsonl``."""
    if not figure:
        return None
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if figure in row and row["step"] in steps]
    rows.sort(key=lambda row: row[figure], reverse=is_cost(figure))
    return rows[-1]["step"] if rows else None


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _how_to_go_on(run: Path) -> str:
    saved = list_checkpoints(run)
    last = f"the last one, {saved[-1].name}, is whole" if saved else "none was written before"
    return f"Make room and run the same command again: {last}."
