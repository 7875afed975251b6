"""How a run does on held-out shards: the loss at a fixed batch size, and retrieval."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_pipelines.captions import caption_key
from data_pipelines.embed import EncodedSet, encode_shards
from data_pipelines.plan import hash63
from data_pipelines.shards import ShardSet
from eval.run import run_evaluators
from training.objective import Objective
from training.setup import Parts
from vlp.encoder import DualEncoder
from vlp.spec import build
from vlp.types import Pairs

BATCH_SIZE = 256
"""A contrastive loss grows with its batch; at one size, losses of all runs can be compared."""


def validate(parts: Parts, validation: ShardSet) -> dict[str, float]:
    """Return the validation loss and retrieval of the encoder as it is now."""
    encoder = parts.encoder
    with _evaluating(encoder):
        encoded = encode_shards(encoder, validation)
        retrieval = run_evaluators(encoder, encoded, [build("eval.evaluators", "retrieval")])
    objective = parts.objective.of_pairs_alone()
    loss = {"loss": validation_loss(encoder, encoded, objective)} if objective.losses else {}
    return {f"validation/{name}": value for name, value in {**loss, **retrieval}.items()}


@torch.no_grad()
def validation_loss(encoder: DualEncoder, encoded: EncodedSet, objective: Objective) -> float:
    """Return the mean loss over batches of 256 in the order of the shards.

    The rest below a full batch is left out, unless it is all there is.
    """
    count = len(encoded.samples)
    size = min(BATCH_SIZE, count)
    group = torch.tensor([hash63(caption_key(sample.text)) for sample in encoded.samples])
    encoding = encoder()
    scale, bias = encoding.scale.cpu(), encoding.bias
    bias = None if bias is None else bias.cpu()
    losses = []
    for start in range(0, count - size + 1, size):
        part = slice(start, start + size)
        pairs = Pairs(encoded.image[part], encoded.text[part], group[part], group[part])
        losses.append(objective(pairs, pairs, torch.arange(size), scale, bias))
    return torch.stack(losses).mean().item()


@contextmanager
def _evaluating(encoder: DualEncoder) -> Iterator[None]:
    """Put all modules into evaluation for a while; norms that a stage froze stay there after."""
    before = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, is_training in before.items():
            module.training = is_training
