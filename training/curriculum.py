"""How a share changes while a run lasts: ``"0.5"``, ``"0 -> 0.5 over 20%"``."""

import re
from dataclasses import dataclass

from data_pipelines.mining.ramp import Ramp
from training.duration import Duration, RunLength
from vlp.errors import UserError


@dataclass(frozen=True)
class Curriculum:
    """A share that changes along a line from the start of the run, and then stays."""

    first: float
    last: float
    over: Duration

    @classmethod
    def parse(cls, text: str, what: str) -> "Curriculum":
        """Return the curriculum of ``"0.5"``, the same all the time, or ``"0 -> 0.5 over 20%"``.

        Args:
            text: One or two shares from 0 to 1, and how long it takes from one to the other.
            what: Name of the option, for the message.

        Raises:
            UserError: It is no such text.
        """
        match = re.fullmatch(r"(?:([\d.]+) *-> *)?([\d.]+)(?: +over +(.+))?", text.strip())
        try:
            shares = [float(share) for share in match.groups()[:2] if share] if match else []
        except ValueError:
            shares = []
        is_ramp = bool(match and match[1])
        if not match or not shares or is_ramp != bool(match[3]) or max(shares) > 1:
            raise UserError(
                f"{what} is {text!r}. Write a share from 0 to 1, as 0.5, or how it changes, as "
                f'"0 -> 0.5 over 20%".'
            )
        return cls(shares[0], shares[-1], Duration.parse(match[3] or "0%", f"The time in {what}"))

    def of(self, run: RunLength) -> Ramp:
        """Return the share as a function of the samples seen in a run of this length."""
        return Ramp(self.first, self.last, self.over.samples(run))
