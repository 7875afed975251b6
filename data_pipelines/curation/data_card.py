"""The data card of curated shards: ``README.md`` in Hugging Face's form, fit to be published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from vlp.card import CARD, markdown_table, plain, public_name
from vlp.output import write_bytes
from vlp.report import number

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
UNITS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
"""The hub's words for numbers of samples."""


def write_data_card(report: Mapping[str, Any], folder: Path) -> None:
    """Write the card of what a curation kept; names of data and models are cut."""
    card = f"---\n{_front_matter(report)}\n---\n\n" + "\n\n".join(_parts(report)) + "\n"
    write_bytes(folder / CARD, card.encode(errors="replace"))


def public_rule(text: str) -> str:
    """Return a rule with the folders cut from the names of files and models."""
    return re.sub(
        r"(['\"])([^'\"]*[/:][^'\"]*)\1",
        lambda found: found[1] + public_name(found[2]) + found[1],
        text,
    )


def _parts(report: Mapping[str, Any]) -> list[str]:
    kept, total = report["samples_out"], report["samples_in"]
    return [
        f"# {plain(Path(report['out']).name)}",
        f"{number(kept)} of the {number(total)} image-text pairs of "
        f"{plain(public_name(report['raw']))} ({kept / total:.1%}), chosen by rules and otherwise "
        f"as they were: pictures and captions are copied byte for byte.",
        "## How to read it",
        _READING if report["shards_out"] else _READING_LIST,
        "## How it was chosen",
        'In this order. A sample that a rule cannot score is not kept. "Alone" is what the rule '
        "would drop if it were the only one.",
        _rules(report),
        *_unscored(report),
        "## How to do it again",
        markdown_table(("", ""), _facts(report)),
        "## Limits",
        _LIMITS,
    ]


_READING = """\
WebDataset shards: each sample is a picture, `KEY.txt` and `KEY.json`. `sizes.json` holds their
counts, `manifest.json` their sha256, `scores/` and `decisions/` what was said of every sample that
came in.

```sh
vlp inspect .
vlp train toy --data.shards . --out run/
```"""
_READING_LIST = """\
A list of samples, without pictures and captions: `keep.parquet` names shard, key and copies; where
every sample has a uid, `keep.npy` is the list in DataComp's form.

```sh
vlp train toy --data.shards SHARDS --data.keep . --out run/
```"""
_LIMITS = """\
- Rules are blunt: each of them drops good samples, too, and keeps bad ones. `report.html` shows
  both, near every threshold.
- Filters by language, by a model's score or by words favour some groups of people and places over
  others (Hong et al. 2024, "Who's in and who's out?"). The report says what share of each language
  was kept, and nothing of people.
- The licence of the pictures and captions is for whoever publishes them to state."""


def _front_matter(report: Mapping[str, Any]) -> str:
    place = sum(size <= report["samples_out"] for size in SIZES)
    size = f"{UNITS[place - 1]}<n<{UNITS[place]}" if 0 < place < len(SIZES) else "n>1B"
    return DatasetCardData(
        task_categories=["zero-shot-image-classification", "image-to-text"],
        tags=["webdataset", "image-text-pairs", "vlp"],
        size_categories="n<1K" if not place else size,
        pretty_name=plain(Path(report["out"]).name),
    ).to_yaml()


def _rules(report: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{place}. {public_rule(step['rule'])}",
            "not known"
            if step["alone"] is None
            else f"{'about ' if step['is_estimate'] else ''}{number(step['alone'])}",
            number(step["dropped"]),
            number(step["failed"]),
            number(step["left"]),
        )
        for place, step in enumerate(report["rules"], 1)
    ]
    return markdown_table(("rule", "alone", "dropped", "could not be scored", "left"), rows)


def _unscored(report: Mapping[str, Any]) -> list[str]:
    rows = [(reason, number(found["count"])) for reason, found in report["failed"].items()]
    return [markdown_table(("could not be scored", "samples"), rows)] if rows else []


def _facts(report: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [
        ("shards in", number(report["shards_in"])),
        ("shards out", number(report["shards_out"])),
        ("seed", report["seed"]),
        *((f"sha256, {public_rule(name)}", told) for name, told in report["hashes"].items()),
        *report["versions"].items(),
    ]
