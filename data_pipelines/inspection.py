"""Look into shards: counts, sizes, captions, faults, a few samples, a contact sheet."""

import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data_pipelines.faults import SampleFault
from data_pipelines.shards import ShardSet, image_extension, open_shards, read
from data_pipelines.tar_index import Entry
from vlp.console import one_line, progress, show, show_table
from vlp.contact_sheet import contact_sheet
from vlp.image import ImageError, decode, size

SAMPLES_SHOWN = 10
SHEET_COLUMNS = 8
SHEET_ROWS = 4
UNITS = ("B", "kB", "MB", "GB", "TB")


class Seen(NamedTuple):
    """What is remembered of a sample that can be read."""

    entry: Entry
    caption: str
    width: int
    height: int
    bytes: int
    format: str
    fields: tuple[str, ...]


def inspect_shards(source: str, *, sheet: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Return what shards hold, and print it; write a contact sheet where a file is named.

    Pictures are measured by their headers. One that is damaged further on is found only when it is
    decoded: for the contact sheet, and by the loader.

    Raises:
        UserError: There is no sample at all.
    """
    shards = open_shards(source)
    seen = list(_look(shards))
    order = random.Random(seed).sample(seen, len(seen))
    found = {
        "source": str(source),
        "shards": len(shards.shards),
        "samples": len(seen),
        "bytes": sum(shard.stat().st_size for shard in shards.shards),
        **_images(seen),
        **_captions(seen),
        "metadata": dict(Counter(field for one in seen for field in one.fields).most_common()),
        "examples": [_example(one) for one in order[:SAMPLES_SHOWN]],
    }
    if sheet:
        found["sheet"] = str(sheet)
        found["on_sheet"] = _draw(order, shards, sheet)
    found["faults"] = shards.faults.as_dict()
    _show(found)
    return found


def _look(shards: ShardSet) -> Iterator[Seen]:
    """Yield what is to know of every sample; one that cannot be read is counted."""
    with progress(len(shards), "inspect") as advance:
        for entry in shards.entries:
            advance()
            try:
                sample = read(entry)
                width, height = size(sample.image)
            except (SampleFault, ImageError) as fault:
                shards.faults.add(str(fault), entry.shard.name, entry.key)
                continue
            kind = image_extension(sample.image)
            fields = tuple(sample.metadata)
            yield Seen(entry, sample.text, width, height, len(sample.image), kind, fields)


def _images(seen: Sequence[Seen]) -> dict[str, Any]:
    return {
        "mean_image_bytes": round(statistics.fmean(one.bytes for one in seen)) if seen else 0,
        "formats": dict(Counter(one.format for one in seen).most_common()),
        "image_width": _spread([one.width for one in seen]),
        "image_height": _spread([one.height for one in seen]),
    }


def _captions(seen: Sequence[Seen]) -> dict[str, Any]:
    captions = Counter(one.caption for one in seen)
    total = max(1, len(seen))
    return {
        "caption_words": _spread([len(one.caption.split()) for one in seen]),
        "caption_characters": _spread([len(one.caption) for one in seen]),
        "empty_captions": captions[""] / total,
        "duplicate_captions": (len(seen) - len(captions)) / total,
    }


def _spread(numbers: Sequence[int]) -> dict[str, float]:
    """Return the smallest, the middle and the largest number."""
    if not numbers:
        return {}
    return {"min": min(numbers), "median": statistics.median(numbers), "max": max(numbers)}


def _example(one: Seen) -> dict[str, Any]:
    return {
        "key": one.entry.key,
        "shard": one.entry.shard.name,
        "size": [one.width, one.height],
        "caption": one.caption,
    }


def _draw(order: Sequence[Seen], shards: ShardSet, path: Path) -> int:
    """Draw the first samples that can be decoded, and return how many there are on the sheet."""
    pictures: list[tuple[Image.Image, str]] = []
    for one in order:
        if len(pictures) == SHEET_COLUMNS * SHEET_ROWS:
            break
        try:
            pictures.append((decode(read(one.entry).image), one.caption))
        except ImageError as fault:
            shards.faults.add(str(fault), one.entry.shard.name, one.entry.key)
    rows = [
        ("", pictures[start : start + SHEET_COLUMNS])
        for start in range(0, len(pictures), SHEET_COLUMNS)
    ]
    contact_sheet(rows, path)
    return len(pictures)


def _show(found: dict[str, Any]) -> None:
    formats = ", ".join(f"{count} {name}" for name, count in found["formats"].items())
    show(
        f"{found['samples']} samples in {found['shards']} shards of {found['source']}, "
        f"{_size(found['bytes'])}.\n"
        f"Images: {formats or 'none'}; {_size(found['mean_image_bytes'])} each on average.\n"
        f"Captions: {found['empty_captions']:.1%} empty, "
        f"{found['duplicate_captions']:.1%} repeat an earlier one.\n"
        f"Metadata: {_fields(found)}.\n"
    )
    measures = ("image_width", "image_height", "caption_words", "caption_characters")
    rows = [(name.replace("_", " "), *found[name].values()) for name in measures if found[name]]
    show_table(("", "min", "median", "max"), rows)
    show("")
    show_table(
        ("key", "pixels", "caption"),
        [
            (one["key"], "x".join(map(str, one["size"])), one_line(one["caption"], 60))
            for one in found["examples"]
        ],
    )
    for reason, fault in found["faults"].items():
        show(f"\n{fault['count']} {reason}:")
        show("\n".join(f"  {place}" for place in fault["examples"]))
    if "sheet" in found:
        show(f"\nContact sheet of {found['on_sheet']} samples: {found['sheet']}")


def _fields(found: dict[str, Any]) -> str:
    """Return the fields of the metadata; a count where a field is not in every sample."""
    named = (
        name if count == found["samples"] else f"{name} (in {count})"
        for name, count in found["metadata"].items()
    )
    return ", ".join(named) or "none"


def _size(count: float) -> str:
    """Return bytes as people read them, in powers of 1,000."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
