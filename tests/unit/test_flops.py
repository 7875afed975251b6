"""Operations of a step are counted as by hand: forward, backward, and nothing done twice."""

import pytest
import torch
from training_support import VIT, batch

from training.compute.flops import FlopCounter, peak_flops
from training.compute.towers import set_up_towers
from training.options import SpeedConfig
from vlp.encoder import DualEncoder, create_encoder


def encoder() -> DualEncoder:
    return create_encoder({"model_cfg": VIT})


def by_hand(tokens: int, layers: int, width: int = 32) -> int:
    """Return the operations of a transformer's blocks in forward for one row."""
    weights = 12 * width * width  # four of attention, eight of the MLP
    return layers * 2 * (weights * tokens + 2 * tokens * tokens * width)


IMAGE = by_hand(17, layers=2) + 2 * 16 * (3 * 8 * 8) * 32 + 2 * 32 * 16
TEXT = by_hand(12, layers=1) + 2 * 32 * 16
PATCHES = 2 * 16 * (3 * 8 * 8) * 32
"""The gradient of the pixels is not needed."""


def test_a_step_is_three_times_the_forward_pass():
    assert FlopCounter(encoder()).of(batch(5)) == 5 * (3 * (IMAGE + TEXT) - PATCHES)


def test_a_frozen_tower_is_counted_once_and_stages_are_told_apart():
    frozen = encoder()
    counter = FlopCounter(frozen)
    whole = counter.of(batch(4), 0)
    frozen.visual.requires_grad_(False)
    assert counter.of(batch(4), 1) == 4 * (IMAGE + 3 * TEXT)
    assert counter.of(batch(4), 0) == whole


def test_what_is_recomputed_is_not_counted():
    plain, changed = encoder(), encoder()
    counter = FlopCounter(changed)
    set_up_towers(changed, SpeedConfig(recompute=("image", "text")))
    assert counter.of(batch(4)) == FlopCounter(plain).of(batch(4))


def test_lengths_that_are_told_by_three_others_are_as_if_counted():
    told = FlopCounter(encoder())
    for length in (12, 5, 9):
        told.of(_cut(length))
    for length in (1, 7, 11):
        assert told.of(_cut(length)) == FlopCounter(encoder()).of(_cut(length))


def test_views_and_hard_captions_count_as_rows():
    rows = batch(4)
    more = rows._replace(
        image_views=torch.stack([rows.images] * 2),
        text_views=rows.tokens[None],
        hard_tokens=torch.stack([rows.tokens] * 3, dim=1),
    )
    counter = FlopCounter(encoder())
    assert counter.of(more) == 12 * (3 * IMAGE - PATCHES) + 20 * 3 * TEXT


def test_counting_leaves_the_encoder_as_it_was():
    before = encoder()
    values = {name: value.clone() for name, value in before.state_dict().items()}
    FlopCounter(before).of(batch(4))
    assert all(p.grad is None and not p.is_meta for p in before.parameters())
    assert all(torch.equal(value, values[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA L40S", "no", 91.6e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Some GPU of tomorrow", "bf16", None),
    ],
)
def test_the_peak_of_a_known_gpu_follows_from_its_name(name, precision, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == pytest.approx(peak)
    assert peak_flops(torch.device("cpu"), precision) is None


def _cut(length: int):
    rows = batch(4)
    return rows._replace(tokens=rows.tokens[:, :length])
