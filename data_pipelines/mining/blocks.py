"""The hard part of each batch of an epoch: entries of one cluster, or seeds with their neighbours.

Both come down to *pieces* of entries that are alike, which are dealt to batches. What hangs
together by conflicts stands in a row and is dealt like cards, so that it comes to lie in different
batches wherever there are enough of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data_pipelines.mining.conflicts import Conflicts
from data_pipelines.mining.mined import Mined

Rng = np.random.Generator


class Share(NamedTuple):
    """So many entries of a piece go to a batch."""

    piece: int
    batch: int
    count: int


def deal_clusters(
    cluster: Int32[np.ndarray, "entries"],
    group: Int32[np.ndarray, "entries"],
    component: Int32[np.ndarray, "entries"],
    quotas: Int64[np.ndarray, "batches"],
    rng: Rng,
) -> Int32[np.ndarray, "entries"]:
    """Return the batch of each entry that is in the hard part of one; -1 for the others.

    A batch has its quota from one cluster. When no cluster has as many left, what is left of
    several clusters makes up the hard parts of the batches that are left.

    Args:
        cluster: Of each entry; negative is none.
        group: Entries of the same one are never in the hard part of the same batch.
        component: What hangs together by conflicts.
        quotas: Entries of each batch's hard part.
        rng: Draws which entries go to which batch.
    """
    own = np.flatnonzero(cluster >= 0)
    if not len(own):
        return np.full(len(cluster), -1, np.int32)
    _, piece = np.unique(cluster[own], return_inverse=True)
    shares = _share_out(np.bincount(piece), quotas, rng)
    parts = np.bincount([share.piece for share in shares], minlength=piece.max() + 1)
    # More of a group than its cluster has parts cannot all be hard without meeting.
    may_be_hard = _number_in(piece, group[own]) < parts[piece]
    own, piece = own[may_be_hard], piece[may_be_hard]
    lots, tie = rng.random(int(component.max()) + 1), rng.random(len(own))
    order = np.lexsort((tie, group[own], component[own], lots[component[own]]))
    return _deal(own[order], piece[order], shares, len(cluster))


def deal_neighbourhoods(
    mined: Mined,
    sample: Int32[np.ndarray, "entries"],
    conflicts: Conflicts,
    is_free: Bool[np.ndarray, "entries"],
    quotas: Int64[np.ndarray, "batches"],
    rng: Rng,
) -> tuple[Int32[np.ndarray, "entries"], Int32[np.ndarray, "entries"]]:
    """Return the batch of each entry that is in the hard part of one, and the seed it is with.

    Both are -1 for others. Seeds are drawn; every other entry may join the nearest seed, by the
    rank of the seed among its own neighbours, that has room and nobody who conflicts. Hard parts
    are seeds with who joined.

    Args:
        mined: Has the neighbours of samples.
        sample: Of each entry.
        conflicts: Of the entries.
        is_free: Which entries are to be dealt.
        quotas: Entries of each batch's hard part.
        rng: Draws the seeds and the batches.
    """
    size = mined.told["neighbours"] + 1
    own = np.flatnonzero(is_free & (mined.cluster[sample] >= 0))
    seeds = rng.permutation(own)[: -(-len(own) // size)]
    seed_of, rank = np.full((2, len(sample)), -1, np.int32)
    seed_of[seeds], rank[seeds] = seeds, 0
    seed_of_sample = np.full(len(mined), -1, np.int32)
    seed_of_sample[sample[seeds]] = seeds
    room = np.zeros(len(sample), np.int64)
    room[seeds] = size - 1
    for nearest in range(mined.neighbours.shape[1]):
        asking = rng.permutation(own[seed_of[own] < 0])
        near = mined.neighbours[sample[asking], nearest]
        seed = np.where(near >= 0, seed_of_sample[near], -1)
        asking, seed = asking[seed >= 0], seed[seed >= 0]
        fits = _number_in(seed, np.zeros_like(seed)) < room[seed]
        joining = asking[fits]
        seed_of[joining], rank[joining] = seed[fits], nearest + 1
        seed_of[conflicts.met(seed_of, rank)] = -1
        joined = joining[seed_of[joining] >= 0]
        room -= np.bincount(seed_of[joined], minlength=len(room))
    own = own[seed_of[own] >= 0]
    own = own[np.argsort(rank[own], kind="stable")]
    _, piece, sizes = np.unique(seed_of[own], return_inverse=True, return_counts=True)
    shares = _fill(sizes, quotas, rng.permutation(len(quotas)), rng.permutation(len(sizes)))
    return _deal(own, piece, shares, len(sample)), seed_of


def _share_out(sizes: np.ndarray, quotas: np.ndarray, rng: Rng) -> list[Share]:
    """Return whole quotas of one cluster each while there are any, then of several."""
    left, shares = sizes.tolist(), []
    clusters = iter(rng.permutation(len(left)).tolist())
    cluster = next(clusters)
    batches = rng.permutation(np.flatnonzero(quotas)).tolist()
    wanted = quotas.tolist()
    while batches and cluster is not None:
        if left[cluster] < wanted[batches[-1]]:
            cluster = next(clusters, None)
            continue
        batch = batches.pop()
        shares.append(Share(cluster, batch, wanted[batch]))
        left[cluster] -= wanted[batch]
    largest_first = np.argsort(-np.array(left), kind="stable")
    return shares + _fill(np.array(left), quotas, np.array(batches, int), largest_first)


def _fill(
    sizes: np.ndarray, quotas: np.ndarray, batches: np.ndarray, pieces: np.ndarray
) -> list[Share]:
    """Return shares of one piece after the other, until each of these batches is full."""
    shares: list[Share] = []
    left, upcoming = sizes.tolist(), iter(pieces.tolist())
    piece = next(upcoming, None)
    for batch in batches.tolist():
        wanted = int(quotas[batch])
        while wanted > 1 and piece is not None:
            count = min(wanted, left[piece])
            if count > 1:  # one alone is hard for nobody
                shares.append(Share(piece, batch, count))
                wanted -= count
            piece = next(upcoming, None)
    return shares


def _deal(
    entries: Int64[np.ndarray, "_"],
    piece: Int64[np.ndarray, "_"],
    shares: list[Share],
    total: int,
) -> Int32[np.ndarray, "total"]:
    """Give the entries of each piece, in their order, one to each of its shares in turn."""
    batch = np.full(total, -1, np.int32)
    if not shares:
        return batch
    of_piece, of_batch, counts = np.array(shares).T
    number = np.repeat(np.arange(len(shares)), counts)
    turn = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = number[np.lexsort((number, turn, of_piece[number]))]
    starts = np.searchsorted(of_piece[slots], np.arange(piece.max() + 2 if len(piece) else 1))
    order = np.argsort(piece, kind="stable")
    entries, piece = entries[order], piece[order]
    place = np.arange(len(piece)) - np.searchsorted(piece, piece)
    has_slot = place < (starts[1:] - starts[:-1])[piece]
    batch[entries[has_slot]] = of_batch[slots[(starts[piece] + place)[has_slot]]]
    return batch


def _number_in(one: np.ndarray, other: np.ndarray) -> Int64[np.ndarray, "_"]:
    """Return for each row how many before it are equal in both."""
    order = np.lexsort((other, one))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(one[order]) != 0) | (np.diff(other[order]) != 0)
    firsts = np.flatnonzero(is_new)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order)) - firsts[np.cumsum(is_new) - 1]
    return number
