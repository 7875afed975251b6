"""Guards a run against steps that would harm it: what is not finite, and spikes.

A step is judged by the loss of the global batch and the norm of its gradient, before it is taken.
Spikes are found as in OLMo-core's optimizers that skip steps (a window of 128 steps, 6 standard
deviations), but by median and median absolute deviation, which spikes do not move and rare high
values do not widen: at 6 of them the emoji recipe had a false alarm, of 7, in its first 280 steps,
so 10 is the default. What is done about one is ``note``, ``skip``, or ``rewind``: back to a
checkpoint from before, and on with the data behind it (PaLM, Chowdhery et al. 2022,
arXiv:2204.02311, section 5.1).
"""

import math
from collections import Counter, deque
from statistics import median
from typing import Any, Literal, NamedTuple

from training.options import GuardConfig

DEVIATION = 1.4826
"""Of a normal distribution, the standard deviation over the median absolute deviation."""
LEAST_DEVIATION = 0.01
"""Of a window's values, as a share of their median: a loss that hardly moves has no spikes."""

COUNTS = ("in_a_row", "skipped", "spikes")
Action = Literal["take", "skip", "rewind", "stop"]


class Verdict(NamedTuple):
    """What is done with a step."""

    action: Action = "take"
    why: str = ""
    """What is unusual about the step, for people; empty where nothing is."""
    loss: float = 0.0
    grad_norm: float = 0.0


class Guard:
    """Judges the steps of a run; the same on every process, as what it judges by is the same."""

    def __init__(self, options: GuardConfig) -> None:
        self.options = options
        self.in_a_row = 0
        """Steps not taken since the last that was."""
        self.skipped = 0
        """Steps not taken in all."""
        self.spikes = 0
        self.returns: Counter[int] = Counter()
        """How often the run went back to the checkpoint of each step. Like the two numbers above it
        counts what has happened, which going back does not undo."""
        self._kind: list[int] = []
        self._losses, self._norms = (deque(maxlen=options.window) for _ in range(2))

    def judge(
        self, loss: float, grad_norm: float, *, kind: list[int], is_rescaled: bool = False
    ) -> Verdict:
        """Return what is done with a step.

        Args:
            loss: Of the global batch.
            grad_norm: Of the whole gradient, before it is clipped.
            kind: Numbers that say which steps have comparable losses. Where they change, as with a
                new stage or with more past pairs, the window begins anew.
            is_rescaled: fp16's loss scale can still fall: a gradient that is not finite has
                overflowed, and the step is left out without a word.
        """
        if not math.isfinite(loss):
            why = f"the loss is {loss}"
        elif not math.isfinite(grad_norm):
            if is_rescaled:
                return Verdict("skip", "", loss, grad_norm)
            why = f"the gradient is {grad_norm}"
        else:
            why = self._spike(loss, grad_norm, kind)
            self.spikes += bool(why)
            if not why or self.options.on_spike == "note":
                self.in_a_row = 0
                return Verdict("take", why, loss, grad_norm)
        self.skipped += 1
        self.in_a_row += 1
        return Verdict(self._action(is_spike=math.isfinite(loss + grad_norm)), why, loss, grad_norm)

    @property
    def figures(self) -> dict[str, float]:
        """Return how many steps were not taken and how many were spikes, since the run began."""
        return {"guard/skipped": self.skipped, "guard/spikes": self.spikes}

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to judge as if it had never stopped."""
        counts: dict[str, Any] = {name: getattr(self, name) for name in COUNTS}
        counts["returns"] = dict(self.returns)
        window = {"losses": list(self._losses), "norms": list(self._norms), "kind": self._kind}
        return counts | window

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Become what it was; of a longer window the newest steps are kept."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.returns = Counter(state.get("returns", {}))
        self._kind = list(state["kind"])
        for window, values in ((self._losses, state["losses"]), (self._norms, state["norms"])):
            window.clear()
            window.extend(values)

    def _action(self, *, is_spike: bool) -> Action:
        is_last = self.in_a_row >= self.options.patience
        if self.options.on_spike == "rewind" and (is_spike or is_last):
            return "rewind"
        return "stop" if is_last else "skip"

    def _spike(self, loss: float, grad_norm: float, kind: list[int]) -> str:
        """Return in which respect the step is a spike, or nothing, and note it in the window."""
        if kind != self._kind:
            self._kind = kind
            self._losses.clear()
            self._norms.clear()
        told = [
            f"the {name} is {value:.4g}, {height:.0f} deviations above the median of {middle:.4g}"
            for name, value, window in (
                ("loss", loss, self._losses),
                ("gradient norm", grad_norm, self._norms),
            )
            for height, middle in [_height(value, window)]
            if 0 < self.options.spike < height and len(window) >= self.options.window / 2
        ]
        # Spikes too: where the level has changed for good, it is the usual one in half a window.
        self._losses.append(loss)
        self._norms.append(grad_norm)
        return " and ".join(told)


def _height(value: float, window: deque[float]) -> tuple[float, float]:
    """Return how many deviations a value lies above the median of a window, and the median."""
    if not window:
        return 0.0, 0.0
    middle = median(window)
    deviation = DEVIATION * median(abs(other - middle) for other in window)
    return (value - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-30), middle
