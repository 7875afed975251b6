"""Processes of gloo train as one process does."""

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from training_support import (
    VIT,
    batch,
    colours,
    differences,
    launch,
    one_thread,
    rows,
    spoil,
    train,
    weights,
)

from data_pipelines.plan import Plan, Row, hash63
from training.compute.accumulate import Pieces, average_gradients, encode, without_reduction
from training.compute.gather import gather
from training.objective import build_objective
from vlp.encoder import DualEncoder, create_encoder
from vlp.errors import UserError
from vlp.types import Batch, Pairs, Past

COUNT = 12
LOSSES = ["hard_negative(beta=0.5)", "sigmoid(weight=0.5)"]
"""Of the kinds that take hard captions and past features."""


def towers() -> DualEncoder:
    torch.manual_seed(0)
    encoder = create_encoder({"model_cfg": VIT}, patch_dropout=0.5)
    encoder.set_logits(10.0, -10.0)
    return encoder.double().train()


def some(whole: Batch, part: torch.Tensor) -> Batch:
    """Return the pairs of a process."""
    own = {
        name: value[:, part] if name.endswith("views") else value[part]
        for name, value in whole._asdict().items()
        if isinstance(value, torch.Tensor)
    }
    return whole._replace(**own, keys=[whole.keys[row] for row in part.tolist()])


def whole_batch() -> Batch:
    hard = batch(2 * COUNT).tokens.unflatten(0, (COUNT, 2))
    return batch(COUNT, hard_tokens=hard, hard_group=torch.arange(2 * COUNT).view(COUNT, 2))


