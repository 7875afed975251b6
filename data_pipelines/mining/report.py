"""The report of a mined plan: ``report.json``, and ``report.html`` with pictures."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from data_pipelines.faults import SampleFault
from data_pipelines.mining.mined import Mined
from data_pipelines.mining.samples import entry_of
from data_pipelines.mining.survey import Pair, Survey
from data_pipelines.shards import ShardSet, read
from vlp.charts import histogram
from vlp.console import one_line
from vlp.environment import versions
from vlp.image import ImageError, decode
from vlp.output import write_json
from vlp.report import beside, gallery, number, page, section, table, tiles, write_page

REPORT, PAGE = "report.json", "report.html"
SIDE = 96
"""Pixels of a picture's longer side."""
SIZE_BARS = 30
NOTES = {
    "clusters": "Samples of each. Those of a cluster smaller than the hard part of a batch are "
    "hard only where what is left of several clusters makes one up.",
    "cosines": "Between different samples of the same batch: of the hard parts, and of as many "
    "samples drawn from all. The further to the right hard ones lie, the harder they are; of each "
    "sample the hardest counts most.",
    "together": "What the hard parts of some batches hold. Under each its caption.",
    "spared": "Pairs above a bound never meet in a batch. The least alike tell whether the bound "
    "is too low: where these are good negatives, raise it.",
    "hardest": "The most alike of those that do meet. Where these say the same, lower the bound.",
}


def write_report(
    folder: Path, mined: Mined, seen: Survey, shards: ShardSet, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Write both files; return what is in ``report.json``, which follows from data and options.

    Args:
        folder: Where they go.
        mined: The plan.
        seen: What is told of it.
        shards: That it was mined of, for the pictures.
        config: What the command was told.
    """
    report = {
        **seen.counts,
        "hash": mined.hash,
        "epoch": seen.epoch,
        "cosines": {
            "between": seen.kind,
            **seen.figures,
            "edges": seen.edges.tolist(),
            **{name: counts.tolist() for name, counts in seen.cosines.items()},
        },
        "cluster_sizes": seen.sizes.tolist(),
        "options": mined.told,
        "versions": versions(),
    }
    write_json(folder / REPORT, report)
    write_page(folder / PAGE, _page(report, seen, shards, config))
    return report


def _page(
    report: Mapping[str, Any], seen: Survey, shards: ShardSet, config: Mapping[str, Any]
) -> Markup:
    epoch = seen.epoch
    told = {
        "samples": seen.counts["samples"],
        "clusters": seen.counts["clusters"] or "neighbours",
        "pairs kept apart": seen.counts["pairs_apart"],
        "samples with an equal caption"
        if report["options"]["group"] == "caption"
        else "samples in groups": seen.counts["samples_in_groups"],
    }
    return page(
        "Mined batches",
        tiles(told),
        section("How alike", beside(*_plots(seen)), table(*_figures(seen)), note=NOTES["cosines"]),
        section("Clusters", beside(_cluster_plot(seen)), note=NOTES["clusters"]),
        section("Taken together", *_together(seen, shards), note=NOTES["together"]),
        section("Kept apart", *_spared(seen, shards), note=NOTES["spared"]),
        section("The hardest that meet", *_in_rows(seen.hardest, shards), note=NOTES["hardest"]),
        section("How to do it again", *_again(report, config)),
        subtitle=f"{number(seen.counts['samples'])} samples of {config['shards']}, in batches of "
        f"{epoch['batch_size']} of which {epoch['share']:.0%} is hard; "
        f"{number(epoch['meet'])} samples of an epoch meet one that they may not.",
    )


def _plots(seen: Survey) -> Iterable[Markup]:
    for name, counts in seen.cosines.items():
        yield histogram(
            name.capitalize(),
            seen.edges.tolist(),
            {name: counts.tolist()},
            x=f"cosine, {seen.kind}",
        )


def _figures(seen: Survey) -> tuple[Sequence[str], list[Sequence[object]]]:
    return ("cosine", ""), [(name, value) for name, value in seen.figures.items()]


def _cluster_plot(seen: Survey) -> Markup:
    if not len(seen.sizes):
        return Markup()
    least, most = int(seen.sizes.min()), int(seen.sizes.max())
    width = (most - least) // SIZE_BARS + 1
    edges = [least - 0.5 + width * place for place in range((most - least) // width + 2)]
    counts = [
        int(((seen.sizes > low) & (seen.sizes < high)).sum()) for low, high in pairwise(edges)
    ]
    return histogram("Clusters", edges, {"clusters": counts}, x="samples")


def _together(seen: Survey, shards: ShardSet) -> Iterable[Markup]:
    for place, samples in enumerate(seen.together):
        yield Markup("<h3>Batch {}</h3>").format(place + 1)
        yield gallery([_shown(sample, shards) for sample in samples], side=SIDE)


def _spared(seen: Survey, shards: ShardSet) -> Iterable[Markup]:
    for name, pairs in seen.spared.items():
        if pairs:
            yield Markup("<h3>{}</h3>").format(name.capitalize())
            yield from _in_rows(pairs, shards)


def _in_rows(pairs: Sequence[Pair], shards: ShardSet) -> Iterable[Markup]:
    """Yield galleries of pairs, each under its cosines."""
    cells = []
    for pair in pairs:
        told = ", ".join(f"{kind} {cosine:.3f}" for kind, cosine in pair.cosines.items())
        shown = [_shown(sample, shards) for sample in pair.samples]
        head = Markup("<h3>{}</h3>").format(told)
        cells.append(Markup("<div>{}{}</div>").format(head, gallery(shown, side=SIDE)))
    if cells:
        yield beside(*cells)


def _shown(sample: int, shards: ShardSet) -> tuple[Image.Image | str, str]:
    """Return the picture of a sample, or why there is none, and its caption."""
    try:
        found = read(entry_of(shards, sample), needs_caption=False)
    except SampleFault as fault:
        return str(fault), ""
    try:
        return decode(found.image), one_line(found.text)
    except ImageError as fault:
        return str(fault), one_line(found.text)


def _again(report: Mapping[str, Any], config: Mapping[str, Any]) -> Iterable[Markup]:
    words = ["vlp", "mine", config["features"], config["shards"], "HARD"]
    options = {name: value for name, value in config.items() if name not in ("features", "shards")}
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None and value != 0:
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    yield Markup("<pre>{}</pre>").format(shlex.join(words))
    yield beside(table(("package", "version"), report["versions"].items()))
