"""Samples that a keep-list names, each as often as it says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns
from data_pipelines.curation.rules import Filter
from data_pipelines.faults import SampleFault
from data_pipelines.keep_list import listed_copies, listed_uids
from data_pipelines.uids import DIGITS, uid_pairs


@dataclass(frozen=True, kw_only=True)
class Listed(Filter):
    """The uid of a sample, or else its key; those that a list names stay, in its copies.

    The list is ``keep.parquet`` of `vlp filter --keep-list`, by shard and key, or DataComp's
    ``.npy`` of uids, where one that stands twice is kept twice (Gadre et al. 2023); of samples of
    one uid the first is kept, as a run that reads the list does.
    """

    deciding: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    """The file, or the folder that holds ``keep.parquet``."""

    def score(self, candidates: Sequence[Candidate]) -> list[str]:
        """Return the name of each sample."""
        return [_name(one) for one in candidates]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield how often each sample is kept."""
        if self.path.endswith(".npy"):
            return self._by_uid(columns)
        return self._by_key(columns)

    def _by_key(self, columns: Columns) -> Iterator[np.ndarray]:
        wanted = listed_copies(Path(self.path))
        for column in columns:
            own = wanted.get(column.shard, {})
            yield np.array([own.get(key, 0) for key in column.keys], np.int64)

    def _by_uid(self, columns: Columns) -> Iterator[np.ndarray]:
        wanted, copies = listed_uids(Path(self.path))
        is_met = np.zeros(len(wanted), bool)
        for column in columns:
            names = column.values.to_pylist()
            rows = [row for row in np.flatnonzero(column.left) if DIGITS.fullmatch(names[row])]
            uids = uid_pairs([names[row] for row in rows])
            at = np.searchsorted(wanted, uids).clip(max=max(0, len(wanted) - 1))
            kept = np.zeros(len(names), np.int64)
            for number in np.flatnonzero(wanted[at] == uids) if len(wanted) else ():
                if not is_met[at[number]]:
                    is_met[at[number]], kept[rows[number]] = True, copies[at[number]]
            yield kept


def _name(one: Candidate) -> str:
    try:
        return str(one.metadata.get("uid") or one.key)
    except SampleFault:  # its metadata cannot be read; its key can
        return one.key
