"""A mined plan on disk: for each sample what it is hard beside, and what it must never meet.

One file, ``mined-HASH.safetensors``, in the order of the shards and then of the tar: 12 bytes a
sample, 8 for each pair that is kept apart, 4 for each neighbour where neighbours were mined.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipelines.plan import hash63
from data_pipelines.shards import ShardSet
from data_pipelines.sources import relative_names
from vlp.errors import UserError, first_line
from vlp.output import write_bytes

NAME = "mined"
SUFFIX = ".safetensors"
TOLD = "mined"
"""The one field of the file's header: what the plan was mined of, and how, as JSON."""
NO_FEATURES = -1
LEFT_OUT = -2
"""As a cluster: samples without features, and those that the keep-list left out."""


@dataclass(frozen=True, eq=False)
class Mined:
    """What was mined of the samples of some shards.

    Two samples are kept apart where they have the same group, or are a pair of ``apart``.
    """

    cluster: Int32[np.ndarray, "samples"]
    """``NO_FEATURES`` and ``LEFT_OUT`` are no clusters."""
    group: Int32[np.ndarray, "samples"]
    """Number of the caption, class or image; one of its own where nothing else has it."""
    component: Int32[np.ndarray, "samples"]
    """What hangs together by groups and pairs has the same number."""
    apart: Int32[np.ndarray, "pairs 2"]
    neighbours: Int32[np.ndarray, "samples neighbours"]
    """The nearest samples that are not kept apart from each, nearest first, then -1; of clusters
    none."""
    told: dict[str, Any]
    """The shards, and the options that it was mined with."""
    read: UInt8[np.ndarray, "bytes"] | None = None
    """Of a plan that a run mined in the middle of an epoch: which entries of the epoch had been
    read, as bits."""

    def __len__(self) -> int:
        return len(self.cluster)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """Return the file: equal plans have equal bytes."""
        names = ("cluster", "group", "component", "apart", "neighbours", "read")
        arrays = {name: getattr(self, name) for name in names}
        held = {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}
        return save(held, {TOLD: json.dumps(self.told, sort_keys=True)})

    def check(self, shards: ShardSet, copies: Sequence[Int64[np.ndarray, "_"]] | None) -> None:
        """Raise UserError unless these are the shards, and the samples, that were mined.

        Args:
            shards: Those that are to be read.
            copies: How often each of their samples stands in an epoch; None: every one once.
        """
        if self.told["shards"] != identity_of(shards):
            raise UserError(
                f"The plan was mined of {len(self)} samples, and the shards here hold "
                f"{int(shards.counts.sum())} or have other names. Run `vlp mine` on these shards."
            )
        if copies is not None or (self.cluster == LEFT_OUT).any():
            is_read = np.concatenate(copies) > 0 if copies else np.ones(len(self), bool)
            if missing := int((is_read & (self.cluster == LEFT_OUT)).sum()):
                raise UserError(
                    f"{missing} samples that are to be read were left out by the keep-list that "
                    f"the plan was mined with. Run `vlp mine` with this run's --data.keep."
                )


def identity_of(shards: ShardSet) -> str:
    """Return what shards share that hold as many samples under the same names."""
    names = "\n".join(relative_names(shards.shards))
    return f"{hash63(names.encode() + shards.counts.astype('<i8').tobytes()):016x}"


def write_mined(mined: Mined, folder: Path, name: str = NAME) -> Path:
    """Write a plan to a file whose name ends in its hash, whole or not at all; return its path."""
    path = folder / f"{name}-{mined.hash}{SUFFIX}"
    write_bytes(path, mined.to_bytes())
    return path


def read_mined(path: Path) -> Mined:
    """Return a mined plan: a folder of `vlp mine`, or a file of it.

    Raises:
        UserError: It cannot be read, or is not as it was written.
    """
    if path.is_dir():
        path = next(path.glob(f"{NAME}-*{SUFFIX}"), path / f"{NAME}{SUFFIX}")
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        told = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][TOLD])
        mined = Mined(**load(content), told=told)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Cannot read the mined plan {path}: {first_line(error)}. Give a folder that "
            f"`vlp mine` wrote."
        ) from None
    if mined.hash != path.stem.rpartition("-")[2]:
        raise UserError(f"The mined plan {path} is not as it was written. Run `vlp mine` again.")
    return mined
