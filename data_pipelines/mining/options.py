"""How a plan is mined: what samples are alike by, and which pairs are false negatives."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

from data_pipelines.captions import Group
from vlp.errors import UserError

By = Literal["image", "text", "mean"]
Kind = Literal["text", "image", "cross"]
BATCHES = 2
"""Batches of samples in a cluster, on average: of half of a batch, four hard parts, which are
others in every epoch."""
EXACT = 100_000
"""Samples up to which every pair is compared: a minute on two cores, of 512 numbers."""


class Bound(NamedTuple):
    """A cosine above which two samples are false negatives of each other.

    Of caption to caption, image to image, or ``cross``, image to caption. The limit is a cosine; or
    a share of the cosine of an anchor's own image and caption, where either of the two as the
    anchor will do (NV-Retriever, Moreira et al. 2024, arXiv:2407.15831, section 3.2: 0.95 of the
    positive's, "TopK-PercPos").
    """

    kind: Kind
    limit: float
    is_relative: bool

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Return the bound of ``"text:0.95"``, or of ``"cross:0.95x"``, a share of the positive.

        Raises:
            UserError: It is no such text.
        """
        kind, _, limit = text.partition(":")
        try:
            number = float(limit.removesuffix("x"))
        except ValueError:
            number = math.nan
        is_relative = limit.endswith("x")
        if kind not in get_args(Kind) or not 0 < number < (100 if is_relative else 1):
            raise UserError(
                f"Cannot read the bound {text!r}. Write a cosine, as text:0.95, image:0.95 or "
                f"cross:0.4, or a share of an anchor's own cosine, as cross:0.95x."
            )
        return cls(cast(Kind, kind), number, is_relative)

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.kind}:{self.limit:g}{'x' if self.is_relative else ''}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Features that it is about."""
        is_both = self.is_relative or self.kind == "cross"
        return ("image", "text") if is_both else (self.kind,)


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """How a plan is mined."""

    by: By = "mean"
    """What samples are alike by: their image features, those of their captions, or the mean."""
    clusters: int | None = None
    """Number of clusters; None: one for each ``BATCHES`` batches of samples."""
    cap: float | None = None
    """Size that a cluster may have at most, in mean sizes: 1 makes them equal; None: any."""
    neighbours: int = 0
    """Mine seeds, each with so many of its nearest, in place of clusters; 0: clusters."""
    apart: tuple[str, ...] = ("text:0.95", "image:0.95")
    """Bounds above which two samples never meet in a batch."""
    group: Group = "caption"
    """Equal captions, classes or images never meet, either."""
    label_key: str = "cls"
    """Field of the metadata that holds the class."""
    exact: int = EXACT
    """Samples up to which every pair is compared."""
    batch_size: int = 256
    """Of the batches that will be read, which clusters should be some times as large as."""
    seed: int = 0
    """Draws what k-means learns from."""

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"--clusters is {self.clusters}. Write 1 or more.")
        if self.batch_size < 2:
            raise UserError(f"--batch-size is {self.batch_size}. Write that of the run, 2 or more.")
        if self.cap is not None and not 1 <= self.cap < math.inf:
            raise UserError(f"--cap is {self.cap}. Write a factor from 1 (equal sizes) up.")
        if not 0 <= self.neighbours <= 64:
            raise UserError(f"--neighbours is {self.neighbours}. Write 1 to 64, or 0 for none.")
        for name in ("exact", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}. Write 0 or more.")
        if self.neighbours and (self.clusters or self.cap):
            raise UserError("Mine either --neighbours or --clusters with their --cap.")
        for bound in self.apart:
            Bound.parse(bound)

    def num_clusters(self, count: int) -> int:
        """Return the number of clusters of so many samples."""
        return self.clusters or max(1, round(count / (BATCHES * self.batch_size)))

    @property
    def bounds(self) -> list[Bound]:
        """The bounds of ``apart``."""
        return [Bound.parse(text) for text in self.apart]

    @property
    def needs(self) -> set[str]:
        """Features that are asked for, ``image`` and ``text``."""
        own = ("image", "text") if self.by == "mean" else (self.by,)
        return {*own, *(kind for bound in self.bounds for kind in bound.needs)}
