"""TrainState: everything that a restart needs, and nothing else."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from training.compute.fsdp import gathered, slice_state
from training.options import KeepConfig
from training.run_folder.checkpoints import new_checkpoint, newest, remove_old
from vlp.checkpoint import AVERAGED, load_weights, save_encoder
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
    """Whatever else moves: the memory of past features, fp16's scaler, the guard's window."""
    data: str
    """Identity of the plan: a run goes on only with the data that it began with."""
    validation: str = ""
    """Identity of the held-out shards, once there were any: a curve is of one set."""
    averaged: DualEncoder | None = None
    """The moving average of the encoder, saved as a checkpoint of its own in ``ema/``."""
    step: int = 0
    samples_seen: int = 0
    passed_over: int = 0
    """Samples of the plan that no step was taken on when the run went back before a spike: the next
    batch begins ``samples_seen + passed_over`` samples into the plan."""
    mined: str = ""
    """File of the run with the plan of its batches, where it was mined while the run went on."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """What was counted of the data: faults and how much was read, see ``Loader.ledger``."""

    def moving(self) -> dict[str, Any]:
        """Return the tensors that a checkpoint holds: ``weights``, ``optimizer`` and ``others``.

        Every process must ask; of sharded ones the first alone gets the whole.
        """
        return gathered(
            {
                "weights": {name: own.state_dict() for name, own in _encoders(self).items()},
                "optimizer": self.optimizer.state_dict(),
                "others": {name: part.state_dict() for name, part in self.others.items()},
            }
        )


def save(state: TrainState, moving: dict[str, Any], run: Path, keep: KeepConfig) -> None:
    """Write ``checkpoints/step_0001000``, and remove those before that need not stay.

    Args:
        state: The run as it is now.
        moving: ``state.moving()``.
        run: The run's folder.
        keep: Which checkpoints stay.

    Raises:
        UserError: The disk is full.
    """
    content = {
        "optimizer": moving["optimizer"],
        "step": state.step,
        "samples_seen": state.samples_seen,
        "passed_over": state.passed_over,
        "mined": state.mined,
        "data": state.data,
        "validation": state.validation,
        "ledger": state.ledger,
        "others": moving["others"],
    }
    with new_checkpoint(run, state.step, num_bytes([content, moving["weights"]])) as part:
        for folder, encoder in _encoders(state).items():
            (part / folder).mkdir(exist_ok=True)
            save_encoder(encoder, part / folder, moving["weights"][folder])
        torch.save(content, part / STATE)
    remove_old(run, keep)


def restore(state: TrainState, run: Path, *, until: float = math.inf) -> bool:
    """Bring ``state`` to the newest checkpoint of the run, of a step up to ``until``.

    Returns False where there is none.
    """
    saved = newest(run, until=until)
    if saved is None:
        return False
    try:
        content = torch.load(saved / STATE, map_location="cpu", weights_only=True)
        for folder, encoder in _encoders(state).items():
            load_weights(encoder, saved / folder)
        state.optimizer.load_state_dict(slice_state(state.optimizer, content["optimizer"]))
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
            f"the same, their samples are not (nor what --data.mined or --negatives go by, where "
            f"there are any: a plan, a vocabulary, a parser). Bring the old ones back, or use "
            f"--overwrite."
        )
    held_out = content.get("validation", "")
    if held_out and state.validation not in ("", held_out):
        raise UserError(
            f"The validation shards are not those that {run} had before, and one curve is of one "
            f"set. Bring the old ones back, or leave out --data.validation; `vlp eval` tells how "
            f"each checkpoint does on others."
        )
    state.validation = held_out or state.validation
    state.step, state.samples_seen = content["step"], content["samples_seen"]
    state.passed_over = content.get("passed_over", 0)
    state.mined = content.get("mined", "")
    state.ledger = content.get("ledger", {})
    return True


def _encoders(state: TrainState) -> dict[str, DualEncoder]:
    """Return each encoder of a run by its folder in a checkpoint."""
    averaged = {} if state.averaged is None else {AVERAGED: state.averaged}
    return {".": state.encoder} | averaged


def num_bytes(content: Any) -> int:
    """Return the memory of all tensors in lists and dicts of anything."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, dict | list):
        return sum(map(num_bytes, content.values() if isinstance(content, dict) else content))
    return 0
