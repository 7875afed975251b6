"""How often a run does something: ``"1000 steps"``, ``"1000000 samples"``, ``"15 minutes"``."""

import re
from dataclasses import dataclass

from training.duration import Duration, RunLength

EXAMPLES = '"1000 steps", "1000000 samples", "15 minutes", or "0" for only at the end'


@dataclass(frozen=True)
class Cadence:
    """Something is due each time that a run has seen so much more, or that so much time is over."""

    duration: Duration
    """Counted in samples seen from the start of the run; 0: not due before the end."""
    minutes: float = 0.0
    """Counted by the clock since it was last due; 0: the clock decides nothing."""

    @classmethod
    def parse(cls, text: str, what: str) -> "Cadence":
        """Return the cadence that a text names; a bare number is in steps, no text is 0.

        Raises:
            UserError: It is no such text; ``what`` is the name of the option in the message.
        """
        by_clock = re.fullmatch(r"(\d+(?:\.\d+)?) *minutes?", text.strip())
        if by_clock:
            return cls(Duration(0, "steps"), float(by_clock[1]))
        is_bare = re.fullmatch(r"[\d,_]*", text.strip())
        steps = f"{text.strip() or 0} steps" if is_bare else text
        return cls(Duration.parse(steps, what, EXAMPLES))

    def is_due(self, before: int, after: int, run: RunLength) -> bool:
        """Return whether a step from so many samples seen to so many was the one to do it after.

        It crossed a multiple of the duration, so that steps need not meet one.
        """
        every = self.duration.samples(run)
        return bool(every) and after // every > before // every
