"""Past features: the newest pairs of the world, the most similar on request, part of the state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from training_support import VIT, batch

from training.compute.accumulate import Pieces
from training.losses.softmax import Softmax
from training.memory import Memory
from vlp.encoder import create_encoder
from vlp.types import Pairs


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return create_encoder({"model_cfg": VIT}).train()


def pairs(first: int, count: int) -> Pairs:
    """Return random pairs whose groups are first, first + 1, ..."""
    generator = torch.Generator().manual_seed(first)
    image, text = F.normalize(torch.randn(2, count, 16, generator=generator), dim=-1)
    group = torch.arange(first, first + count)
    return Pairs(image, text, group, group)


def test_the_newest_pairs_are_kept_and_the_oldest_are_overwritten(towers):
    memory = Memory(towers, 10)
    assert memory.past(pairs(0, 4)) is None
    shown = []
    for first in (0, 4, 8, 12):
        memory.push(pairs(first, 4))
        shown.append(sorted(memory.past(pairs(0, 4)).group.tolist()))
    assert shown == [list(range(4)), list(range(8)), list(range(2, 12)), list(range(6, 16))]
    whole = {int(group): row for row, group in zip(pairs(12, 4).image, range(12, 16), strict=True)}
    past = memory.past(pairs(0, 4))
    for row, group in zip(past.image, past.group.tolist(), strict=True):
        assert group < 12 or torch.equal(row, whole[group])


def test_what_is_kept_does_not_depend_on_the_order_of_the_processes(towers):
    one, other = Memory(towers, 5), Memory(towers, 5)
    for first in (0, 4):
        batch = pairs(first, 4)
        order = torch.tensor([2, 0, 3, 1])
        one.push(batch)
        other.push(Pairs(*(field[order] for field in batch[:4])))
    assert torch.equal(one.group, other.group)
    assert torch.equal(one.image, other.image)


def test_of_a_batch_larger_than_the_memory_the_last_pairs_are_kept(towers):
    memory = Memory(towers, 5)
    memory.push(pairs(0, 3))
    memory.push(pairs(3, 12))
    assert sorted(memory.past(pairs(0, 4)).group.tolist()) == [10, 11, 12, 13, 14]


def test_the_most_similar_to_any_pair_of_another_group_are_offered(towers):
    held, shown = pairs(0, 40), pairs(36, 8)  # groups 36 to 39 are in both
    memory = Memory(towers, 64, top=6, ceiling=0.55)
    memory.push(held)
    highest = []
    for i in range(40):
        cosines = [-1.0]
        for j in range(8):
            for one, other, mine, twin in (
                (held.image, shown.text, held.text, shown.text),
                (held.text, shown.image, held.image, shown.image),
            ):
                if held.group[i] != shown.group[j] and mine[i] @ twin[j] <= 0.55:
                    cosines.append(float(one[i] @ other[j]))
        highest.append(max(cosines))
    wanted = sorted(range(40), key=lambda i: -highest[i])[:6]
    past = memory.past(shown)
    assert past.group.tolist() == wanted
    assert past.ceiling == 0.55


def test_past_pairs_are_negatives_without_a_gradient_that_do_not_change_later(towers):
    memory, loss, shown = Memory(towers, 8), Softmax(), pairs(20, 4)
    memory.push(pairs(0, 8))
    shown = shown._replace(past=memory.past(shown))
    image = shown.image.requires_grad_()
    value = loss(shown, shown, torch.arange(4), torch.tensor(5.0), None)
    alone = shown._replace(past=None)
    assert value > loss(alone, alone, torch.arange(4), torch.tensor(5.0), None)
    memory.push(pairs(8, 8))
    value.backward()
    assert image.grad is not None


def test_a_memory_that_is_restored_offers_what_was_saved(towers):
    memory = Memory(towers, 10, momentum=0.9)
    memory.push(pairs(0, 7))
    memory.keys(towers, batch(16), Pieces())
    other = Memory(create_encoder({"model_cfg": VIT}), 10, momentum=0.9)
    other.load_state_dict(copy.deepcopy(memory.state_dict()))
    for one in (memory, other):
        one.push(pairs(7, 6))
    for saved, restored in zip(memory.past(pairs(0, 4)), other.past(pairs(0, 4)), strict=True):
        assert saved is restored or torch.equal(saved, restored)
    keys = [one.keys(towers, batch(16), Pieces()).image for one in (memory, other)]
    assert torch.equal(*keys)


def test_keys_come_from_an_encoder_that_follows_slowly(towers):
    memory = Memory(towers, 10, momentum=0.75)
    first = copy.deepcopy(towers).eval()
    keys = memory.keys(towers, batch(16), Pieces(4, 4))
    torch.testing.assert_close(keys.text, first(None, batch(16).tokens).text)
    memory.push(keys)
    with torch.no_grad():
        for value in towers.parameters():
            value += 1.0
    memory.keys(towers, batch(16), Pieces())
    for key, before in zip(memory.key_encoder.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(key, before + 0.25)
