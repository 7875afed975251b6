"""The fault ledger: what was wrong with the data, counted by reason, never swallowed."""

import threading
from typing import Any

EXAMPLES = 5
"""Places kept for each reason."""


class SampleFault(Exception):
    """A sample that cannot be used; the message is the reason that the ledger counts."""


class Faults:
    """Bad samples and shards: how many for each reason, and where the first few are."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, reason: str, shard: str, key: str, count: int = 1) -> None:
        """Count a fault. The reason comes from a short fixed list; shard and key say where."""
        with self._lock:
            self._counts[reason] = self._counts.get(reason, 0) + count
            examples = self._examples.setdefault(reason, [])
            if key and len(examples) < EXAMPLES:
                examples.append(f"{shard}: {key}" if shard else key)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def summary(self) -> str:
        """Return one line, such as ``3 image ends early, 1 no caption``; "" where all is well."""
        order = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {reason}" for reason, count in order)

    def merge(self, other: dict[str, dict[str, Any]]) -> None:
        """Add what another process found, as ``as_dict`` gives it."""
        for reason, found in other.items():
            rest = found["count"] - len(found["examples"])
            for example in found["examples"]:
                self.add(reason, "", example)
            if rest:
                self.add(reason, "", "", rest)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return ``{reason: {"count": ..., "examples": [...]}}`` for a report."""
        return {
            reason: {"count": count, "examples": self._examples[reason]}
            for reason, count in sorted(self._counts.items())
        }
