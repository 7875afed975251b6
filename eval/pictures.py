"""Picture files that a benchmark names, and parts of them, as a dataset."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class Readable(Protocol):
    """A picture of a benchmark; what it is made of names it."""

    @property
    def path(self) -> Path:
        """The file that it lies in."""
        ...

    def read(self) -> bytes:
        """Return an encoded picture; raises SampleFault."""
        ...

    def __iter__(self) -> Iterator[object]: ...


def check_pictures(pictures: Sequence[Readable], path: Path, folder: Path) -> None:
    """Raise UserError where a file names pictures that the folder lacks."""
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise UserError(
            f"{path} names {len(missing)} pictures that are not in {folder}, such as "
            f"{missing[0].name}. Give the folder that holds them as images=."
        )


def encode_pictures(
    encode: Encode, pictures: Sequence[Readable], name: str
) -> Float[Tensor, "pictures dim"]:
    """Return the features of different pictures, kept under the name of the evaluator.

    Raises:
        UserError: One of them is broken: a benchmark without it would be another.
    """
    encoded = encode.dataset(pictures_dataset(pictures, name), name, only="images")
    if len(encoded.samples) < len(pictures):
        raise UserError(
            f"{name} needs all of its {len(pictures)} pictures: {encoded.faults.summary()}."
        )
    return encoded.image


def pictures_dataset(pictures: Sequence[Readable], name: str) -> Dataset:
    """Return different pictures as a dataset without captions and labels."""
    keys = [" ".join(map(str, picture)) for picture in pictures]
    files = list(dict.fromkeys(picture.path for picture in pictures))
    return Dataset(
        name=f"the pictures of {name}",
        keys=keys,
        read=lambda row: Sample(keys[row], pictures[row].read(), "", {}),
        files=files,
        identity=identity_of(keys, files),
    )


def encoded_pixels(picture: Image.Image) -> bytes:
    """Return a picture as bytes that decode to its very pixels, quickly."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()
