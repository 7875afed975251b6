"""What a run asks of a GPU and of the wires between GPUs, from shapes alone.

Nothing is computed: the encoder has torch's fake tensors, with shapes and types but no numbers, so
ViT-L/14 takes seconds and little memory. Activations are what autograd keeps of such a forward pass
over a GPU's whole share of the batch; of recomputed blocks, all their inputs and the inside of the
largest one. A teacher's forward pass keeps nothing, and is over before that of the student.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from training.config import TrainConfig
from training.optimization.groups import parameter_groups
from training.optimization.layers import tower_blocks
from training.optimization.optimizers import build_optimizer
from training.optimization.schedule import Schedule
from training.similarity.tiles import TILE_ELEMENTS
from training.teachers import Teacher
from vlp.encoder import DualEncoder

FP32, BF16, INT64 = 4, 2, 8
"""Bytes of a number."""
TILES = 3
"""Tiles that a loss holds at once in its backward sweep: similarities, gradients, one to spare."""


class Footprint(NamedTuple):
    """Bytes of a run, per GPU."""

    memory: dict[str, float]
    """By what they hold; together about the peak, without what CUDA and NCCL take themselves."""
    traffic: dict[str, float]
    """That a GPU sends in a step; it receives as many."""


@dataclass(frozen=True)
class Share:
    """Rows of a batch that one GPU has."""

    pairs: int
    images: int
    """Pictures, views included."""
    texts: int
    images_at_once: int
    """In one pass through the tower."""
    texts_at_once: int

    @classmethod
    def of(cls, config: TrainConfig, processes: int, hard: int = 0) -> "Share":
        """Return the share of one of so many processes, of pairs with so many hard captions."""
        pairs = config.data.batch_size // processes
        images = pairs * config.data.image_views
        texts = pairs * (config.data.text_views + hard)
        return cls(
            pairs,
            images,
            texts,
            min(config.image_piece or images, images),
            min(config.text_piece or texts, texts),
        )

    @property
    def passes(self) -> int:
        """Passes through the encoder in a step, of the tower that needs more."""
        image, text = self.images / self.images_at_once, self.texts / self.texts_at_once
        return math.ceil(max(image, text))


def to_shapes(encoder: DualEncoder) -> FakeTensorMode:
    """Give an encoder of the meta device fake tensors in place of its own; return their mode.

    They say that they are on the CPU, as autocast does not know the meta device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in encoder.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype)
                    module._parameters[name] = nn.Parameter(fake, value.requires_grad)
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    return mode


def footprint(
    encoder: DualEncoder,
    mode: FakeTensorMode,
    config: TrainConfig,
    schedule: Schedule,
    *,
    processes: int,
    in_bf16: bool,
    hard: int = 0,
    teacher: Teacher | None = None,
) -> Footprint:
    """Return what a run takes on each of so many GPUs.

    Args:
        encoder: Of shapes alone; it is trained in all that any stage trains.
        mode: What ``to_shapes`` returned.
        config: Of the run; its batch divides by the processes.
        schedule: Of the run.
        processes: GPUs.
        in_bf16: Whether the towers compute in bf16 under autocast, else in fp32.
        hard: Hard captions of each pair.
        teacher: Its encoder of shapes alone, too.
    """
    share = Share.of(config, processes, hard)
    groups = parameter_groups(encoder, config.optimizer, schedule.stages)
    trained = _bytes([p for group in groups for p in group["params"]])
    with mode:
        state = _optimizer_bytes(config, groups)
        size, again = _largest_picture(encoder, schedule), config.speed.recompute
        activations = _activations(encoder, share, groups, size, again, in_bf16=in_bf16)
    views = config.data.image_views + config.data.text_views + hard
    world = config.data.batch_size * encoder.dim * FP32 * views
    tile = FP32 * min(TILE_ELEMENTS["cuda"], share.pairs * config.data.batch_size)
    picture = 3 * math.prod(size)
    memory = {
        "pictures": picture * (share.images + FP32 * share.images_at_once),
        "activations": activations,
        "features of all GPUs and their gradients": 2 * world,
        "tiles of the loss": TILES * tile,
        "past pairs": config.memory * (2 * encoder.dim * FP32 + INT64),
    }
    taught = _taught_bytes(teacher, encoder, share, config.data.batch_size) if teacher else {}
    memory |= taught
    others = (processes - 1) / processes
    traffic = {
        "features gathered": others * (world + 2 * INT64 * config.data.batch_size),
        "gradients of features summed": 2 * others * world,
        "teacher's features gathered": others * taught.get("teacher's features", 0),
    }
    held, sent = _weights_held_and_sent(
        encoder, config, share, processes, trained, state, in_bf16=in_bf16
    )
    return Footprint(_present(held | memory), _present(traffic | sent))


