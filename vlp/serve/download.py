"""Selected pictures as a file: the pictures themselves, a list, or a keep-list."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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


def packed(library: Library, numbers: Sequence[int], kind: Kind) -> bytes:
    """Return a file of pictures, in the order of their numbers.

    Raises:
        Refused: There is no picture of a number, one cannot be read, or they are too large.
    """
    make = {"pictures": _zipped, "json": _listed, "keep_list": _keep_list}[kind]
    return make(library, numbers)


def _zipped(library: Library, numbers: Sequence[int]) -> bytes:
    """Return the pictures as they are; their names are ours, since a key may be any text."""
    buffer, size = io.BytesIO(), 0
    with zipfile.ZipFile(buffer, "w") as file:
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
            file.writestr(f"{number}.{suffix}", encoded)
    return buffer.getvalue()


def _suffix(encoded: bytes) -> str | None:
    try:
        kind = Image.open(io.BytesIO(encoded), formats=FORMATS).format
    except Exception:  # a damaged header makes decoders raise anything
        return None
    return "jpg" if kind == "JPEG" else str(kind).lower()


def _listed(library: Library, numbers: Sequence[int]) -> bytes:
    found = [library.found(number) for number in numbers]
    listed = [one.model_dump(include={"id", "key", "caption", "metadata"}) for one in found]
    return json.dumps(listed, indent=1, ensure_ascii=False).encode()


def _keep_list(library: Library, numbers: Sequence[int]) -> bytes:
    """Return what ``vlp search --export`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keep.parquet"
        write_keep_list(library.index, [library.hit(number) for number in numbers], path)
        return path.read_bytes()
