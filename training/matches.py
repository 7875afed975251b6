"""Which pairs of the batch match: what every loss asks before it calls something a negative."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from vlp.errors import UserError
from vlp.types import Pairs

OPTIONAL = ("views", "hard_text", "teacher", "past")


def same_group(local: Pairs, world: Pairs) -> Bool[Tensor, "batch world"]:
    """Return where a local pair and a pair of the world match."""
    return local.group[:, None] == world.group[None, :]


def own(rows: Int64[Tensor, "batch"], num_pairs: int) -> Bool[Tensor, "batch world"]:
    """Return where a local pair meets itself in the world."""
    return rows[:, None] == torch.arange(num_pairs, device=rows.device)[None, :]


def refuse_fields(loss: object, pairs: Pairs, takes: Iterable[str] = ()) -> None:
    """Raise UserError where the batch holds a field that the loss cannot use."""
    for name in OPTIONAL:
        if getattr(pairs, name) is not None and name not in takes:
            kind = type(loss).__name__.lower()
            raise UserError(f"The loss {kind} cannot use {name}. Choose a loss that takes it.")