def _weights_held_and_sent(
    encoder: DualEncoder,
    config: TrainConfig,
    share: Share,
    processes: int,
    trained: int,
    state: int,
    *,
    in_bf16: bool,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a GPU holds and sends of weights, gradients and optimizer state."""
    weights, others = _bytes(encoder), (processes - 1) / processes
    is_sharded = config.sharding == "fsdp" and processes > 1
    sent: dict[str, float] = {}
    parts = processes if is_sharded else 1
    held = {
        "weights": weights / parts,
        "gradients": trained / parts,
        "optimizer state": state / parts,
        "momentum encoder": weights / parts if config.memory_momentum else 0,
        "moving average": weights / parts if config.ema else 0,
    }
    if is_sharded:
        narrow = BF16 / FP32 if in_bf16 else 1.0
        held["weights gathered at a time"] = narrow * _gathered_bytes(encoder, share)
        gathers = narrow * (weights + trained) * share.passes
        sent["weights gathered, forward and backward"] = others * gathers
        sent["gradients averaged into slices"] = others * trained * share.passes
    elif processes > 1:
        held["gradients in messages"] = trained
        sent["gradients averaged"] = 2 * others * trained  # a ring passes each twice
    return held, sent


def _optimizer_bytes(config: TrainConfig, groups: list[dict[str, Any]]) -> int:
    """Return the size of an optimizer's state: that after a step of shapes."""
    optimizer = build_optimizer(config.optimizer, groups)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    held = [value for state in optimizer.state.values() for value in state.values()]
    return _bytes([value for value in held if isinstance(value, Tensor)])


def _largest_picture(encoder: DualEncoder, schedule: Schedule) -> tuple[int, int]:
    """Return the size of the largest pictures that any stage has."""
    sides = [stage.image_size for stage in schedule.stages]
    return max([(s, s) if s else encoder.image_size for s in sides], key=math.prod)


def _taught_bytes(
    teacher: Teacher, encoder: DualEncoder, share: Share, batch_size: int
) -> dict[str, float]:
    """Return what a teacher takes: an encoder is whole on each GPU, in fp32."""
    held = teacher.encoder or teacher.features
    assert held is not None
    taught: dict[str, float] = {"teacher's features": 2 * batch_size * held.dim * FP32}
    if teacher.encoder is not None:
        taught["teacher's weights"] = _bytes(teacher.encoder)
        if teacher.encoder.image_size != encoder.image_size:  # else it sees the student's
            taught["teacher's pictures"] = 3 * math.prod(teacher.encoder.image_size) * share.pairs
    return taught


def _activations(
    encoder: DualEncoder,
    share: Share,
    groups: list[dict[str, Any]],
    size: tuple[int, int],
    recomputed: tuple[str, ...],
    *,
    in_bf16: bool,
) -> int:
    """Return the size of what autograd keeps for backward; of several pieces, of the larger one.

    Towers that are recomputed add what their largest block keeps while backward is inside it.
    """
    encoder.train().requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    images = torch.zeros(share.images_at_once, 3, *size, dtype=torch.uint8)
    seed = torch.zeros(share.images_at_once, dtype=torch.int64)
    tokens = torch.zeros(share.texts_at_once, encoder.tokenizer.length, dtype=torch.int64)
    towers = (("image", encoder.visual), ("text", encoder.text))
    again = {module for name, tower in towers if name in recomputed for module in tower.modules()}
    blocks = again.intersection(tower_blocks(encoder))
    image = _kept_bytes(encoder, blocks, images, None, seed, in_bf16=in_bf16)
    text = _kept_bytes(encoder, blocks, None, tokens, in_bf16=in_bf16)
    if share.passes > 1:
        return max(sum(image), sum(text))
    return image[0] + text[0] + max(image[1], text[1])


def _kept_bytes(
    encoder: DualEncoder, blocks: set[nn.Module], *rows: Tensor | None, in_bf16: bool
) -> tuple[int, int]:
    """Return the size of what a pass keeps, and the most that one of these blocks adds later."""
    own = {x.untyped_storage()._cdata for x in (*encoder.parameters(), *encoder.buffers())}
    calls: list[tuple[Any, ...]] = []

    def watch(*call: Any) -> None:
        calls.append(call)

    hooks = [block.register_forward_pre_hook(watch, with_kwargs=True) for block in blocks]
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        with _keeping(own) as kept:
            encoding = encoder(*rows)
        for hook in hooks:
            hook.remove()
        most = 0
        for block, positional, named in calls:
            with _keeping(own | set(kept)) as more:  # past __call__, which may keep inputs alone
                output = block.forward(*positional, **named)
            del output
            most = max(most, sum(storage.nbytes() for storage in more.values()))
    del encoding
    return sum(storage.nbytes() for storage in kept.values()), most


@contextmanager
def _keeping(known: set[int]) -> Iterator[dict[int, Any]]:
    """Collect the storages that autograd keeps for backward, but for those known, by address."""
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _gathered_bytes(encoder: DualEncoder, share: Share) -> int:
    """Return the size of the weights that are whole at a time, in fp32.

    Two blocks, one of them ahead, and what is in no block; all while pieces go backward.
    """
    if share.passes > 1:
        return _bytes(encoder)
    blocks = sorted(map(_bytes, tower_blocks(encoder)), reverse=True)
    return _bytes(encoder) - sum(blocks) + sum(blocks[:2])


def _bytes(tensors: nn.Module | list[Any]) -> int:
    found = tensors.parameters() if isinstance(tensors, nn.Module) else tensors
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def _present(sizes: Mapping[str, float]) -> dict[str, float]:
    return {name: size for name, size in sizes.items() if size}
