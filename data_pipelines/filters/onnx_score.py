"""Samples by the number that a model of yours gives them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import file_hash, read_once
from data_pipelines.curation.rules import BoundedFilter, Cost
from vlp.errors import UserError, first_line, needs

LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f])", re.DOTALL)
"""What stands before the name of a file of weights: an entry of ``TensorProto.external_data``, its
key ``location``, and the length of the name, in protobuf's encoding."""


@dataclass(frozen=True, kw_only=True)
class OnnxScore(BoundedFilter):
    """What an ONNX model says of a picture: of NSFW, watermarks, aesthetics.

    It sees the picture as RGB, squeezed to ``size`` by ``size`` pixels (bicubic), as
    ``(pixels / 255 - mean) / std``, laid out as its input is, ``[n, 3, size, size]`` or
    ``[n, size, size, 3]``. With ``model`` it gets the unit-length image feature by that model
    instead, ``[n, dim]``, as LAION's heads on CLIP do.
    """

    cost: ClassVar[Cost] = Cost.MODEL
    needs_picture: ClassVar[bool] = True
    path: str
    """The ``.onnx`` file, with one input."""
    model: str | None = None
    """A model that encodes the picture first, if any."""
    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Of each channel, red, green, blue; the default and that of ``std`` are OpenAI CLIP's."""
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    column: int = 0
    """Which number of the first output is the score, such as the class ``unsafe`` of two."""

    def __post_init__(self) -> None:
        BoundedFilter.__post_init__(self)
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise UserError(
                f"size={self.size}, mean={self.mean}, std={self.std}: give a size of 1 or more, "
                f"and of mean and std three numbers each, none of std 0."
            )

    @property
    def models(self) -> tuple[str, ...]:
        """The model that encodes the pictures, if any."""
        return (self.model,) if self.model else ()

    def identity(self) -> str:
        """Return the hashes of the file, of files that its weights lie in, and of the encoder."""
        digests = [file_hash(self.path), *map(file_hash, _weight_files(self.path))]
        if self.model:
            from data_pipelines.curation.features import model_hash

            digests.append(model_hash(self.model))
        return " ".join(digests)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the number that the model gives each sample."""
        session = _session(self.path)
        given = session.get_inputs()[0]
        if self.model:
            from data_pipelines.curation.features import image_features

            rows = image_features(self.model, candidates)
        else:
            rows = np.stack([self._pixels(one.picture) for one in candidates])
            if given.shape[-1] != 3:
                rows = np.ascontiguousarray(rows.transpose(0, 3, 1, 2))  # [n, 3, size, size]
        # A model whose batch is fixed is made for one picture at a time.
        step = given.shape[0] if isinstance(given.shape[0], int) else len(rows)
        parts = [rows[n : n + step] for n in range(0, len(rows), step)]
        return [score for part in parts for score in self._run(session, given.name, part)]

    def _pixels(self, picture: Image.Image) -> Float[np.ndarray, "size size 3"]:
        small = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        scaled = (np.asarray(small, np.float32) / 255 - self.mean) / self.std
        return scaled.astype(np.float32)

    def _run(self, session: Any, name: str, rows: np.ndarray) -> list[float]:
        try:
            output = session.run(None, {name: rows})[0]
            return np.asarray(output, np.float64).reshape(len(rows), -1)[:, self.column].tolist()
        except Exception as error:  # of onnxruntime's own kinds, which have no common name
            shape = " x ".join(map(str, rows.shape))
            raise UserError(
                f"{self.path} cannot take an input of {shape}: {first_line(error)}. Write size=, "
                f"model= or column= as the model needs."
            ) from None


def _weight_files(path: str) -> list[str]:
    """Return the files beside an ONNX model that hold weights of it, as those above 2 GB have."""
    told = Path(path).read_bytes()
    starts = {match.end(): match[1][0] for match in LOCATION.finditer(told)}
    names = {told[start : start + size].decode() for start, size in starts.items()}
    return sorted(str(Path(path).parent / name) for name in names)


@read_once
def _session(path: str) -> Any:
    """Return a model, loaded once in a process, that computes in one thread."""
    with needs("filters", "ONNX models take onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise UserError(f"Cannot load the model {path}: {first_line(error)}.") from None
