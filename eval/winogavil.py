"""WinoGAViL from its files: cues, and the pictures that people found to go with each."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data_pipelines.faults import SampleFault
from eval.compositional_sets import read_json
from eval.pictures import Picture, check_pictures
from vlp.errors import UserError, first_line

FOLDER = "images"
"""Where pictures are looked for beside the file, where no folder is given."""


class Instance(NamedTuple):
    """A cue, and the pictures among which a person found what it goes with."""

    caption: str
    candidates: list[int]
    """Places in the list of pictures."""
    is_associated: list[bool]
    """Of each candidate."""


class Embedded(NamedTuple):
    """A picture that an Arrow file holds."""

    path: Path
    row: int
    place: int
    """Among the candidates of the row."""

    def read(self) -> bytes:
        """Return it as it is encoded there."""
        cell = _read_arrow(self.path)["candidate_images"][self.row][self.place].as_py()
        if not cell or not cell["bytes"]:
            raise SampleFault("row has no picture")
        return cell["bytes"]


def read_instances(
    path: Path, images: Path | None
) -> tuple[list[Instance], list[Picture | Embedded]]:
    """Return the instances of a file, and each picture that they name once.

    Args:
        path: JSON or JSON lines; or ``winogavil-test.arrow``, which DataComp's evaluation leaves in
            ``hf_cache`` and which holds the pictures.
        images: The folder of the pictures; None for the one beside the file.

    Raises:
        UserError: The file is of another form, or pictures are missing.
    """
    is_arrow = path.suffix == ".arrow"
    folder = images or path.parent / FOLDER
    if not is_arrow and not folder.is_dir():
        raise UserError(f"There is no folder of pictures {folder}. Give it as images=.")
    places: dict[str, int] = {}
    pictures: list[Picture | Embedded] = []
    instances = []
    for row, entry in enumerate(_arrow_rows(path) if is_arrow else read_json(path)):
        try:
            cue, candidates = entry["cue"], entry["candidates"]
            chosen = [name in entry["associations"] for name in candidates]
        except (KeyError, TypeError):
            raise UserError(
                f"{path} is no file of WinoGAViL: each entry needs cue, candidates and "
                f"associations. Give the one its authors publish."
            ) from None
        if not any(chosen):
            raise UserError(f"{path}: none of the candidates of the cue {cue!r} is associated.")
        for place, name in enumerate(candidates):
            if name not in places:
                places[name] = len(pictures)
                file = folder / (name if Path(name).suffix else f"{name}.jpg")
                pictures.append(Embedded(path, row, place) if is_arrow else Picture(file))
        instances.append(Instance(_caption(cue), [places[name] for name in candidates], chosen))
    if not instances:
        raise UserError(f"{path} holds no instance.")
    if not is_arrow:
        check_pictures(pictures, path, folder)
    return instances, pictures


def _arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    table = _read_arrow(path)
    wanted = [name for name in table.column_names if name != "candidate_images"]
    if len(wanted) == len(table.column_names):
        raise UserError(f"{path} has no column candidate_images, so it is not WinoGAViL's.")
    yield from table.select(wanted).to_pylist()


@lru_cache(maxsize=1)
def _read_arrow(path: Path) -> pa.Table:
    """Return a table whose cells are read from the disk when they are looked at."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Cannot read {path}: {first_line(error)}.") from None


def _caption(cue: str) -> str:
    """Return the cue as CLIP was asked about it: with an article (DataComp)."""
    return f"{'An' if cue[:1].lower() in 'aeiou' else 'A'} {cue.lower()}"
