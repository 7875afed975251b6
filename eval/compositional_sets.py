"""Compositional benchmarks from the files that their authors publish, and items of our shards.

Nothing is fetched. ARO shuffles the captions of its order sets anew at each run, and its figures
move with them; here they come frozen, from a file.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.choices import Item
from eval.pictures import Picture, check_pictures
from vlp.errors import UserError
from vlp.types import Sample

FALSE = "false_captions"
"""The field of a sample's metadata with captions that nearly fit it."""
SUGAR_CREPE = (
    *("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel"),
    *("swap_att", "swap_obj"),
)
MIN_ITEMS = 25
"""Of an attribute pair of VG-Attribution, for it to count (ARO's code)."""
LEFT_OUT = Path(__file__).parent / "vg_relation_left_out.txt"
"""Relations that do not count in VG-Relation, after lines that say where they are from."""


@dataclass(frozen=True)
class ItemSet:
    """The items of a benchmark and the pictures that they speak of."""

    items: list[Item]
    pictures: list[Picture]
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Kinds whose mean is reported, by the name of the mean."""


def read_item_set(benchmark: str, files: str, images: str) -> ItemSet:
    """Return the items of a benchmark's files.

    Args:
        benchmark: One of ``READERS``.
        files: The file with the captions; a folder of seven for SugarCrepe.
        images: The folder that the names of pictures in it start from.

    Raises:
        UserError: A file is missing or of another form, or pictures that it names are.
    """
    path, folder = Path(files), Path(images)
    if not folder.is_dir():
        raise UserError(f"There is no folder of pictures {folder}. Give {benchmark}'s as images=.")
    try:
        found = READERS[benchmark](path, folder)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "is of another form"
        raise UserError(
            f"{path} is no file of {benchmark}: an entry {what}. Give the one its authors publish."
        ) from None
    if not found.items:
        raise UserError(f"{path} holds no item of {benchmark}.")
    check_pictures(found.pictures, path, folder)
    return found


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or of one with a JSON value on each line.

    Raises:
        UserError: There is no such file, or it is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            f"Cannot read {path}: {why}. Give the benchmark's file as files=."
        ) from None
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}. Give the benchmark's file.") from None


def items_of_samples(samples: Sequence[Sample]) -> list[Item]:
    """Return the items of samples with ``false_captions``; those of one ``pair`` are one item.

    Raises:
        UserError: No sample has any, or they are no list of captions.
    """
    together: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        false = sample.metadata.get(FALSE)
        if false:
            if not isinstance(false, list) or not all(isinstance(text, str) for text in false):
                raise UserError(
                    f"The {FALSE} of {sample.key} are {false!r}. Give a list of captions."
                )
            together.setdefault(str(sample.metadata.get("pair", f"row {row}")), []).append(row)
    if not together:
        raise UserError(
            f"compositional found no sample with {FALSE} in its metadata. Give shards that have "
            f"them, or a benchmark: compositional(benchmark='sugar_crepe', files=..., images=...)."
        )
    items = []
    for rows in together.values():
        true = [samples[row].text for row in rows]
        false = [
            text
            for row in rows
            for text in samples[row].metadata[FALSE]
            if text not in true or text == samples[row].text  # the others of a pair are there
        ]
        kind = str(samples[rows[0]].metadata.get("kind", "all"))
        items.append(Item(tuple(rows), (*true, *dict.fromkeys(false)), kind))
    return items


def _sugar_crepe(path: Path, folder: Path) -> ItemSet:
    """Hsieh et al. 2023: one file for each of seven kinds, or a folder of them."""
    files = [path / f"{kind}.json" for kind in SUGAR_CREPE] if path.is_dir() else [path]
    rows = [(file.stem, entry) for file in files for entry in read_json(file).values()]
    items, pictures = _singles(
        (Picture(folder / entry["filename"]), (entry["caption"], entry["negative_caption"]), kind)
        for kind, entry in rows
    )
    kinds = [file.stem for file in files]
    families = {
        family: [kind for kind in kinds if kind.startswith(family)]
        for family in ("add", "replace", "swap")
    }
    return ItemSet(items, pictures, {name: of for name, of in families.items() if of})


def relations_left_out() -> list[str]:
    """Return the relations that VG-Relation's macro accuracy leaves out."""
    lines = LEFT_OUT.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _vg_relation(path: Path, folder: Path) -> ItemSet:
    """Yuksekgonul et al. 2023 (ARO): which of two stands in a relation to which."""
    left_out = frozenset(relations_left_out())
    return _visual_genome(path, folder, lambda entry: entry["relation_name"], without=left_out)


def _vg_attribution(path: Path, folder: Path) -> ItemSet:
    """Yuksekgonul et al. 2023 (ARO): which of two things has which attribute."""
    return _visual_genome(
        path, folder, lambda entry: "_".join(entry["attributes"]), min_items=MIN_ITEMS
    )


def _visual_genome(
    path: Path,
    folder: Path,
    kind_of: Callable[[Any], str],
    *,
    without: frozenset[str] = frozenset(),
    min_items: int = 1,
) -> ItemSet:
    entries = read_json(path)
    count = Counter(kind_of(entry) for entry in entries)
    return ItemSet(
        *_singles(
            (
                Picture(folder / entry["image_path"], _box(entry)),
                (entry["true_caption"], entry["false_caption"]),
                kind_of(entry),
            )
            for entry in entries
            if kind_of(entry) not in without and count[kind_of(entry)] >= min_items
        )
    )


def _box(entry: Any) -> tuple[int, int, int, int]:
    left, top = entry["bbox_x"], entry["bbox_y"]
    return (left, top, left + entry["bbox_w"], top + entry["bbox_h"])


def _order(path: Path, folder: Path) -> ItemSet:
    """Yuksekgonul et al. 2023 (ARO): a caption among four orders of its words.

    A list of ``{"image": name, "caption_options": [true, false, ...]}``, as ARO makes them.
    """
    return ItemSet(
        *_singles(
            (Picture(folder / entry["image"]), tuple(entry["caption_options"]), "order")
            for entry in read_json(path)
        )
    )


def _winoground(path: Path, folder: Path) -> ItemSet:
    """Thrush et al. 2022: two pictures and two captions of the same words; JSON lines or a list."""
    items, pictures = [], {}
    for entry in read_json(path):
        names = [entry["image_0"], entry["image_1"]]
        files = [folder / (name if Path(name).suffix else f"{name}.png") for name in names]
        places = tuple(pictures.setdefault(Picture(file), len(pictures)) for file in files)
        captions = (entry["caption_0"], entry["caption_1"])
        items.append(Item(places, captions, entry.get("collapsed_tag", "all")))
    return ItemSet(items, list(pictures))


READERS: dict[str, Callable[[Path, Path], ItemSet]] = {
    "sugar_crepe": _sugar_crepe,
    "vg_relation": _vg_relation,
    "vg_attribution": _vg_attribution,
    "order": _order,
    "winoground": _winoground,
}
"""The benchmarks by name; COCO-Order and Flickr30k-Order are ``order`` with their own files."""


def _singles(rows: Any) -> tuple[list[Item], list[Picture]]:
    """Return items of one picture each, and every picture once."""
    pictures: dict[Picture, int] = {}
    items = [
        Item((pictures.setdefault(picture, len(pictures)),), captions, kind)
        for picture, captions, kind in rows
    ]
    return items, list(pictures)
