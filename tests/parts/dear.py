"""A filter that is said to be dear, for tests: it counts the letters of captions."""

from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.curation.rules import BoundedFilter, Cost


@dataclass(frozen=True, kw_only=True)
class Dear(BoundedFilter):
    """Letters of the caption."""

    cost: ClassVar[Cost] = Cost.MODEL

    def score(self, candidates):
        return [len(one.text) for one in candidates]
