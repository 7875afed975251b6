"""What the report of a mined plan tells: sizes, cosines of hard and of random negatives, pairs."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from data_pipelines.mining.mined import LEFT_OUT, NO_FEATURES, Mined
from data_pipelines.mining.row import MinedRow
from data_pipelines.mining.samples import Pool

BATCHES = 16
"""Of an epoch, whose cosines are looked at."""
BARS = 50
SHOWN = 6
"""Hard parts, and pairs of a kind, that are shown."""
PICTURES = 12
"""Of a hard part."""
DRAWN = 2000
"""Pairs that those to show are chosen from."""


class Pair(NamedTuple):
    """Two samples, by their numbers, and their cosines by kind of feature."""

    samples: tuple[int, int]
    cosines: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is shown of a plan, as arranged in the first epoch of batches of one size."""

    counts: dict[str, int]
    sizes: Int64[np.ndarray, "clusters"]
    """Of the clusters; of neighbours none."""
    epoch: dict[str, Any]
    """Batch size and share, what share of a hard part its largest cluster has, and how many samples
    meet one that they may not."""
    kind: str
    """What the cosines are between."""
    edges: Float32[np.ndarray, "edges"]
    cosines: dict[str, Int64[np.ndarray, "bars"]]
    """Of hard and of random negatives, and of the hardest of each sample, between the edges."""
    figures: dict[str, float]
    """Mean and 95th percentile of the cosines."""
    together: list[list[int]]
    """Samples of some hard parts."""
    spared: dict[str, list[Pair]]
    """Pairs that are kept apart: drawn, and those closest to a bound."""
    hardest: list[Pair]
    """The closest pairs of hard parts, which do meet."""


def survey(mined: Mined, pool: Pool, row: MinedRow, *, seed: int) -> Survey:
    """Return what is shown of a plan.

    Args:
        mined: The plan.
        pool: The features that it was mined of.
        row: Its epochs, of the batch size and share that are shown.
        seed: Draws what is shown.
    """
    rng = np.random.default_rng(seed)
    hard = _hard_parts(row, rng)
    own = np.flatnonzero(mined.cluster >= 0)
    random = [rng.choice(own, len(part), replace=False) for part in hard]
    kinds = [*pool.features]
    kind = "image to caption" if len(kinds) == 2 else f"{kinds[0]} to {kinds[0]}"
    cosines: dict[str, np.ndarray] = {}
    for name, parts in (("hard", hard), ("random", random)):
        found = [_negatives(pool, part) for part in parts]
        cosines[f"{name} negatives"] = _joined([own.reshape(-1) for own in found])
        cosines[f"hardest of each, {name}"] = _joined([own.max(axis=1) for own in found])
    every = np.concatenate([*cosines.values()])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high, BARS + 1, dtype=np.float32)
    return Survey(
        counts=counts_of(mined),
        sizes=_sizes(mined),
        epoch={
            "batch_size": row.batch_size,
            "share": row.share.at(0),
            "batches": row.span(0).num_batches,
            "alike": _alike(mined, hard),
            "meet": row.arrangement(0).met,
        },
        kind=kind,
        edges=edges,
        cosines={name: np.histogram(found, edges)[0] for name, found in cosines.items()},
        figures={
            f"{name}, {told}": float(function(found))
            for name, found in cosines.items()
            for told, function in (("mean", np.mean), ("95th percentile", _most))
            if len(found)
        },
        together=[part[:PICTURES].tolist() for part in hard[:SHOWN]],
        spared=_spared(mined, pool, rng),
        hardest=_hardest(pool, hard),
    )


def counts_of(mined: Mined) -> dict[str, int]:
    """Return what a plan comes to in numbers."""
    groups = np.bincount(mined.group)
    return {
        "samples": int((mined.cluster >= 0).sum()),
        "without_features": int((mined.cluster == NO_FEATURES).sum()),
        "left_out": int((mined.cluster == LEFT_OUT).sum()),
        "clusters": len(_sizes(mined)),
        "pairs_apart": len(mined.apart),
        "groups": int((groups > 1).sum()),
        "samples_in_groups": int(groups[groups > 1].sum()),
    }


