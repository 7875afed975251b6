"""Captions drawn so that frequent entries of a list do not crowd out rare ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.columns import Column, Columns, check_share
from data_pipelines.curation.files import file_hash, read_lines, read_once
from data_pipelines.curation.rules import Filter
from vlp.errors import UserError, needs

TAIL = 0.06
WRAPPED = ",.;:?!`"
SPACED = str.maketrans({**{sign: f" {sign} " for sign in WRAPPED}, **dict.fromkeys("\t\n\r", " ")})


@dataclass(frozen=True, kw_only=True)
class MetaclipBalance(Filter):
    """Numbers of the entries that the caption matches; samples are drawn so that entries balance.

    MetaCLIP (Xu et al. 2023, section 3): a caption matches an entry that it holds between spaces,
    ``, . ; : ? ! ` `` set apart and case as it is. An entry that ``count`` captions match keeps
    each of them with probability t / max(count, t), drawn for each entry, and one that draws it is
    enough; a caption without a match falls. They use 500,000 entries of WordNet and Wikipedia, and
    t = 20,000 for 400 million pairs, 170,000 for 2.5 billion.

    Entries are counted among the samples that earlier rules left. What is drawn follows from the
    sample's key, the entry and the seed.
    """

    deciding: ClassVar[tuple[str, ...]] = ("t", "tail", "seed")
    entries: str
    """Text file with an entry on each line."""
    t: int | None = None
    """Captions that an entry may have before they are thinned out."""
    tail: float | None = None
    """Share of all matches that entries with at most t of them hold; t follows from it. 0.06
    unless t is given, as it is for their t = 20,000."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.t is not None and self.tail is not None:
            raise UserError("t and tail are two ways to say the same. Give one of them.")
        if self.t is not None and self.t < 1:
            raise UserError(f"t={self.t} keeps nothing. Give 1 or more.")
        check_share(TAIL if self.tail is None else self.tail, "tail")

    def identity(self) -> str:
        """Return the hash of the file of entries."""
        return file_hash(self.entries)

    def score(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Return the numbers of the entries that each caption matches, ascending."""
        matcher = _matcher(self.entries)
        return [
            sorted({number for _, number in matcher.iter(f" {one.text} ".translate(SPACED))})
            for one in candidates
        ]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples are drawn for any of their entries."""
        counts = np.zeros(0, np.int64)
        for column in columns:
            own = np.bincount(_left_entries(column)[1], minlength=len(counts))
            own[: len(counts)] += counts
            counts = own
        t = self._t(counts)
        share = t / np.maximum(counts, t)
        for column in columns:
            rows, entries = _left_entries(column)
            ids = np.array([hash64(key) for key in column.keys], np.uint64)
            is_drawn = uniform(ids[rows], entries, self.seed) < share[entries]
            is_kept = np.zeros(len(column.left), bool)
            is_kept[rows[is_drawn]] = True
            yield is_kept

    def _t(self, counts: Int64[np.ndarray, "entries"]) -> int:
        if self.t is not None:
            return self.t
        return t_of_tail(counts, TAIL if self.tail is None else self.tail)


def _left_entries(column: Column) -> tuple[np.ndarray, np.ndarray]:
    rows, entries = column.entries
    is_left = column.left[rows]
    return rows[is_left], entries[is_left]


def t_of_tail(counts: Int64[np.ndarray, "entries"], tail: float) -> int:
    """Return t, so that entries with at most t matches hold this share of them, as near as can be.

    MetaCLIP's ``p_to_t`` (Chuang et al. 2025, MetaCLIP 2, section 3). Of counts 1, 2, 3, 94 and a
    tail of 0.06 it is 3; of no matches, 1.
    """
    ascending = np.sort(counts)
    held = np.cumsum(ascending)
    if not len(held) or not held[-1]:
        return 1
    return max(1, int(ascending[np.abs(held / held[-1] - tail).argmin()]))


def uniform(
    ids: UInt64[np.ndarray, "pairs"], entries: Int64[np.ndarray, "pairs"], seed: int
) -> Float64[np.ndarray, "pairs"]:
    """Return numbers in [0, 1) that follow from the sample, the entry and the seed alone."""
    mixed = _mix(entries.astype(np.uint64) ^ np.uint64(hash64(f"{seed} entry")))
    return (_mix(ids ^ mixed) >> np.uint64(11)) * 2.0**-53


def _mix(bits: UInt64[np.ndarray, "_"]) -> UInt64[np.ndarray, "_"]:
    """Return bits each of which follows from all (splitmix64, Steele et al. 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@read_once
def _matcher(path: str) -> Any:
    """Return an Aho-Corasick automaton of the entries, built once in a process."""
    with needs("filters", "Matching entries takes pyahocorasick"):
        import ahocorasick
    matcher = ahocorasick.Automaton()
    for number, entry in enumerate(dict.fromkeys(read_lines(path))):
        matcher.add_word(f" {entry} ", number)
    matcher.make_automaton()
    return matcher
