"""What datasets of loose picture files share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.dataset import Dataset, identity_of
from data_pipelines.faults import SampleFault
from vlp.classifier import Classes
from vlp.errors import UserError
from vlp.types import Sample


def file_dataset(
    rows: Sequence[tuple[str, Path, str, dict[str, Any]]],
    name: str,
    files: Sequence[Path],
    *,
    classes: Classes | None = None,
    has_lines: bool = False,
) -> Dataset:
    """Return a dataset of rows (key, picture, text, metadata).

    Args:
        rows: One for each picture.
        name: What the user calls it.
        files: That it is listed in, or a file in whose folder others are looked for.
        classes: That it brings.
        has_lines: Whether each line of a text is a caption.

    Raises:
        UserError: Pictures are missing, or there is none.
    """
    if not rows:
        raise UserError(f"{name} names no pictures.")
    missing = [path for _, path, _, _ in rows if not path.is_file()]
    if missing:
        raise UserError(
            f"{name} names {len(rows)} pictures, and {len(missing)} are missing, such as "
            f"{missing[0]}. Put them there, or take them out of it."
        )

    def read(row: int) -> Sample:
        key, path, text, metadata = rows[row]
        try:
            return Sample(key, path.read_bytes(), text, metadata)
        except OSError as error:
            raise SampleFault(f"file cannot be read: {error.strerror}") from None

    about = [f"{key}\0{text}\0{metadata}" for key, _, text, metadata in rows]
    return Dataset(
        name=name,
        keys=[key for key, _, _, _ in rows],
        read=read,
        files=files,
        identity=identity_of(about, [path for _, path, _, _ in rows]),
        classes=classes,
        has_lines=has_lines,
    )
