"""Selected pictures as a file: the pictures themselves, a list, or a keep-list."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal

from PIL import Image

from vlp.image import FORMATS
from vlp.index.export import write_keep_list
from vlp.serve.library import Library
from vlp.serve.limits import Refused

Kind = Literal["pictures", "json", "keep_list"]
MEDIA_TYPES = {
    "pictures": "application/zip",
    "json": "application/json",
    "keep_list": "application/vnd.apache.parquet",
}
ZIP_BYTES = 1 << 30
IN_MEMORY = 1 << 20
"""Bytes of a file that is not on the disk."""


def packed(library: Library, numbers: Sequence[int], kind: Kind) -> IO[bytes]:
    """Return a file of pictures, in the order of their numbers, that is gone when it is closed.

    Raises:
        Refused: There is no picture of a number, one cannot be read, or they are too large.
    """
    write = {"pictures": _zip, "json": _list, "keep_list": _keep_list}[kind]
    with ExitStack() as closing:
        file = closing.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY))
        write(library, numbers, file)
        closing.pop_all()  # it is closed by whoever sends it
    file.seek(0)
    return file


def _zip(library: Library, numbers: Sequence[int], file: IO[bytes]) -> None:
    """Write the pictures as they are; their names are ours, since a key may be any text."""
    size = 0
    with zipfile.ZipFile(file, "w") as zipped:
        for number in dict.fromkeys(numbers):
            encoded = library.encoded(number)
            size += len(encoded)
            if size > ZIP_BYTES:
                raise Refused(
                    413, f"The pictures have more than {ZIP_BYTES:,} bytes. Select fewer."
                )
            suffix = _suffix(encoded)
            if suffix is None:
                raise Refused(404, f"Picture {number} is none any more: its shard has changed.")
            zipped.writestr(f"{number}.{suffix}", encoded)


def _suffix(encoded: bytes) -> str | None:
    try:
        kind = Image.open(io.BytesIO(encoded), formats=FORMATS).format
    except Exception:  # a damaged header makes decoders raise anything
        return None
    return "jpg" if kind == "JPEG" else str(kind).lower()


def _list(library: Library, numbers: Sequence[int], file: IO[bytes]) -> None:
    found = [library.found(number) for number in numbers]
    listed = [one.model_dump(include={"id", "key", "caption", "metadata"}) for one in found]
    file.write(json.dumps(listed, indent=1, ensure_ascii=False).encode())


def _keep_list(library: Library, numbers: Sequence[int], file: IO[bytes]) -> None:
    """Write what ``vlp search --export`` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keep.parquet"
        write_keep_list(library.index, [library.hit(number) for number in numbers], path)
        file.write(path.read_bytes())
