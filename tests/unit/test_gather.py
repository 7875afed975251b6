"""Gathering over real processes gives the gradient of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses_support import drawn, filled, loss_of, number, part

from training.compute.gather import gather
from vlp.spec import names
from vlp.types import Pairs


def pairs(name: str) -> Pairs:
    """Return a batch with every field that a loss takes."""
    return filled(loss_of(name), drawn(12, groups=5))


def copied(pairs: Pairs) -> Pairs:
    """Return the same pairs as leaves that have no gradient yet."""
    leaves = {
        name: getattr(pairs, name).detach().clone().requires_grad_()
        for name in ("image", "text", "hard_text")
        if getattr(pairs, name) is not None
    }
    return pairs._replace(**leaves)


def one_rank(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    rows = torch.arange(12).chunk(processes)[rank]
    found = {}
    for name in names("training.losses"):
        whole = pairs(name)
        local = copied(part(whole, rows))
        world, own = gather(local)
        assert torch.equal(own, rows)
        assert torch.equal(world.group, whole.group)
        scale, bias = number(5.0), number(-5.0)
        loss = loss_of(name)(local, world, own, scale, bias)
        loss.backward()
        leaves = [local.image, local.text, local.hard_text]
        # Data parallelism averages what backward gives, so here it is divided by hand.
        gradients = [leaf.grad / processes for leaf in leaves if leaf is not None]
        found[name] = (loss.detach(), scale.grad, gradients)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_gathered_losses_have_the_gradient_of_the_whole_batch(processes, tmp_path):
    # fork: a spawned process would have to import this file by name, and tests are no package.
    mp.start_processes(one_rank, (processes, str(tmp_path)), nprocs=processes, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for name in names("training.losses"):
        whole = copied(pairs(name))
        scale, bias = number(5.0), number(-5.0)
        loss = loss_of(name)(whole, whole, torch.arange(12), scale, bias)
        loss.backward()
        parts = [ranks[name] for ranks in found]
        assert torch.stack([part[0] for part in parts]).mean().item() == pytest.approx(loss.item())
        if scale.grad is not None:
            assert sum(p[1] for p in parts).item() / processes == pytest.approx(scale.grad.item())
        leaves = [leaf for leaf in (whole.image, whole.text, whole.hard_text) if leaf is not None]
        for leaf, gathered in zip(leaves, zip(*(p[2] for p in parts), strict=True), strict=True):
            torch.testing.assert_close(torch.cat(gathered), leaf.grad, atol=1e-12, rtol=0)


def test_a_single_process_is_its_own_world():
    local = drawn(4)
    world, rows = gather(local)
    assert world is local
    assert rows.tolist() == [0, 1, 2, 3]
