"""``vlp mine``: features -> which samples are hard beside each other, and which never meet."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipelines.keep_list import read_copies
from data_pipelines.mining.clusters import clusters_of
from data_pipelines.mining.false_negatives import false_negatives, hanging_together, joined
from data_pipelines.mining.mined import LEFT_OUT, NO_FEATURES, Mined, identity_of, write_mined
from data_pipelines.mining.nearest import nearest
from data_pipelines.mining.options import MineOptions
from data_pipelines.mining.ramp import Ramp
from data_pipelines.mining.report import PAGE, write_report
from data_pipelines.mining.row import MinedRow
from data_pipelines.mining.samples import Pool, open_pool
from data_pipelines.mining.survey import survey
from data_pipelines.shards import ShardSet, open_shards
from vlp.checkpoint import paths_of
from vlp.console import say, show
from vlp.index import Matrix
from vlp.output import output_folder

SHARE = Ramp(0.5, 0.5)
"""Of the batches that the report shows, how much is hard: the trainer's default."""

LEAST_ALIKE = 0.8
"""Share of a hard part that is of one cluster, below which something is said."""


def mine(
    features: Path,
    source: str,
    out: Path,
    options: MineOptions,
    *,
    keep: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the mined plan of shards, by features of their samples, and a report of it.

    Args:
        features: What `vlp embed` or clip-retrieval wrote of these shards, with any model.
        source: Shards that will be trained on.
        out: Folder to write.
        options: How it is mined.
        keep: Keep-list of the samples that will be read.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: The features are not those of the shards, or a bound holds for too many pairs.
    """
    shards = open_shards(source)
    copies = read_copies(keep, shards) if keep else None
    config = {"features": str(features), "shards": source, "keep": keep, **asdict(options)}
    inputs = [features, *shards.shards, *paths_of(source, keep)]
    with output_folder(out, "mine", config, inputs=inputs, overwrite=overwrite) as part:
        pool = open_pool(features, shards, options)
        mined = mine_pool(pool, shards, options, copies)
        write_mined(mined, part)
        row = _first_batches(mined, shards, copies, options.batch_size)
        seen = survey(mined, pool, row, seed=options.seed)
        report = write_report(part, mined, seen, shards, config)
    kinds = f"{report['clusters']} clusters" if report["clusters"] else "neighbours"
    show(
        f"Mined {report['samples']} samples of {source} into {out}: {kinds}, "
        f"{report['pairs_apart']} pairs kept apart. See {out / PAGE}."
    )
    _show_shortage(report["epoch"])
    if report["clusters"] == 1:
        show(
            "All samples are of one cluster, so no batch is harder than one drawn at random: write "
            "the --batch-size of the run, or --clusters 2 or more."
        )
    return {**report, "out": str(out)}


def mine_pool(
    pool: Pool,
    shards: ShardSet,
    options: MineOptions,
    copies: Sequence[Int64[np.ndarray, "_"]] | None = None,
) -> Mined:
    """Return the mined plan of samples.

    Args:
        pool: The samples of ``shards`` and their features.
        shards: That the plan will be of.
        options: How it is mined.
        copies: How often each sample will be read; those that are not are not mined.
    """
    is_read = np.concatenate(copies) > 0 if copies else np.ones(len(pool.row), bool)
    own = np.flatnonzero(is_read & (pool.row >= 0))
    cluster = np.where(is_read, NO_FEATURES, LEFT_OUT).astype(np.int32)
    features: dict[str, Matrix] = {kind: pool.unit_rows([kind], own) for kind in pool.features}
    found = []
    for bound in options.bounds:
        found.append(false_negatives(features, bound, exact=options.exact, seed=options.seed))
        say(f"{len(found[-1])} pairs are above {bound}.")
    apart = joined(found, pool.group[own])
    by = ["image", "text"] if options.by == "mean" else [options.by]
    rows = pool.unit_rows(by, own)
    close = np.full((len(cluster), 0), -1, np.int32)
    if options.neighbours:
        near = nearest(
            rows,
            pool.group[own],
            apart,
            beside=options.neighbours,
            exact=options.exact,
            seed=options.seed,
        )
        close = np.full((len(cluster), near.shape[1]), -1, np.int32)
        close[own] = np.where(near >= 0, own[near], -1)
        cluster[own] = 0
    else:
        number = options.num_clusters(len(own))
        cluster[own] = clusters_of(rows, number, cap=options.cap, seed=options.seed)
    apart = own[apart].astype(np.int32)
    told = {"shards": identity_of(shards), **asdict(options), "apart": list(options.apart)}
    component = hanging_together(pool.group, apart)
    return Mined(cluster, pool.group, component, apart, close, told)


def _first_batches(
    mined: Mined,
    shards: ShardSet,
    copies: Sequence[Int64[np.ndarray, "_"]] | None,
    batch_size: int,
) -> MinedRow:
    """Return the row of batches that the report shows, all of a set where it is smaller."""
    total = sum(int(own.sum()) for own in copies or [shards.counts])
    return MinedRow(shards.counts, 0, min(batch_size, total), mined, SHARE, copies)


def _show_shortage(epoch: dict[str, Any]) -> None:
    """Say where batches of this size do not get what they should."""
    told = f"In batches of {epoch['batch_size']}"
    if epoch["meet"]:
        show(
            f"{told}, {epoch['meet']} samples of an epoch meet one that they may not: no "
            f"order was found that keeps them apart."
        )
    if epoch["alike"] is not None and epoch["alike"] < LEAST_ALIKE:
        show(
            f"{told}, hard parts are of several clusters, the largest with {epoch['alike']:.0%}: "
            f"write fewer --clusters, or --cap 1.5 so that none is small."
        )
