"""Pictures whose owners do not want them to be trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.rules import Filter

DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
YES = ("true", "yes", "1")


@dataclass(frozen=True, kw_only=True)
class OptedOut(Filter):
    """Whether the metadata say that the owner opted out: 1 or 0; 1 is dropped.

    A field that is true says so, or one that holds the header ``X-Robots-Tag`` of the picture's
    answer with one of the directives that img2dataset heeds (``noai, noimageai, noindex,
    noimageindex``). A directive for one crawler, ``otherbot: noai``, counts for ``user_agent``
    only. A sample without such fields has not opted out.
    """

    deciding: ClassVar[tuple[str, ...]] = ()
    fields: tuple[str, ...] = ("x_robots_tag", "X-Robots-Tag", "opt_out", "opted_out")
    directives: tuple[str, ...] = DIRECTIVES
    user_agent: str | None = None
    """Name of the crawler that the pictures were fetched by."""

    @property
    def is_pointwise(self) -> bool:
        """Whether a sample's fate follows from its own score: it does."""
        return True

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return 1 where the owner opted out."""
        return [
            int(any(self._says_no(one.metadata.get(name)) for name in self.fields))
            for one in candidates
        ]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples are not opted out."""
        return (column.numbers == 0 for column in columns)

    def _says_no(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(self._says_no(header) for header in value)
        if not isinstance(value, str):
            return bool(value) and value == value  # a table has NaN where there is nothing
        agent, colon, rest = value.lower().partition(":")
        if colon and agent.strip() != (self.user_agent or "").lower():
            return False
        said = {word.strip() for word in (rest if colon else agent).split(",")}
        return bool(said & {*self.directives, *YES})
