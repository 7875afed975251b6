"""What a run minimises: one loss, or several that add up by their weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import SOURCES, check_loss, needs, refuse, refuse_dim, takes
from vlp.console import warn
from vlp.errors import UserError
from vlp.spec import build_part, parse
from vlp.types import Pairs

CLIP_SCALE = 1 / 0.07
"""Of an encoder that no loss wants a scale of."""

MOST = 1e6
"""Weight of a loss."""


@dataclass(frozen=True)
class Objective:
    """Losses of ``training/losses`` by name, and the weight of each; called as a single loss is."""

    losses: dict[str, Any]
    weights: dict[str, float]

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses."""
        return self.total(self.each(local, world, rows, scale, bias), scale, bias)

    def each(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the value of each loss by its name, before weights.

        Each sees the fields of the batch that it takes.

        Raises:
            UserError: There is a field that none of them takes, or one is missing.
        """
        refuse([name for name in SOURCES if getattr(local, name) is not None], self.losses.values())
        values = {}
        for name, loss in self.losses.items():
            own = _seen_by(loss, local)
            whole = own if world is local else _seen_by(loss, world)
            values[name] = loss(own, whole, rows, scale, bias)
        return values

    def check(self, fields: Iterable[str], dim: int) -> None:
        """Raise UserError where batches with these fields and features this wide cannot be used."""
        refuse(fields, self.losses.values())
        refuse_dim(dim, self.losses.values())

    def of_pairs_alone(self) -> "Objective":
        """Return the losses that need no optional field of a batch, as held-out shards have none.

        A teacher sees only what is trained on: without it ``weighted`` goes by the encoder's own
        features.
        """
        kept = {name: loss for name, loss in self.losses.items() if not needs(loss)}
        return Objective(kept, {name: self.weights[name] for name in kept})

    def total(
        self,
        values: dict[str, Float[Tensor, ""]],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of values."""
        # Data parallelism waits for a gradient of every parameter, also where no loss takes it.
        unused = 0 * scale if bias is None else 0 * scale + 0 * bias
        return sum((self.weights[name] * value for name, value in values.items()), unused)

    @property
    def start_scale(self) -> float:
        """The scale that training starts from: that of the first loss that takes one."""
        return next(iter(_start_scales(self).values()), CLIP_SCALE)

    @property
    def start_bias(self) -> float | None:
        """The bias that training starts from, of the first loss that takes one; None of none."""
        biases = (loss.start_bias for loss in self.losses.values())
        return next((bias for bias in biases if bias is not None), None)

    @property
    def max_scale(self) -> float:
        """The largest scale that every loss allows."""
        return min(loss.max_scale for loss in self.losses.values())


def build_objective(specs: Sequence[str]) -> Objective:
    """Return the objective that texts such as ``"uniformity(weight=0.1)"`` name.

    ``weight`` is taken out here, 1 where it is not given; the rest is for the loss.

    Raises:
        UserError: There is no such loss, or a weight is not above 0.
    """
    losses, weights = {}, {}
    for spec in specs:
        name, arguments = parse(spec)
        weight = arguments.pop("weight", 1.0)
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight <= MOST:
            raise UserError(f"{spec!r}: weight is {weight!r:.40}. Write a number above 0.")
        label = _unlike(name.rpartition(".")[2], losses)
        losses[label] = check_loss(build_part("training.losses", name, arguments))
        weights[label] = float(weight)
    return Objective(losses, weights)


def warn_of_scales(objective: Objective) -> None:
    """Warn where two losses want different scales to start from."""
    starts = _start_scales(objective)
    if len(set(starts.values())) > 1:
        told = ", ".join(f"{name} {start:.4g}" for name, start in starts.items())
        warn(
            f"The losses want different scales to start from ({told}); the run starts from "
            f"{objective.start_scale:.4g}."
        )


def _seen_by(loss: Any, pairs: Pairs) -> Pairs:
    hidden = {field: None for field in SOURCES if field not in takes(loss)}
    return pairs._replace(**hidden)


def _unlike(name: str, taken: dict[str, Any]) -> str:
    """Return the name, with a number where it is taken."""
    labels = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(label for label in labels if label not in taken)


def _start_scales(objective: Objective) -> dict[str, float]:
    starts = {name: loss.start_scale for name, loss in objective.losses.items()}
    return {name: start for name, start in starts.items() if start is not None}
