import pytest
import torch
import torch.nn.functional as F
from encoded_support import encoded_set, sample

from eval.evaluators.matryoshka import Matryoshka
from eval.evaluators.retrieval import Retrieval
from eval.evaluators.zero_shot import ZeroShot
from eval.features import Encode
from eval.prefixes import (
    area_by_octave,
    funnel_search,
    prefix,
    prefix_lengths,
    shortest_enough,
)
from vlp.errors import UserError

DIM = 64


def features(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    # Early coordinates say most, as a Matryoshka loss makes them.
    return F.normalize(
        torch.randn(rows, DIM, generator=generator) / torch.arange(1, DIM + 1), dim=1
    )


@pytest.fixture
def pairs():
    """30 images whose texts are near them."""
    image = features(30, 0)
    text = F.normalize(image + 0.7 * features(30, 1), dim=1)
    return encoded_set([sample(i, f"caption {i}") for i in range(30)], image, text)


def test_a_prefix_is_cut_and_made_a_unit_length_row_again():
    rows = features(5, 0)
    found = prefix(rows, 8)
    assert found.shape == (5, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    assert torch.allclose(found, rows[:, :8] / rows[:, :8].norm(dim=1, keepdim=True))
    assert torch.allclose(prefix(rows, DIM), rows)
    assert prefix_lengths(100) == [8, 16, 32, 64, 100]
    assert prefix_lengths(8) == [8]


def test_the_area_of_a_line_is_its_mean_and_the_shortest_prefix_is_the_first_to_do():
    assert area_by_octave({8: 0.5, 16: 0.5, 64: 0.5}) == pytest.approx(0.5)
    assert area_by_octave({8: 0.2, 16: 0.3, 32: 0.4}) == pytest.approx(0.3)
    assert area_by_octave({8: 0.0, 16: 1.0, 64: 1.0}) == pytest.approx((0.5 + 2) / 3)
    assert area_by_octave({8: 0.7}) == 0.7
    assert shortest_enough({8: 0.98, 16: 0.99, 32: 1.0}) == 16
    assert shortest_enough({8: 0.0, 16: 0.0}) == 8


def test_a_funnel_equals_naive_sorting_stage_by_stage():
    queries, items, stages = features(9, 2), features(50, 3), [(8, 20), (16, 10), (64, 5)]
    found = {
        block: funnel_search(queries, items, stages, block=block).tolist() for block in (1, 2**24)
    }
    assert found[1] == found[2**24]
    for query, kept in zip(queries, found[1], strict=True):
        order = list(range(50))
        for length, count in stages:
            score = (prefix(items, length) @ prefix(query[None], length)[0]).tolist()
            order = sorted(order, key=lambda item, score=score: -score[item])[:count]
        assert kept == order


def test_a_funnel_that_keeps_everything_is_an_exact_search():
    queries, items = features(9, 2), features(50, 3)
    found = funnel_search(queries, items, [(8, 50), (64, 50)])
    assert torch.equal(found[:, 0], (queries @ items.T).argmax(1))
    with pytest.raises(UserError, match="keeps fewer items by longer prefixes"):
        funnel_search(queries, items, [(16, 10), (8, 5)])


def test_the_whole_length_has_the_figures_of_the_task_alone(encoder, pairs):
    classes = [f"caption {i}" for i in range(30)]
    for row, of in enumerate(pairs.samples):
        of.metadata["cls"] = row
    inner = f"zero_shot(classes={classes})"
    found = Matryoshka(tasks=("retrieval", inner), lengths=(8, 32))(Encode(encoder), pairs)
    alone = Retrieval()(Encode(encoder), pairs).figures
    for way in ("image_to_text", "text_to_image"):
        whole = found.figures[f"matryoshka/64/{way}/recall@1"]
        assert whole == pytest.approx(alone[f"retrieval/{way}/recall@1"])
        assert found.figures[f"matryoshka/8/{way}/recall@1"] < whole
    accuracy = ZeroShot(classes=classes)(Encode(encoder), pairs).figures["zero_shot/acc@1"]
    assert found.figures["matryoshka/64/acc@1"] == pytest.approx(accuracy)
    # All 30 by 8 of 64 coordinates, again by 32, and by 64: fewer than a first stage keeps of many.
    assert found.figures["matryoshka/funnel/cost"] == pytest.approx((8 + 32 + 64) / 64)
    assert 0 <= found.figures["matryoshka/funnel/agreement"] <= 1
    (curve,) = found.parts
    assert [x for x, _ in curve.series["acc@1"]] == [8, 32, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no task to ask of prefixes"),
        ({"tasks": "geometry"}, "retrieval and zero_shot of prefixes, not geometry"),
        ({"tasks": ("retrieva",)}, "Did you mean retrieval"),
        ({"lengths": (0,)}, "lengths from 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Matryoshka(**options)


def test_a_length_beyond_the_features_is_refused(encoder, pairs):
    with pytest.raises(UserError, match="length 65, and features have 64"):
        Matryoshka(lengths=(65,))(Encode(encoder), pairs)
