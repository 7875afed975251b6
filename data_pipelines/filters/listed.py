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
from data_pipelines.keep_list import KeyList, UidList
from data_pipelines.uids import DIGITS, uid_pairs
from vlp.console import warn


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
        listed = KeyList(Path(self.path))
        for column in columns:
            yield listed.copies(column.shard, column.keys)
        if left := listed.left():
            warn(left)

    def _by_uid(self, columns: Columns) -> Iterator[np.ndarray]:
        listed = UidList(Path(self.path))
        for column in columns:
            names = column.values.to_pylist()
            has_uid = [
                left and bool(DIGITS.fullmatch(names[n])) for n, left in enumerate(column.left)
            ]
            uids = uid_pairs(
                [name if has else "" for name, has in zip(names, has_uid, strict=True)]
            )
            yield listed.copies(uids, np.array(has_uid, bool))


def _name(one: Candidate) -> str:
    try:
        return str(one.metadata.get("uid") or one.key)
    except SampleFault:  # its metadata cannot be read; its key can
        return one.key
