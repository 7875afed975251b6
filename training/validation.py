"""How a run does on held-out shards: the loss at a fixed batch size, and its evaluators."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from data_pipelines.captions import caption_key
from data_pipelines.dataset import Dataset, some_samples
from data_pipelines.encoded import EncodedSet
from data_pipelines.plan import hash63
from eval.features import Encode
from eval.open_dataset import open_dataset
from eval.run import Evaluator, build_evaluators, needs_pooled, run_evaluators
from training.compute.gather import num_processes
from training.objective import Objective
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.processes import Processes
from vlp.types import Pairs

BATCH_SIZE = 256
"""A contrastive loss grows with its batch; at one size, losses of all runs can be compared."""


@dataclass(frozen=True)
class Validation:
    """A held-out dataset, and what is asked about it."""

    dataset: Dataset
    evaluators: Sequence[Evaluator]

    @property
    def identity(self) -> str:
        """What two sets of the same samples share, wherever they lie."""
        keys = "\0".join(self.dataset.keys)
        return f"{hash63(keys):016x}"


def open_validation(source: str, tasks: Sequence[str]) -> Validation:
    """Return a held-out dataset and its evaluators, each able to run on it.

    Raises:
        UserError: None of the samples has a caption, or there is no such task.
    """
    dataset = open_dataset(source)
    if not any(sample.text for sample in some_samples(dataset)):
        raise UserError(f"The validation shards {source} have no captions. Give shards with .txt.")
    evaluators = build_evaluators(tasks) if tasks else []
    for evaluator in evaluators:
        getattr(evaluator, "check", lambda _: None)(dataset)
    return Validation(dataset, evaluators)


def validate(
    encoder: DualEncoder, validation: Validation, objective: Objective
) -> dict[str, float]:
    """Return the validation loss and the figures of the evaluators, on every process.

    Every process encodes its part, and then all have all features and do the same with them: the
    figures do not depend on the number of processes, and none waits for another's evaluators.
    """
    with encoding(encoder) as encode:
        encoded = encode.dataset(validation.dataset, pooled=needs_pooled(validation.evaluators))
        figures = run_evaluators(encode, encoded, validation.evaluators)
    objective = objective.of_pairs_alone()
    loss = {"loss": validation_loss(encoder, encoded, objective)} if objective.losses else {}
    return {f"validation/{name}": value for name, value in (loss | figures).items()}


@contextmanager
def encoding(encoder: DualEncoder) -> Iterator[Encode]:
    """Let a run's encoder encode datasets as it is now, over all processes: each one must ask."""
    with _evaluating(encoder):
        _take_buffers_of_the_first(encoder)
        yield Encode(encoder, processes=Processes.started())


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


def _take_buffers_of_the_first(encoder: DualEncoder) -> None:
    """Give every process the batch-norm statistics of the first, which checkpoints hold.

    Each process has its own after a step, and data parallelism does the same before the next one.
    """
    if num_processes() > 1:
        for buffer in encoder.buffers():
            dist.broadcast(buffer, 0)


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
