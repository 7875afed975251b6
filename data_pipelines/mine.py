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
from data_pipelines.mining.samples import Pool, open_pool
from data_pipelines.shards import ShardSet, open_shards
from vlp.checkpoint import paths_of
from vlp.console import say, show
from vlp.index import Matrix
from vlp.output import output_folder


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
    told = counts_of(mined)
    show(
        f"Mined {told['samples']} samples of {source} into {out}: "
        f"{told['clusters'] or 'no'} clusters, {told['apart']} pairs kept apart."
    )
    return {**told, "hash": mined.hash, "out": str(out)}


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
    apart = joined(found)
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
        cluster[own] = clusters_of(rows, options.clusters, cap=options.cap, seed=options.seed)
    apart = own[apart].astype(np.int32)
    told = {"shards": identity_of(shards), **asdict(options)}
    component = hanging_together(pool.group, apart)
    return Mined(cluster, pool.group, component, apart, close, told)


def counts_of(mined: Mined) -> dict[str, int]:
    """Return what a plan comes to in numbers."""
    is_mined = mined.cluster >= 0
    sizes = np.bincount(mined.group)
    return {
        "samples": int(is_mined.sum()),
        "without_features": int((mined.cluster == NO_FEATURES).sum()),
        "left_out": int((mined.cluster == LEFT_OUT).sum()),
        "clusters": 0 if mined.neighbours.shape[1] else len(np.unique(mined.cluster[is_mined])),
        "apart": len(mined.apart),
        "groups": int((sizes > 1).sum()),
        "in_groups": int(sizes[sizes > 1].sum()),
    }
