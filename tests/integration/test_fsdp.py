"""Sharded runs are plain data-parallel ones, to rounding: gradients, weights, files."""

import json
import shutil
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from training_support import VIT, batch, colours, in_ranks, launch, train, weights

from training.commands import RECIPES
from training.compute.accumulate import Pieces, average_gradients, encode, without_reduction
from training.compute.fsdp import (
    OPTIMIZERS,
    gathered,
    plain,
    refuse_sharding,
    shard,
    slice_like,
    slice_state,
    whole,
)
from training.compute.gather import gather
from training.losses.sigmoid import Sigmoid
from training.optimization.optimizers import build_optimizer
from training.optimization.stages import freeze
from training.options import OptimizerConfig
from vlp.encoder import DualEncoder, create_encoder
from vlp.errors import UserError

COUNT = 12
CASES = {
    "whole batch": (Pieces(), set()),
    "pieces": (Pieces(2, 3), set()),
    "a frozen tower, then none": (Pieces(), {"visual"}),
}


SMALL = {**VIT, "text_cfg": {**VIT["text_cfg"], "vocab_size": 1000}}


def towers() -> DualEncoder:
    torch.manual_seed(0)
    encoder = create_encoder({"model_cfg": SMALL}, patch_dropout=0.5)
    encoder.set_logits(10.0, -10.0)
    return encoder.train()


def take_steps(called: nn.Module, own: DualEncoder, mine, pieces: Pieces, frozen: set) -> dict:
    """Train for three steps; return the gradients of the last, and the norms of all."""
    optimizer = build_optimizer(
        OptimizerConfig(learning_rate=1e-3), [{"params": [*own.parameters()], "weight_decay": 0.1}]
    )
    norms = []
    for number in range(3):
        names = {n for n, _ in own.named_parameters() if n.split(".")[0] in frozen}
        freeze(own, names if number == 0 else set())
        if isinstance(called, DistributedDataParallel):  # it knows the gradients it was made with
            called._remove_autograd_hooks()
            called = DistributedDataParallel(own)
        optimizer.zero_grad(set_to_none=True)
        with without_reduction(called) if pieces != Pieces() else torch.enable_grad():
            local, encoding = encode(called, mine, pieces)
            world, part = gather(local)
            Sigmoid()(local, world, part, encoding.scale, encoding.bias).backward()
        if pieces != Pieces():
            average_gradients(own.parameters())
        norms.append(plain(nn.utils.clip_grad_norm_(own.parameters(), 0.5)))
        optimizer.step()
    found = {name: p.grad for name, p in own.named_parameters()}
    return gathered({"gradients": found, "norms": norms, "weights": own.state_dict()})


def one_rank(rank: int, processes: int, folder: str, cases: list[str]) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    part = torch.arange(COUNT).chunk(processes)[rank]
    whole_batch = batch(COUNT)
    tensors = {k: v[part] for k, v in whole_batch._asdict().items() if torch.is_tensor(v)}
    mine = whole_batch._replace(**tensors, keys=[whole_batch.keys[row] for row in part.tolist()])
    found = {}
    for name in cases:
        pieces, frozen = CASES[name]
        plainly, sharded = towers(), towers()
        shard(sharded, "no")
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        found[name] = (
            take_steps(DistributedDataParallel(plainly), plainly, mine, pieces, frozen),
            take_steps(sharded, sharded, mine, pieces, frozen),
        )
        with torch.no_grad():
            rows = [
                tower.eval()(mine.images, mine.tokens, pooled=True) for tower in (sharded, plainly)
            ]
            for field in ("image_pooled", "text_pooled"):
                slices, plain_rows = (getattr(encoding, field) for encoding in rows)
                assert slices.shape == (len(mine.images), 32)
                torch.testing.assert_close(slices, plain_rows, atol=1e-4, rtol=0)
        with whole(sharded), torch.no_grad():
            if rank == 0:  # alone, and others wait for nothing
                alone = sharded.eval()(mine.images, mine.tokens)
                torch.testing.assert_close(
                    alone[:2], plainly.eval()(mine.images, mine.tokens)[:2], atol=1e-4, rtol=0
                )
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("processes", "cases"),
    [(2, ["pieces"]), *(pytest.param(n, [*CASES], marks=pytest.mark.slow) for n in (2, 3))],
)
def test_gradients_and_weights_in_slices_are_those_of_data_parallelism(processes, cases, tmp_path):
    in_ranks(__file__, one_rank, processes, str(tmp_path), cases)
    for plainly, sharded in torch.load(tmp_path / "found.pt").values():
        assert plainly["gradients"].keys() == dict(towers().named_parameters()).keys()
        torch.testing.assert_close(sharded, plainly, atol=1e-6, rtol=1e-4)


