"""TrainState: everything that a restart needs, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from training.checkpoints import new_checkpoint, newest, remove_old
from training.options import KeepConfig
from vlp.checkpoint import load_weights, save_encoder
from vlp.encoder import DualEncoder
from vlp.errors import UserError, first_line

STATE = "train_state.pt"


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint can hold: its state is tensors, numbers and texts in dicts and lists."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that it needs to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Become what it was."""
        ...


@dataclass
class TrainState:
    """A run at one moment. Order, crops and dropout follow from the seed and these two numbers."""

    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    others: Mapping[str, Stateful]
    """Whatever else moves: the memory of past features, fp16's scaler."""
    data: str
    """Identity of the plan: a run goes on only with the data that it began with."""
    step: int = 0
    samples_seen: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)
    """What was counted of the data: faults and how much was read, see ``Loader.ledger``."""


def save(state: TrainState, run: Path, keep: KeepConfig) -> None:
    """Write ``checkpoints/step_0001000``, and remove those before that need not stay.

    Raises:
        UserError: The disk is full.
    """
    content = {
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "samples_seen": state.samples_seen,
        "data": state.data,
        "ledger": state.ledger,
        "others": {name: part.state_dict() for name, part in state.others.items()},
    }
    weights = state.encoder.state_dict()
    with new_checkpoint(run, state.step, num_bytes([content, weights])) as part:
        save_encoder(state.encoder, part)
        torch.save(content, part / STATE)
    remove_old(run, keep)


def restore(state: TrainState, run: Path) -> bool:
    """Bring ``state`` to the newest checkpoint of the run; False where there is none."""
    saved = newest(run)
    if saved is None:
        return False
    try:
        content = torch.load(saved / STATE, map_location="cpu", weights_only=True)
        load_weights(state.encoder, saved)
        state.optimizer.load_state_dict(content["optimizer"])
        for name, part in state.others.items():
            part.load_state_dict(content["others"][name])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UserError(
            f"Cannot go on from the checkpoint {saved} ({first_line(error)}). Remove it to go on "
            f"from the one before, or use --overwrite to start anew."
        ) from None
    if content["data"] != state.data:
        raise UserError(
            f"The training shards are no longer those that {run} began with: their names may be "
            f"the same, their samples are not. Bring the old ones back, or use --overwrite."
        )
    state.step, state.samples_seen = content["step"], content["samples_seen"]
    state.ledger = content.get("ledger", {})
    return True


def num_bytes(content: Any) -> int:
    """Return the memory of all tensors in lists and dicts of anything."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, dict | list):
        return sum(map(num_bytes, content.values() if isinstance(content, dict) else content))
    return 0
