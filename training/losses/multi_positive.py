"""Every pair of the same group is a match, and each match is told from the negatives."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from training.similarity.contrastive import Contrastive, Direction
from training.similarity.recompute import recomputed
from training.similarity.tiles import in_full_precision, tile_elements


@dataclass(frozen=True, kw_only=True)
class MultiPositive(Contrastive):
    """Supervised contrastive loss between modalities, in nats per pair; lower is better.

    Per direction, with s scaled similarities, P the pairs of i's group, i included, N all others:

    loss_i = -1/|P| sum_{p in P} log( exp(s_ip) / (exp(s_ip) + sum_{j in N} exp(s_ij)) )

    The mean over matches stands outside the logarithm, as in SupCon and UniCL. There, the
    denominator also holds the other matches, so those that are nearest push each other away; here
    pairs of the same group are never negatives of each other, as in SINCERE, and the loss can
    reach 0. Equal to ``softmax`` where all groups differ. Features that cannot be told apart give
    log(1 + |N|).

    Source: SupCon (Khosla et al. 2020, arXiv:2004.11362, equation 2), UniCL (Yang et al. 2022,
    arXiv:2204.03610), SINCERE (Feeney and Hughes 2023, arXiv:2309.14277). Takes:
    image, text, group, hard_text, past.
    """

    def per_anchor(self, direction: Direction) -> Float[Tensor, "batch"]:
        """Return the mean over matches of log(1 + sum over negatives / match)."""
        negatives = direction.negatives[1.0]
        loss = _told_apart(direction.own, negatives)
        _, places, sizes = direction.group.unique(return_inverse=True, return_counts=True)
        if len(sizes) == len(places):  # all groups differ
            return loss
        anchors, others = in_full_precision(direction.anchors, direction.others)
        own = places[direction.rows]
        mine = _with_other_matches(own, sizes)
        theirs = _with_other_matches(places, sizes)
        a_side = _Side(anchors[mine], own[mine], direction.rows[mine])
        b_side = _Side(others[theirs], places[theirs], theirs)
        sums = _over_other_matches(a_side, b_side, negatives[mine], direction.scale)
        return loss.index_add(0, mine, sums) / sizes[own]


class _Side(NamedTuple):
    """Pairs in the order of their groups."""

    features: Tensor
    group: Tensor
    row: Tensor
    """Which pair of the world each is."""

    def part(self, first: int, last: int) -> "_Side":
        return _Side(*(field[first:last] for field in self))


def _with_other_matches(group: Tensor, sizes: Tensor) -> Tensor:
    """Return which pairs are not alone in their group, in the order of the groups."""
    chosen = (sizes[group] > 1).nonzero().squeeze(1)
    return chosen[group[chosen].argsort()]


def _over_other_matches(
    anchors: _Side, others: _Side, negatives: Tensor, scale: Tensor
) -> Float[Tensor, "anchors"]:
    """Return each anchor's sum over the matches that are not its own pair.

    In the order of the groups matches lie together, so all but a few blocks are passed over.
    """
    totals = []
    side = math.isqrt(tile_elements(negatives))
    firsts = range(0, len(anchors.row), side)
    lasts = [min(first + side, len(anchors.row)) - 1 for first in firsts]
    # Asked for all blocks at once: the host would wait for each on CUDA.
    starts = torch.searchsorted(others.group, anchors.group[list(firsts)]).tolist()
    stops = torch.searchsorted(others.group, anchors.group[lasts], right=True).tolist()
    for first, start, stop in zip(firsts, starts, stops, strict=True):
        rows = anchors.part(first, first + side)
        total = negatives.new_zeros(len(rows.row))
        for left in range(start, stop, side):
            columns = others.part(left, min(left + side, stop))
            arguments = (*rows, *columns, negatives[first : first + side], scale)
            total = total + recomputed(_block, *arguments)
        totals.append(total)
    return torch.cat(totals) if totals else negatives


def _block(*arguments: Tensor) -> Tensor:
    anchors, anchor_group, anchor_row, others, other_group, other_row, negatives, scale = arguments
    logits = scale * anchors @ others.T  # [anchors, others]
    is_match = anchor_group[:, None] == other_group
    is_other = is_match & (anchor_row[:, None] != other_row)
    return _told_apart(logits, negatives[:, None]).masked_fill(~is_other, 0).sum(1)


def _told_apart(match: Tensor, negatives: Tensor) -> Tensor:
    return F.softplus(negatives - match, threshold=40)
