"""Past features as more negatives: a ring of the newest pairs of all processes.

Without a momentum encoder the features are as they were when their step was taken (XBM, Wang et
al. 2020, arXiv:1912.06798): the encoder has moved on since, the less the lower the learning rate.
With one, all come from an encoder that follows the trained one slowly (MoCo, He et al. 2020,
arXiv:1911.05722), at the price of one more forward pass of each step's batch.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.compute.accumulate import Pieces, encode
from training.compute.gather import gather
from training.optimization.average import follow
from training.similarity.tiles import Tiles, Twins
from vlp.encoder import DualEncoder
from vlp.types import Batch, Pairs, Past


class Memory(nn.Module):
    """The newest ``size`` pairs, the same on every process; a ring, written from its start anew."""

    image: Tensor
    text: Tensor
    group: Tensor
    pushed: Tensor
    """Pairs that were ever pushed."""
    key_encoder: DualEncoder | None
    """What the features come from; None: from the trained encoder."""

    def __init__(
        self,
        encoder: DualEncoder,
        size: int,
        *,
        top: int = 0,
        ceiling: float | None = None,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.top, self.ceiling, self.momentum = size, top, ceiling, momentum
        self.key_encoder = None
        if momentum:
            self.key_encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        for name in ("image", "text"):
            self.register_buffer(name, torch.zeros(size, encoder.dim))
        self.register_buffer("group", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.to(encoder.logit_scale.device)

    def past(self, world: Pairs) -> Past | None:
        """Return the pairs that are more negatives of this batch; None while there are none.

        With ``top``, these are the pairs with the highest cosine, image to text or text to image,
        to any pair of the batch that is of another group and no near-duplicate.
        """
        count = min(int(self.pushed), self.size)
        if not count:
            return None
        held = [self.image[:count], self.text[:count], self.group[:count]]
        past = Past(*(rows.clone() for rows in held), ceiling=self.ceiling)
        if not 0 < self.top < count:
            return past
        nearest = _highest_cosines(past, world).topk(self.top).indices
        return Past(*(rows[nearest] for rows in past[:3]), ceiling=self.ceiling)

    @torch.no_grad()
    def push(self, world: Pairs) -> None:
        """Take in the pairs of one step, in the places of the oldest.

        They go in by their seeds: in the order of processes, how many these are would decide which
        pairs of a batch are written over first.
        """
        count, order = len(world.group), world.seed.argsort()
        places = (self.pushed + torch.arange(count, device=self.group.device)) % self.size
        newest = slice(-self.size, None)  # of a batch larger than the ring
        chosen = order[newest]
        self.image[places[newest]] = world.image[chosen].to(self.image.dtype)
        self.text[places[newest]] = world.text[chosen].to(self.text.dtype)
        self.group[places[newest]] = world.group[chosen]
        self.pushed += count

    @torch.no_grad()
    def keys(self, encoder: DualEncoder, batch: Batch, pieces: Pieces) -> Pairs:
        """Return the features of everyone's batch from the momentum encoder, moved on first.

        Before the first push it takes the trained encoder's weights as they are.
        """
        assert self.key_encoder is not None
        momentum = self.momentum if self.pushed else 0.0
        follow(self.key_encoder, encoder, 1 - momentum)
        pairs = batch._replace(image_views=None, text_views=None, hard_tokens=None, hard_group=None)
        local, _ = encode(self.key_encoder, pairs, pieces)
        return gather(local)[0]


@torch.no_grad()
def _highest_cosines(past: Past, world: Pairs) -> Float[Tensor, "past"]:
    """Return each past pair's highest cosine to the other modality of a pair of another group."""
    highest = torch.full_like(past.image[:, 0], -torch.inf)
    for features, others, mine, theirs in (
        (past.image, world.text, past.text, world.text),
        (past.text, world.image, past.image, world.image),
    ):
        twins = None if past.ceiling is None else Twins(mine, theirs.to(mine.dtype), past.ceiling)
        tiles = Tiles(1.0, past.group, world.group, twins=twins)
        for rows, columns, cosines in tiles.walk(features, others.to(features.dtype)):
            tiles.hide(cosines, rows, columns)
            highest[rows] = torch.maximum(highest[rows], cosines.amax(dim=1))
    return highest
