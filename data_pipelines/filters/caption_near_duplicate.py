"""Captions that are nearly another one: a number, a name or a sign apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt32

from data_pipelines.captions import caption_key
from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.duplicates import best_of, components, is_at
from data_pipelines.curation.encoded import left_on_disk
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError

HASHES = 128
BANDS, ROWS = 25, 5
"""Captions are compared that agree in all ROWS hashes of a band: at a similarity of 0.7 that is
99 % of the pairs, at 0.4 a fifth of them (Leskovec et al., Mining of Massive Datasets, 3.4)."""
WHOLE = 512
"""Captions that agree in a band and are compared each with each; of more, only with the first that
is like none before it, so that a template filled in a million times costs a million comparisons."""
_DRAWN = np.random.default_rng(0).integers(0, 1 << 63, (2, HASHES), np.int64).astype(np.uint64)
FACTORS, TERMS = (_DRAWN[0] << np.uint64(1)) | np.uint64(1), _DRAWN[1]


@dataclass(frozen=True, kw_only=True)
class CaptionNearDuplicate(Filter):
    """MinHash of the caption; of captions that hang together by great similarity one stays.

    Two captions are as similar as the share of runs of 5 characters of either that both have
    (Jaccard), estimated by 128 hashes (Broder 1997): 0.7 and more is a duplicate, as datatrove's
    and NeMo Curator's usual, and what is like the like is, too. The first stays. Case and white
    space make no difference. Only samples that earlier rules left are compared.
    """

    deciding: ClassVar[tuple[str, ...]] = ("similarity",)
    similarity: float = 0.7
    """Least share in [0.5, 1] of what two duplicates have in common."""
    characters: int = 5
    """Of a run."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.similarity <= 1:
            raise UserError(f"similarity={self.similarity} is out of range. Give 0.5 to 1.")
        if self.characters < 1:
            raise UserError(f"characters={self.characters} is no run. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the MinHash of each caption: 128 numbers of 32 bits."""
        return [minhash(caption_key(one.text), self.characters).tobytes() for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which captions are the first of those that are nearly the same."""
        form = np.dtype([("hashes", "<u4", HASHES)])
        with left_on_disk(columns, lambda _: form) as left:
            pairs = _similar(left.records["hashes"], self.similarity)
            component = components(len(left.places), pairs)
        return is_at(columns, left.places[best_of(component, np.zeros(len(component), np.int64))])


def minhash(text: str, characters: int) -> UInt32[np.ndarray, "hashes"]:
    """Return the least of each of 128 hashes of the runs of so many characters of a text."""
    runs = {text[n : n + characters] for n in range(max(1, len(text) - characters + 1))}
    bits = np.array([hash64(run) for run in runs], np.uint64)
    # The high half of a * x + b, a odd, for each of the hashes (Dietzfelbinger 1996).
    return ((bits[:, None] * FACTORS + TERMS) >> np.uint64(32)).min(axis=0).astype("<u4")


def _similar(
    hashes: UInt32[np.ndarray, "rows hashes"], similarity: float
) -> Iterator[Int64[np.ndarray, "_ 2"]]:
    """Yield pairs of rows that agree in a band and in so many of all hashes."""
    for band in range(BANDS):
        rows = np.ascontiguousarray(hashes[:, band * ROWS : (band + 1) * ROWS])
        _, which = np.unique(rows.view(f"V{4 * ROWS}").reshape(-1), return_inverse=True)
        order = np.argsort(which, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            yield from _alike(group, hashes, similarity)


def _alike(
    group: Int64[np.ndarray, "rows"], hashes: np.ndarray, similarity: float
) -> Iterator[Int64[np.ndarray, "_ 2"]]:
    is_large = len(group) > WHOLE
    while len(group) > 1:
        first, rest = group[0], group[1:]
        is_alike = (hashes[rest] == hashes[first]).mean(axis=1) >= similarity
        alike = rest[is_alike]
        yield np.stack([np.full(len(alike), first), alike], axis=1)
        group = rest[~is_alike] if is_large else rest
