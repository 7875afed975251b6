"""The one door to features: whatever evaluators look at is encoded once, over all processes."""

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet, Only, caption_of, encode_dataset
from eval.kept import (
    CAPTIONS,
    is_kept,
    open_folder,
    read_captions,
    read_set,
    write_captions,
    write_set,
)
from vlp.checkpoint import encoder_hash
from vlp.console import say
from vlp.encode import encode_texts
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.processes import ALONE, Processes

EVALUATED = "evaluated"
"""What the evaluated dataset is called in the folder; others have their evaluators' names."""
OF_CAPTIONS = "captions"
"""What the folder of all captions is called."""


@dataclass(frozen=True)
class Encode:
    """Turns datasets and captions into features, each of them once.

    All processes call it in the same order and get the same rows, bit for bit for any number of
    them. With a folder, what is encoded is kept there, a folder for each dataset and one for all
    captions, and the next evaluation of the same model encodes nothing.
    """

    encoder: DualEncoder
    """In eval mode."""
    _: KW_ONLY
    processes: Processes = ALONE
    batch_size: int = 256
    """Samples encoded together."""
    folder: Path | None = None
    overwrite: bool = False
    """Begin the folder anew."""

    def __post_init__(self) -> None:
        assert not self.encoder.training, "dropout would blur the features"
        if self.folder:
            folder = self.folder
            self.processes.from_first(
                lambda: open_folder(folder, self._of_model, overwrite=self.overwrite)
            )

    def dataset(
        self, dataset: Dataset, name: str = EVALUATED, *, pooled: bool = False, only: Only = None
    ) -> EncodedSet:
        """Return the features of a dataset.

        Args:
            dataset: What is encoded.
            name: What it is called in the folder.
            pooled: Whether rows before the projections are wanted, too.
            only: Of what there are to be features.

        Raises:
            UserError: Nothing of it could be read, a feature is not finite, or the folder holds
                features of another model or dataset, or damaged ones.
        """
        for known in self._sets:
            if known.dataset.identity == dataset.identity and _holds(known, pooled, only):
                return known
        place = self.folder / name.replace("/", "-") if self.folder else None
        config = self._describe(dataset) | {"only": only or "images and texts"} if place else {}
        file = "image_pooled.npy" if pooled else "image.npy"
        if place and self._is_kept(place, config, file, dataset.files):
            say(f"The features of {dataset.name} are those in {place}.")
            return self._remembered(read_set(place, dataset))
        encoded = encode_dataset(
            self.encoder,
            dataset,
            pooled=pooled,
            only=only,
            batch_size=self.batch_size,
            processes=self.processes,
        )
        check_features(encoded)
        if place and self.processes.is_first:
            write_set(place, config, encoded)
            say(f"Wrote the features of {len(encoded.samples)} samples into {place}.")
        return self._remembered(encoded)

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        """Return the features of captions, in their order; none is encoded twice."""
        different = dict.fromkeys(captions)
        new = [c for c in different if c not in self._captions and c not in self._of_samples]
        rows = encode_texts(self.encoder, new, processes=self.processes)
        self._captions.update(zip(new, rows, strict=True))
        known = self._of_samples | self._captions
        rows = [known[caption] for caption in captions]
        return torch.stack(rows) if rows else torch.empty(0, self.encoder.dim)

    def keep_texts(self) -> None:
        """Write the captions that were encoded into the folder."""
        if self.folder and self._captions and self.processes.is_first:
            write_captions(self._captions_folder, self._of_model, self._captions)

    def about(self, dataset: Dataset) -> dict[str, Any]:
        """Return all that the features of a dataset may depend on."""
        return self._describe(dataset) | {"processes": self.processes.count}

    @cached_property
    def _captions(self) -> dict[str, Tensor]:
        """The features of captions that were encoded, now or in an earlier evaluation."""
        if self.folder and self._is_kept(self._captions_folder, self._of_model, CAPTIONS):
            return self.processes.from_first(lambda: read_captions(self._captions_folder))
        return {}

    @cached_property
    def _of_samples(self) -> dict[str, Tensor]:
        """The features of captions that the datasets' own rows hold."""
        return {}

    @cached_property
    def _sets(self) -> list[EncodedSet]:
        """The datasets that were encoded."""
        return []

    def _remembered(self, encoded: EncodedSet) -> EncodedSet:
        self._sets.append(encoded)
        if encoded.text.shape[1]:
            captions = (caption_of(of, encoded.dataset.has_lines) for of in encoded.samples)
            self._of_samples.update(zip(captions, encoded.text, strict=True))
        return encoded

    @property
    def _captions_folder(self) -> Path:
        assert self.folder
        return self.folder / OF_CAPTIONS

    def _is_kept(
        self, place: Path, config: dict[str, Any], file: str, inputs: Sequence[Path] = ()
    ) -> bool:
        """Return on every process whether a folder holds what is asked for."""
        return self.processes.from_first(lambda: is_kept(place, config, file, inputs))

    @cached_property
    def _of_model(self) -> dict[str, Any]:
        return {
            "model_hash": encoder_hash(self.encoder),
            "preprocessing": self.encoder.config["preprocess_cfg"],
            "dtype": str(self.encoder.logit_scale.dtype).removeprefix("torch."),
        }

    def _describe(self, dataset: Dataset) -> dict[str, Any]:
        """Return what features depend on: the same description, the same features."""
        keys = hashlib.sha256("\0".join(dataset.keys).encode(errors="surrogatepass"))
        return self._of_model | {
            "dataset_identity": dataset.identity,
            "ids": keys.hexdigest()[:16],
            "has_lines": dataset.has_lines,
            "samples": len(dataset),
        }


def _holds(encoded: EncodedSet, pooled: bool, only: Only) -> bool:
    """Return whether a set has all the features that are asked for."""
    has_images, has_texts = (of.shape[1] > 0 for of in (encoded.image, encoded.text))
    has_pooled = encoded.image_pooled is not None or not pooled
    return has_pooled and (has_images or only == "texts") and (has_texts or only == "images")


def check_features(encoded: EncodedSet) -> None:
    """Raise UserError unless there are features, and all are finite."""
    if not encoded.samples:
        raise UserError(
            f"There is no sample to evaluate: none could be read ({encoded.faults.summary()})."
        )
    for kind, features in (("image", encoded.image), ("text", encoded.text)):
        if not torch.isfinite(features).all():
            raise UserError(
                f"The model gives {kind} features that are NaN or infinite: its weights are "
                f"broken. Give an earlier checkpoint."
            )
