"""How long a part of a run is: ``"2000 steps"``, ``"1000000 samples"``, ``"1 epochs"``, ``"5%"``.

Everything is counted in samples seen, so that a run with another batch size or number of processes
is the same run; only a length that is written in steps changes with the batch.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from vlp.errors import UserError

Unit = Literal["steps", "samples", "epochs", "%"]
EXAMPLES = '"2000 steps", "1000000 samples", "1 epochs" or "5%"'


class RunLength(NamedTuple):
    """What a duration is a part of."""

    samples: float
    """Of the whole run, before they are rounded up to whole batches."""
    batch_size: int
    epoch: int | None
    """Samples in a pass over the data; None: drawn with replacement, so there are no passes."""


@dataclass(frozen=True)
class Duration:
    """A number and what is counted."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, what: str, examples: str = EXAMPLES) -> "Duration":
        """Return the duration that a text such as ``"5%"`` or ``"1e6 samples"`` names.

        Args:
            text: A number from 0 and one of steps, samples, epochs and %.
            what: Name of the option, for the message.
            examples: What may be written instead, for the message.

        Raises:
            UserError: It is no such text.
        """
        match = re.fullmatch(r"([\d.,_e+]+) *(steps?|samples?|epochs?|%)", text.strip())
        try:
            amount = float(match[1].replace(",", "")) if match else math.nan
        except ValueError:
            amount = math.nan
        if not match or not math.isfinite(amount):
            raise UserError(f"{what} is {text!r}. Write it as {examples}.")
        unit = match[2] if match[2] == "%" else match[2].rstrip("s") + "s"
        return cls(amount, cast(Unit, unit))

    def samples(self, run: RunLength) -> float:
        """Return the duration in samples of this run.

        Raises:
            UserError: It is in epochs of data that is not counted.
        """
        if self.unit == "epochs" and run.epoch is None:
            raise UserError(
                f"Data that is drawn with replacement has no epochs. Write {self} in samples."
            )
        sizes = {
            "steps": run.batch_size,
            "samples": 1,
            "epochs": run.epoch,
            "%": run.samples / 100,
        }
        return round(self.amount * (sizes[self.unit] or 0), 6)  # a stage begins at a step

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.amount:,.12g}{'' if self.unit == '%' else ' '}{self.unit}"
