"""Gathering over real processes gives the gradient of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from training.gather import gather
from vlp.spec import build, names
from vlp.types import Pairs


def pairs(count: int) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(
        torch.randn(2, count, 8, dtype=torch.float64, generator=generator), dim=-1
    )
    return Pairs(image, text, torch.arange(count) % 5, torch.arange(count))


def one_rank(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    whole = pairs(12)
    rows = torch.arange(12).chunk(processes)[rank]
    found = {}
    for name in names("training.losses"):
        image = whole.image[rows].clone().requires_grad_()
        text = whole.text[rows].clone().requires_grad_()
        world, own = gather(Pairs(image, text, whole.group[rows], whole.seed[rows]))
        assert torch.equal(own, rows)
        assert torch.equal(world.group, whole.group)
        scale = torch.tensor(5.0, dtype=torch.float64)
        local = Pairs(image, text, whole.group[rows], whole.seed[rows])
        loss = build("training.losses", name)(local, world, own, scale, -scale)
        loss.backward()
        # Data parallelism averages what backward gives, so here it is divided by hand.
        found[name] = (loss.detach(), image.grad / processes, text.grad / processes)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_gathered_losses_have_the_gradient_of_the_whole_batch(processes, tmp_path):
    # fork: a spawned process would have to import this file by name, and tests are no package.
    mp.start_processes(one_rank, (processes, str(tmp_path)), nprocs=processes, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for name in names("training.losses"):
        whole = pairs(12)
        image, text = whole.image.requires_grad_(), whole.text.requires_grad_()
        scale = torch.tensor(5.0, dtype=torch.float64)
        loss = build("training.losses", name)(whole, whole, torch.arange(12), scale, -scale)
        loss.backward()
        parts = [ranks[name] for ranks in found]
        assert torch.stack([part[0] for part in parts]).mean().item() == pytest.approx(loss.item())
        for place, gradient in ((1, image.grad), (2, text.grad)):
            gathered = torch.cat([part[place] for part in parts])
            torch.testing.assert_close(gathered, gradient, atol=1e-12, rtol=0)


def test_a_single_process_is_its_own_world():
    local = pairs(4)
    world, rows = gather(local)
    assert world is local
    assert rows.tolist() == [0, 1, 2, 3]
