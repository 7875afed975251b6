"""Picture files that a benchmark names, and parts of them, as a dataset."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from data_pipelines.dataset import Dataset, identity_of
from data_pipelines.faults import SampleFault
from eval.features import Encode
from vlp.errors import UserError
from vlp.image import decode
from vlp.types import Sample


class Picture(NamedTuple):
    """A picture file, or a part of it."""

    path: Path
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom in pixels; None for the whole."""

    def read(self) -> bytes:
        """Return an encoded picture.

        Raises:
            SampleFault: The file cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SampleFault(f"file cannot be read: {error.strerror}") from None
        return data if self.box is None else encoded_pixels(decode(data).crop(self.box))


def check_pictures(pictures: Sequence[Picture], path: Path, folder: Path) -> None:
    """Raise UserError where a file names pictures that the folder lacks."""
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise UserError(
            f"{path} names {len(missing)} pictures that are not in {folder}, such as "
            f"{missing[0].name}. Give the folder that holds them as images=."
        )


def encode_pictures(
    encode: Encode, pictures: Sequence[Picture], name: str
) -> Float[Tensor, "pictures dim"]:
    """Return the features of different pictures, kept under the name of the evaluator.

    Raises:
        UserError: One of them is broken: a benchmark without it would be another.
    """
    encoded = encode.dataset(_dataset(pictures, name), name, only="images")
    if len(encoded.samples) < len(pictures):
        raise UserError(
            f"{name} needs all of its {len(pictures)} pictures: {encoded.faults.summary()}."
        )
    return encoded.image


def encoded_pixels(picture: Image.Image) -> bytes:
    """Return a picture as bytes that decode to its very pixels, quickly."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def _dataset(pictures: Sequence[Picture], name: str) -> Dataset:
    keys = [f"{picture.path} {picture.box or ''}".strip() for picture in pictures]
    files = [picture.path for picture in pictures]
    return Dataset(
        name=f"the pictures of {name}",
        keys=keys,
        read=lambda row: Sample(keys[row], pictures[row].read(), "", {}),
        files=files,
        identity=identity_of(keys, files),
    )
