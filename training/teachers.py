"""Teachers: a frozen model that encodes each batch, or its features on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data_pipelines.plan import Plan, Resampled
from data_pipelines.shards import ShardSet
from data_pipelines.tar_index import open_index
from data_pipelines.teacher_input import TeacherInput
from training.compute.accumulate import Pieces, encode
from vlp.checkpoint import encoder_hash, load_encoder
from vlp.console import warn
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.features import FOLDERS, StoredFeatures, open_features
from vlp.types import Batch, TeacherFeatures

CHECKED = 2_000_000
"""Training samples up to which all are looked up among a teacher's features before a run begins;
that takes about 2 seconds."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a run learns from: exactly one of a frozen encoder and features on disk.

    No weights of it are in a checkpoint, only its identity: a run does not go on with another.
    """

    name: str
    identity: str
    """Hash of its weights and config, or of its features' samples and some of their numbers."""
    scale: float | None
    """The logit scale that it was trained to, where it is known."""
    encoder: DualEncoder | None = None
    features: StoredFeatures | None = None

    @property
    def input(self) -> TeacherInput | None:
        """What the loader prepares for the encoder."""
        return self.encoder and TeacherInput(self.encoder.image_size, self.encoder.tokenizer)

    @torch.no_grad()
    def __call__(self, batch: Batch, pieces: Pieces) -> TeacherFeatures:
        """Return the teacher's features of a batch, encoded in the pieces of the student's."""
        if self.encoder is None:
            assert batch.teacher_features is not None
            image, text = F.normalize(batch.teacher_features.float(), dim=-1).unbind(1)
            return TeacherFeatures(image, text, self.scale)
        own = batch.images if batch.teacher_images is None else batch.teacher_images
        assert batch.teacher_tokens is not None
        seen = Batch(own, batch.teacher_tokens, batch.keys, batch.group, batch.seed)
        pairs, _ = encode(self.encoder, seen, pieces)
        return TeacherFeatures(pairs.image, pairs.text, self.scale)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint knows of the teacher."""
        return {"identity": self.identity}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Raise UserError unless the checkpoint's teacher was this one."""
        if state["identity"] != self.identity:
            raise UserError(
                f"The teacher {self.name} is no longer the one that the run began with. Bring the "
                f"old one back to its place, or use --overwrite. To be safe from this, give a copy "
                f"(vlp export) and not a run that still goes on."
            )


def is_stored(name: str) -> bool:
    """Return whether a teacher is features on disk, not a model."""
    return any((Path(name) / folder).is_dir() for folder in FOLDERS["image"])


def open_teacher(name: str, device: torch.device) -> Teacher:
    """Return the teacher that a model or a folder of features is.

    Raises:
        UserError: It is neither, or damaged.
    """
    if is_stored(name):
        features = open_features(Path(name))
        scale = features.scale
        return Teacher(name=name, identity=features.identity, scale=scale, features=features)
    encoder = load_encoder(name)
    scale, identity = encoder.logit_scale.exp().item(), encoder_hash(encoder)
    return Teacher(name=name, identity=identity, scale=scale, encoder=encoder.to(device))


def check_features(
    features: StoredFeatures, sources: list[ShardSet], plan: Plan, max_bad: float
) -> None:
    """Look up the samples of a plan among a teacher's features, where that takes seconds.

    A sample without features counts as one that cannot be read: another takes its place.

    Raises:
        UserError: More than ``max_bad`` of the samples have none.
    """
    is_drawn = any(isinstance(row, Resampled) for row in plan.rows)
    if is_drawn or sum(int(source.counts.sum()) for source in sources) > CHECKED:
        return
    missing, count, example = 0, 0, ""
    for source, row in zip(sources, plan.rows, strict=True):
        for number, shard in enumerate(source.shards):
            keys = np.array(open_index(shard).keys, dtype=object)
            if copies := getattr(row, "copies", None):
                keys = keys[copies[number] > 0]
            lacking = keys[~features.has(keys.tolist())] if len(keys) else keys
            missing, count = missing + len(lacking), count + len(keys)
            example = example or (f"{lacking[0]} of {shard.name}" if len(lacking) else "")
    told = f"{missing} of {count} samples have no features in {features.folder}, such as {example}"
    if missing > max_bad * count:
        raise UserError(f"{told}. Run `vlp embed` on these shards, or give a model as --teacher.")
    if missing:
        warn(f"{told}. Others take their places.")
