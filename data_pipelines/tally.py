"""What is counted while samples are read: how many, how long, how much, and what was wrong."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

COUNTS = ("reads", "substituted", "captions_cut", "hard_captions", "hard_due", "hard_without")


class Fault(NamedTuple):
    """Something wrong that a worker met."""

    reason: str
    shard: str
    """Its name, see ``Reader.shard_name``."""
    key: str


@dataclass
class Tally:
    """What a worker counted while it read."""

    reads: int = 0
    substituted: int = 0
    captions_cut: int = 0
    hard_captions: int = 0
    """Made of samples that were due to get some, ``hard_due``; ``hard_without`` got none."""
    hard_due: int = 0
    hard_without: int = 0
    faults: dict[Fault, None] = field(default_factory=dict)
    """Each once, in the order met."""
    headers: dict[str, dict] = field(default_factory=dict)
    """By shard, what its headers have wrong, where that was not known from the start."""
    seconds: dict[str, float] = field(default_factory=partial(defaultdict, float))
    """By stage: fetch, read, decode, transform, tokenise, change captions, hand over."""
    bytes_read: dict[int, int] = field(default_factory=partial(defaultdict, int))
    """By source."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds of the slowest read, and its shard."""
    _since: float = field(default_factory=time.perf_counter)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Tally":
        """Return what ``as_record`` wrote down."""
        return cls(
            **{name: record.get(name, 0) for name in COUNTS},
            faults=dict.fromkeys(Fault(*fault) for fault in record["faults"]),
            headers=dict(record["headers"]),
        )

    def as_record(self) -> dict[str, Any]:
        """Return all but times and bytes as plain data."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "faults": [tuple(fault) for fault in self.faults],
            "headers": dict(self.headers),
        }

    def tick(self, stage: str) -> float:
        """Count the time since the last tick as this stage's, and return it."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[stage] += spent
        return spent

    def add(self, other: "Tally") -> None:
        """Add what was counted elsewhere."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults |= other.faults
        self.headers |= other.headers
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds
        for source, count in other.bytes_read.items():
            self.bytes_read[source] += count
        self.slowest = max(self.slowest, other.slowest)