def gradients(encoder, own: Batch, pieces: Pieces) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter, averaged over processes where there are several."""
    past = torch.nn.functional.normalize(torch.eye(20, 16, dtype=torch.float64) + 0.1, dim=-1)
    is_several = pieces.are_several(own)
    with without_reduction(encoder) if is_several else nullcontext():
        local, encoding = encode(encoder, own, pieces)
        local = local._replace(past=Past(past, past, torch.arange(20)))
        world, part = gather(local)
        build_objective(LOSSES)(local, world, part, encoding.scale, encoding.bias).backward()
    if is_several:
        average_gradients(encoder.parameters())
    return {name.removeprefix("module."): p.grad for name, p in encoder.named_parameters()}


def one_rank(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    part = torch.arange(COUNT).chunk(processes)[rank]
    found = {}
    for pieces in (Pieces(), Pieces(2, 3), Pieces(0, 2), Pieces(1, 0)):
        encoder = DistributedDataParallel(towers())
        found[tuple(pieces)] = gradients(encoder, some(whole_batch(), part), pieces)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_every_parameter_has_the_gradient_of_the_whole_batch_in_pieces_too(processes, tmp_path):
    wanted = gradients(towers(), whole_batch(), Pieces())
    # fork: a spawned process would have to import this file by name, and tests are no package.
    mp.start_processes(one_rank, (processes, str(tmp_path)), nprocs=processes, start_method="fork")
    for rank in range(processes):
        for found in torch.load(tmp_path / f"{rank}.pt").values():
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                least = 1e-9 * gradient.abs().max().item()
                torch.testing.assert_close(found[name], gradient, atol=least, rtol=0, msg=name)


def clip_rank(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/clip", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    peer = open_clip.loss.ClipLoss(
        local_loss=True, gather_with_grad=True, rank=rank, world_size=processes
    )
    found = []
    for is_ours in (True, False):
        generator = torch.Generator().manual_seed(rank)
        image, text = torch.randn(2, 5, 8, dtype=torch.float64, generator=generator)
        image, text = (torch.nn.functional.normalize(x, dim=-1) for x in (image, text))
        scale = torch.tensor(20.0, dtype=torch.float64)
        leaves = [leaf.requires_grad_() for leaf in (image, text, scale)]
        if is_ours:
            number = torch.arange(5) + 5 * rank
            local = Pairs(image, text, number, number)
            world, rows = gather(local)
            loss = build_objective(["softmax"])(local, world, rows, scale, None)
        else:
            loss = peer(image, text, scale)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    torch.save(found, f"{folder}/clip{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_over_processes_softmax_is_open_clips_local_loss_with_gathered_gradients(
    processes, tmp_path
):
    mp.start_processes(clip_rank, (processes, str(tmp_path)), nprocs=processes, start_method="fork")
    for rank in range(processes):
        ours, theirs = torch.load(tmp_path / f"clip{rank}.pt")
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


CASES = {
    "softmax": (["--loss", "softmax"], []),
    "sigmoid": (["--loss", "sigmoid"], []),
    "pieces": (
        ["--loss", "softmax", "uniformity(weight=0.1)", "--model.patch-dropout", "0.5"],
        ["--image-piece", "3", "--text-piece", "5"],
    ),
    "memory in pieces": (
        ["--memory", "40", "--memory-top", "30", "--memory-momentum", "0.5"],
        ["--image-piece", "4"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "processes"),
    [
        ("softmax", 2),
        ("sigmoid", 3),
        *(("pieces", processes) for processes in (1, 2, 3)),
        ("memory in pieces", 2),
    ],
)
def test_processes_of_gloo_train_as_one_process_does(case, processes, tmp_path):
    data = colours(tmp_path / "shards", 96)
    options, pieces = CASES[case]
    steps = "6" if "--memory" in options else "3"  # until pairs are written over
    options = [*options, "--steps", steps, "--optimizer.clip-norm", "0.5", "--precision", "fp32"]
    options += ["--optimizer.warmup", "1 steps"]
    # Without batch norm: its statistics are those of a process, in every data-parallel trainer.
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    options += ["--model.name", str(tmp_path / "vit.json")]
    train(tmp_path / "one", data, *options)
    options += ["--data.batch-size", "24", "--log-every", "1"]
    ran = launch(processes, tmp_path / "many", data, *options, *pieces)
    assert ran.returncode == 0, ran.stderr
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=2e-5, rtol=1e-4)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_bad_samples_are_judged_over_all_processes_and_all_in_the_ledger(tmp_path):
    data = spoil(tmp_path / "spoiled", 96, every=8)
    options = ["--steps", "4", "--data.batch-size", "24", "--log-every", "3"]
    with pytest.raises(UserError, match="of 96 samples cannot be read") as error:
        train(tmp_path / "one", data, *options)
    ran = launch(2, tmp_path / "many", data, *options)
    assert ran.returncode != 0
    assert str(error.value) in ran.stderr
    one, many = (json.loads((tmp_path / n / "faults.json").read_text()) for n in ("one", "many"))
    assert one == many
    assert one["image ends early"]["count"] == 12


@pytest.mark.slow
def test_when_any_process_fails_the_ledger_holds_what_it_knows(tmp_path):
    folder = spoil(tmp_path / "spoiled", 150, every=4)
    (folder / "sizes.json").write_text(
        json.dumps({f"{number:06d}.tar": 50 for number in range(3)} | {"gone.tar": 1})
    )
    source = f"file://{folder}/{{000000,000001,000002,gone}}.tar"
    # A seed by which the second process reads the shard that is gone, not in the first batches.
    counts, seeds = np.array([50, 50, 50, 1]), range(100)
    plans = [Plan([Row(counts, hash63(f"{seed} 0"))], 24) for seed in seeds]
    at = [next(p for p in range(151) if plan.place(p).shard == 3) for plan in plans]
    seed = next(seed for seed in seeds if at[seed] % 2 == 1 and 96 < at[seed] < 120)
    options = ["--data.batch-size", "24", "--log-every", "1", "--save-every", "1000"]
    options += ["--data.max-bad", "1", "--data.workers", "0", "--seed", str(seed), "--epochs", "1"]
    ran = launch(2, tmp_path / "run", source, *options)
    assert ran.returncode != 0
    assert "There is no shard at" in ran.stderr
    faults = json.loads((tmp_path / "run" / "faults.json").read_text())
    places = map(plans[seed].place, range(96))
    bad = [place for place in places if (50 * place.shard + place.index) % 4 == 0]
    assert faults["image ends early"]["count"] >= len(bad) > 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.nam", "lion"], "Did you mean --optimizer.name"),
        (["--data.batch-size", "25"], "The batch of 25 does not divide by 3 processes"),
        (["--data.shards", "nowhere"], "There are no shards at nowhere"),
        (["--guard.patience", "1", "--optimizer.learning-rate", "1e30"], "steps in a row"),
    ],
)
def test_a_mistake_that_all_processes_meet_is_said_once(options, message, tmp_path):
    data = colours(tmp_path / "shards", 96)
    usual = ["--data.batch-size", "24", "--steps", "4", "--log-every", "1", "--data.workers", "0"]
    ran = launch(3, tmp_path / "run", data, *usual, *options)
    assert ran.returncode
    (said,) = [line for line in ran.stderr.splitlines() if line.startswith("vlp: ")]
    assert message in said
    assert ran.stderr.count("Traceback (most") == 1, ran.stderr  # the launcher's own
    report = tmp_path / "run" / "report.html"
    if report.is_file():
        assert "Ended by an error" in report.read_text()


@pytest.mark.slow
def test_accelerate_launch_trains_as_torchrun_does(tmp_path):
    data = colours(tmp_path / "shards", 96)
    argv = ["--data.batch-size", "24", "--steps", "3", "--log-every", "1"]
    torchrun = launch(2, tmp_path / "torchrun", data, *argv)
    assert torchrun.returncode == 0, torchrun.stderr
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"]
    start += ["--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no", "-m", "vlp"]
    start += ["train", "toy", "--out", str(tmp_path / "accelerate"), "--data.shards", str(data)]
    ran = subprocess.run([*start, *argv], capture_output=True, text=True, env=one_thread())
    assert ran.returncode == 0, ran.stderr
    assert not differences(tmp_path / "torchrun", tmp_path / "accelerate")
    session = json.loads((tmp_path / "accelerate" / "sessions.jsonl").read_text().splitlines()[0])
    assert session["processes"] == 2
