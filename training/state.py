"""TrainState: everything that a restart needs, and nothing else; the checkpoints of a run."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlp.checkpoint import list_checkpoints, load_weights, save_encoder
from vlp.encoder import DualEncoder
from vlp.errors import UserError

STATE = "train_state.pt"


@dataclass
class TrainState:
    """A run at one moment. Order, crops and dropout follow from the seed and these two numbers."""

    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    """Of fp16: its scale grows and shrinks with the run."""
    data: str = ""
    """Identity of the plan: a run goes on only with the data that it began with."""
    step: int = 0
    samples_seen: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)
    """What was counted of the data: faults and how much was read, see ``Loader.ledger``."""


def save(state: TrainState, run: Path, *, keep: int) -> Path:
    """Write ``checkpoints/step_0001000`` under a temporary name, then rename; keep the last few."""
    folder = run / "checkpoints" / f"step_{state.step:07d}"
    part = folder.with_name(f".{folder.name}.part")
    for stale in (part, folder):
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    save_encoder(state.encoder, part)
    content = {
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "samples_seen": state.samples_seen,
        "data": state.data,
        "ledger": state.ledger,
        "scaler": state.scaler.state_dict() if state.scaler else None,
    }
    torch.save(content, part / STATE)
    for path in part.iterdir():
        _flush(path)
    _flush(part)
    part.rename(folder)
    _flush(folder.parent)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def restore(state: TrainState, run: Path) -> bool:
    """Bring ``state`` to the newest checkpoint of the run; False where there is none."""
    saved = list_checkpoints(run)
    if not saved:
        return False
    try:
        content = torch.load(saved[-1] / STATE, map_location="cpu", weights_only=True)
        load_weights(state.encoder, saved[-1])
        state.optimizer.load_state_dict(content["optimizer"])
        if state.scaler and content["scaler"]:
            state.scaler.load_state_dict(content["scaler"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The checkpoint {saved[-1]} is damaged ({line}). Remove it to go on from the one "
            f"before, or use --overwrite to start anew."
        ) from None
    if content["data"] != state.data:
        raise UserError(
            f"The training shards are no longer those that {run} began with: their names may be "
            f"the same, their samples are not. Bring the old ones back, or use --overwrite."
        )
    state.step, state.samples_seen = content["step"], content["samples_seen"]
    state.ledger = content.get("ledger", {})
    return True


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk: a rename must not come before its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
