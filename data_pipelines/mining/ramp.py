"""A number that follows from the samples seen."""

from typing import NamedTuple


class Ramp(NamedTuple):
    """A number that changes along a line over so many samples seen, and then stays."""

    first: float
    last: float
    samples: float = 0.0

    def at(self, samples_seen: float) -> float:
        """Return the number after so many samples."""
        done = min(1.0, samples_seen / self.samples) if self.samples else 1.0
        return self.first + (self.last - self.first) * done