def _sizes(mined: Mined) -> Int64[np.ndarray, "clusters"]:
    if mined.neighbours.shape[1]:
        return np.zeros(0, np.int64)
    sizes = np.bincount(mined.cluster[mined.cluster >= 0])
    return sizes[sizes > 0]


def _hard_parts(row: MinedRow, rng: np.random.Generator) -> list[Int64[np.ndarray, "_"]]:
    """Return the samples of the hard parts of some batches of the first epoch."""
    span, order = row.span(0), row.arrangement(0).order
    batches = order[: span.num_batches * row.batch_size].reshape(-1, row.batch_size)
    drawn = np.sort(rng.permutation(len(batches))[:BATCHES])
    parts = batches[drawn, : max(2, round(row.share.at(0) * row.batch_size))]
    samples = row.sample[parts].astype(np.int64)
    found = [part[row.mined.cluster[part] >= 0] for part in samples]
    return [part for part in found if len(part) > 1]


def _alike(mined: Mined, hard: list[Int64[np.ndarray, "_"]]) -> float | None:
    if mined.neighbours.shape[1] or not hard:
        return None
    return float(np.mean([np.bincount(mined.cluster[part]).max() / len(part) for part in hard]))


def _negatives(pool: Pool, part: Int64[np.ndarray, "part"]) -> Float32[np.ndarray, "part others"]:
    """Return the cosine of each sample of a hard part to each other one."""
    kinds = [*pool.features]
    one, other = (pool.unit_rows([kind], part)[:] for kind in (kinds[0], kinds[-1]))
    return (one @ other.T)[~np.eye(len(part), dtype=bool)].reshape(len(part), -1)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _spared(mined: Mined, pool: Pool, rng: np.random.Generator) -> dict[str, list[Pair]]:
    some = rng.permutation(len(mined.apart))[:DRAWN]
    pairs = _pairs(pool, mined.apart[some].astype(np.int64))
    near = sorted(pairs, key=lambda pair: max(pair.cosines.values()))[:SHOWN]
    return {"drawn": pairs[:SHOWN], "least alike": near} if len(pairs) > SHOWN else {"all": pairs}


def _hardest(pool: Pool, hard: list[Int64[np.ndarray, "_"]]) -> list[Pair]:
    """Return the closest pairs of hard parts, of each kind of features."""
    found: dict[tuple[int, int], Pair] = {}
    for part in hard:
        for kind in pool.features:
            rows = pool.unit_rows([kind], part)[:]
            cosines = np.triu(rows @ rows.T, 1)
            best = np.argsort(-cosines, axis=None)[:2]
            places = np.stack(np.unravel_index(best, cosines.shape), axis=1)
            for pair in _pairs(pool, part[places]):
                found[pair.samples] = pair
    return sorted(found.values(), key=lambda pair: -max(pair.cosines.values()))[: 2 * SHOWN]


def _pairs(pool: Pool, pairs: Int64[np.ndarray, "pairs 2"]) -> list[Pair]:
    cosines = {kind: _cosines(pool, kind, pairs) for kind in pool.features}
    return [
        Pair((int(one), int(other)), {kind: float(own[n]) for kind, own in cosines.items()})
        for n, (one, other) in enumerate(pairs.tolist())
    ]


def _cosines(
    pool: Pool, kind: str, pairs: Int64[np.ndarray, "pairs 2"]
) -> Float32[np.ndarray, "pairs"]:
    one, other = (pool.unit_rows([kind], own)[:] for own in pairs.T)
    return (one * other).sum(axis=1)


def _most(values: Float32[np.ndarray, "_"]) -> float:
    return float(np.quantile(values, 0.95))
