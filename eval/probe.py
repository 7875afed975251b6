"""Logistic regression by L-BFGS, where the features are: what linear probes are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from eval.metrics import BLOCK
from vlp.errors import UserError

STEPS_PER_DECADE = 8
STRENGTHS = [10 ** (place / STEPS_PER_DECADE - 6) for place in range(97)]
"""Radford et al. 2021, appendix A.3: 96 steps from 1e-6 to 1e6."""
FIRST_STEP = 16
"""The sweep begins with every 16th strength, 1e-6, 1e-4, ..., 1e6, and halves the step."""
MAX_ITERATIONS = 1000
"""Also theirs."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, "classes"]

    @staticmethod
    def of(weight: Float[Tensor, "classes dim"]) -> "Probe":
        """Return a probe without bias."""
        return Probe(weight, weight.new_zeros(len(weight)))

    def logits(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows classes"]:
        """Return a logit for each class."""
        return rows @ self.weight.T + self.bias


@dataclass(frozen=True)
class Sweep:
    """What a search for the strength of regularisation found."""

    strength: float
    """The one of the highest accuracy on the validation part; of equals, the middle one."""
    accuracies: dict[float, float]
    """Of each strength that was tried, in their order."""


def fit_probe(
    rows: Float[Tensor, "rows dim"],
    labels: Int64[Tensor, "rows"],
    num_classes: int,
    *,
    strength: float,
    start: Probe | None = None,
    centre: Float[Tensor, "classes dim"] | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-5,
) -> Probe:
    """Return the probe that minimises sum of cross-entropies + strength / 2 |weight - centre|^2.

    With a centre of 0, scikit-learn's ``LogisticRegression(C=1 / strength)`` of three classes or
    more, which leaves the bias free as well.

    Args:
        rows: Features, as they are; scaling them changes what a strength means.
        labels: The class of each.
        num_classes: How many there are, more than those among ``labels`` or not.
        strength: Lambda, the inverse of scikit-learn's C.
        start: Where to begin. The minimum is the same; a near one is found sooner.
        centre: What the weights are held to, in place of 0. The bias then stays 0.
        max_iterations: Of L-BFGS.
        tolerance: Largest slope of the mean loss at the end.
    """
    weight = _leaf(start.weight if start else rows.new_zeros(num_classes, rows.shape[1]))
    bias = _leaf(start.bias if start else rows.new_zeros(num_classes))
    free = [weight] if centre is not None else [weight, bias]
    held_to = 0.0 if centre is None else centre
    optimizer = torch.optim.LBFGS(
        free,
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=tolerance**2,
        line_search_fn="strong_wolfe",
    )

    size = max(1, BLOCK // num_classes)
    blocks = list(zip(rows.split(size), labels.split(size), strict=True))

    def loss() -> Tensor:
        optimizer.zero_grad()
        parts = [strength / 2 * (weight - held_to).square().sum() / len(rows)]
        parts[0].backward()
        for some, own in blocks:  # ImageNet's logits would be 5 GB
            logits = some @ weight.T + bias  # [block, classes]
            parts.append(F.cross_entropy(logits, own, reduction="sum") / len(rows))
            parts[-1].backward()
        return torch.stack(parts).sum().detach()

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(weight.detach(), bias.detach())


def sweep_strength(fit: Callable[[float], Probe], accuracy: Callable[[Probe], float]) -> Sweep:
    """Return the strength of the highest accuracy, in OpenAI's search (Radford et al. 2021, A.3).

    Seven strengths two decades apart; then the interval around the peak is halved until neighbours
    are an eighth of a decade apart: 15 fits in place of 97.

    Args:
        fit: Returns the probe of a strength.
        accuracy: Of a probe on the validation part, in [0, 1].
    """
    found: dict[int, float] = {}

    def peak(places: Sequence[int]) -> int:
        for place in places:
            if 0 <= place < len(STRENGTHS) and place not in found:
                found[place] = accuracy(fit(STRENGTHS[place]))
        highest = max(found.values())
        equals = sorted(place for place in found if found[place] == highest)
        return equals[len(equals) // 2]

    step = FIRST_STEP
    # From the strongest on: each start is then near its end, whoever fits from the last probe.
    best = peak(range(len(STRENGTHS) - 1, -1, -step))
    while step > 1:
        step //= 2
        best = peak((best + step, best - step))
    ordered = sorted(found)
    return Sweep(STRENGTHS[best], {STRENGTHS[place]: found[place] for place in ordered})


def draw_shots(
    labels: Int64[Tensor, "rows"],
    shots: int,
    num_validation: int,
    *,
    seed: int,
    names: Sequence[str],
) -> tuple[Int64[Tensor, "learnt"], Int64[Tensor, "validation"]]:
    """Return rows to learn from and rows to choose by: so many of each class, drawn at random.

    The rows of fewer shots are among those of more for one seed.

    Raises:
        UserError: A class has fewer rows than shots, or none left to choose by.
    """
    generator = torch.Generator().manual_seed(seed)
    learnt, chosen_by = [], []
    for own in torch.unique(labels).tolist():
        rows = (labels == own).nonzero()[:, 0]
        if len(rows) <= shots:
            raise UserError(
                f"The class {names[own]!r} has {len(rows)} training images, and {shots} shots need "
                f"{shots + 1}: one to choose the strength by. Give more images, or fewer as shots=."
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        learnt.append(rows[:shots])
        chosen_by.append(rows[shots : shots + num_validation])
    return torch.cat(learnt), torch.cat(chosen_by)


def split_off(
    labels: Int64[Tensor, "rows"],
) -> tuple[Int64[Tensor, "learnt"], Int64[Tensor, "validation"]]:
    """Return four fifths of each class to learn from and one to choose by, drawn at random.

    A single row of a class is learnt from.

    Raises:
        UserError: No class has two rows.
    """
    generator = torch.Generator().manual_seed(0)
    learnt, chosen_by = [], []
    for own in torch.unique(labels).tolist():
        rows = (labels == own).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        size = min(len(rows) - 1, max(1, len(rows) // 5))
        learnt.append(rows[size:])
        chosen_by.append(rows[:size])
    learnt, chosen_by = torch.cat(learnt), torch.cat(chosen_by)
    if not len(chosen_by):
        raise UserError(
            "linear_probe has one training image of each class, and needs two: one to choose the "
            "strength by. Give more."
        )
    return learnt, chosen_by


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_(True)