def optimizer_steps(name: str, mesh: DeviceMesh | None) -> dict:
    """Take four steps with drawn gradients, the last two with an optimizer of saved state."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Linear(8, 7), nn.LayerNorm(7))
    if mesh:
        fully_shard(net, mesh=mesh)
    else:
        net.to(memory_format=torch.channels_last)

    def take_two(seed: int, state: dict | None) -> dict:
        groups = [{"params": [*net.parameters()], "weight_decay": 0.1}]
        optimizer = build_optimizer(OptimizerConfig(name=name, learning_rate=1e-3), groups)
        if state is not None:
            optimizer.load_state_dict(slice_state(optimizer, state))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            for parameter in net.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.grad = slice_like(drawn, parameter)
            optimizer.step()
        return gathered(optimizer.state_dict())

    held = [take_two(1, None)]
    dist.broadcast_object_list(held)  # the first wrote a file, and all read it
    return gathered({"optimizer": take_two(2, held[0]), "weights": net.state_dict()})


def optimizer_rank(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    found = {n: (optimizer_steps(n, None), optimizer_steps(n, mesh)) for n in OPTIMIZERS}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_optimizers_step_on_slices_as_on_whole_parameters(tmp_path):
    in_ranks(__file__, optimizer_rank, 3, str(tmp_path))
    found = torch.load(tmp_path / "found.pt")
    assert list(found) == list(OPTIMIZERS)
    for whole_, sliced in found.values():
        torch.testing.assert_close(sliced, whole_, atol=1e-6, rtol=1e-4)


STEPS = [
    "--steps",
    "6",
    "--save-every",
    "3",
    "--precision",
    "fp32",
    "--optimizer.warmup",
    "1 steps",
]


@pytest.mark.slow
def test_a_run_goes_on_sharded_or_not_and_its_files_are_open_clips(tmp_path):
    data = colours(tmp_path / "shards", 96)
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    options = [*STEPS, "--model.name", str(tmp_path / "vit.json"), "--data.batch-size", "24"]
    options += ["--loss", "sigmoid", "--log-every", "1", "--data.validation", str(data)]
    # Whole batches: which pairs of one stay follows from the order of processes.
    options += ["--memory", "48", "--memory-momentum", "0.9", "--keep.last", "9"]
    train(tmp_path / "one", data, *options)
    for out, processes, sharding in (("down", 2, "fsdp"), ("up", 1, "none")):
        for last in (True, False):
            kind = sharding if last else {"fsdp": "none", "none": "fsdp"}[sharding]
            number = processes if last else 3 - processes
            ran = launch(number, tmp_path / out, data, *options, "--sharding", kind)
            assert ran.returncode == 0, ran.stderr
            if last:  # back to the first checkpoint
                shutil.rmtree(tmp_path / out / "checkpoints" / "step_0000006")
    one = weights(tmp_path / "one")
    for out in ("down", "up"):
        many = weights(tmp_path / out)
        for name in one:
            torch.testing.assert_close(many[name], one[name], atol=2e-5, rtol=1e-4)
        newest = tmp_path / out / "checkpoints" / "step_0000003"
        model = open_clip.create_model(f"local-dir:{newest}")
        assert model.visual.conv1.weight.abs().sum() > 0
    state = torch.load(tmp_path / "down" / "checkpoints" / "step_0000003" / "train_state.pt")
    held = [value for own in state["optimizer"]["state"].values() for value in own.values()]
    assert not any(isinstance(value, DTensor) for value in held)


@pytest.mark.parametrize(
    ("changes", "precision", "message"),
    [
        (
            {"name": "muon"},
            "bf16",
            "muon does not know parameters in slices. Write --sharding none",
        ),
        ({}, "fp16", "do not go with fp16. Write --precision bf16"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_line(changes, precision, message):
    config = replace(RECIPES["toy"](), optimizer=OptimizerConfig(**changes), sharding="fsdp")
    with pytest.raises(UserError, match=message):
        refuse_sharding(config, precision)


def test_one_process_has_nothing_to_shard():
    encoder = towers()
    shard(encoder, "no")
    assert not any(isinstance(p, DTensor) for p in encoder.parameters())
