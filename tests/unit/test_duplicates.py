"""Duplicates over the whole set: exact, as PDQ hashes them, as a model sees them."""

import io
import itertools

import numpy as np
import pytest
from curation_support import (
    candidates,
    columns,
    kept,
    sample,
    scored,
    stored_features,
    unit_rows,
)
from PIL import Image

from data_pipelines.curation import duplicates
from data_pipelines.curation.duplicates import best_of, components, groups, is_first
from data_pipelines.drawing import jpeg
from data_pipelines.filters import semantic_duplicate
from data_pipelines.filters.pdq_duplicate import FORM, PdqDuplicate
from data_pipelines.filters.semantic_duplicate import SemanticDuplicate
from data_pipelines.toy import draw_training
from vlp.errors import UserError
from vlp.image import decode


def described(*rows):
    """Return scores of PDQ: of each row the bits that are set, the quality, pixels, colours."""
    found = []
    for bits, quality, pixels, *colours in rows:
        row, mask = np.zeros((), FORM), np.zeros(256, np.uint8)
        mask[list(bits)] = 1
        row["hash"], row["quality"], row["pixels"] = np.packbits(mask), quality, pixels
        row["colours"] = colours[0] if colours else 0
        found.append(row.tobytes())
    return found


@pytest.mark.parametrize("partition", [1 << 24, 5])
def test_the_first_of_equals_stays_however_the_values_are_parted(monkeypatch, partition):
    monkeypatch.setattr(duplicates, "PARTITION", partition)
    rng = np.random.default_rng(0)
    values = [bytes([int(v)]) * 16 for v in rng.integers(0, 12, 40)]
    left = (rng.random(40) < 0.8).tolist()
    cuts = [0, 7, 7, 25, 40]
    shards = [values[a:b] for a, b in itertools.pairwise(cuts)]
    masks = [left[a:b] for a, b in itertools.pairwise(cuts)]
    seen, expected = set(), []
    for value, is_left in zip(values, left, strict=True):
        expected.append(is_left and value not in seen)
        seen |= {value} if is_left else set()
    found = is_first(columns(*shards, left=masks))
    assert [bool(own) for mask in found for own in mask] == expected


@pytest.mark.parametrize("seed", range(5))
def test_components_are_what_a_search_finds(seed):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 30, (int(rng.integers(0, 40)), 2))
    found = components(30, np.array_split(pairs, 3))
    expected = list(range(30))
    for _ in range(30):
        for one, other in pairs.tolist():
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert found.tolist() == expected


def test_groups_are_the_components_that_have_several_items():
    found = [group.tolist() for group in groups(np.array([0, 1, 0, 3, 1, 0]))]
    assert found == [[0, 2, 5], [1, 4]]
    assert list(groups(np.zeros(0, np.int64))) == []


def test_the_best_of_a_component_is_the_first_of_the_highest_rank():
    assert best_of(np.array([0, 0, 2, 0, 2]), np.array([1, 3, 2, 3, 2])).tolist() == [1, 2]
    assert best_of(np.zeros(0, np.int64), np.zeros(0, np.uint32)).tolist() == []


def test_what_is_within_31_bits_of_a_larger_picture_that_stays_goes():
    rows = described(
        (range(0), 100, 10),
        (range(31), 100, 30),  # 31 bits from the first
        (range(62), 100, 20),  # 31 from the second, 62 from the first
        (range(93), 100, 15),  # 31 from the third, which goes
        (range(125), 100, 5),  # 32 from the fourth
        (range(125), 100, 5),
    )
    expected = [[False, True], [False, True, True, False]]
    assert kept(PdqDuplicate(), rows[:2], rows[2:]) == expected
    assert kept(PdqDuplicate(radius=30), rows) == [[True] * 5 + [False]]
    left = [[True, False, True, True, True, True]]
    assert kept(PdqDuplicate(), rows, left=left) == [[True, False, True, False, True, False]]


@pytest.mark.parametrize("seed", range(3))
def test_perceptual_duplicates_agree_with_naive_loops(seed):
    rng = np.random.default_rng(seed)
    hashes = [rng.random(256) < 0.5 for _ in range(4)]
    colours = rng.integers(0, 256, (3, 192))
    rows = []
    for _ in range(60):
        bits = np.flatnonzero(hashes[rng.integers(4)] ^ (rng.random(256) < 0.06))
        own = np.clip(colours[rng.integers(3)] + rng.integers(-40, 41, 192), 0, 255)
        rows.append((bits.tolist(), 100, int(rng.integers(1, 9)), own))
    stays = []
    for n in sorted(range(60), key=lambda n: (-rows[n][2], n)):
        if not any(
            len(set(rows[n][0]) ^ set(rows[other][0])) <= 24
            and np.corrcoef(rows[n][3], rows[other][3])[0, 1] >= 0.9
            for other in stays
        ):
            stays.append(n)
    assert 6 < len(stays) < 50
    scores = described(*rows)
    masks = kept(PdqDuplicate(radius=24, colour=0.9), scores[:7], [], scores[7:])
    assert [n for n, own in enumerate(itertools.chain(*masks)) if own] == sorted(stays)


def test_pictures_that_differ_in_colour_alone_are_no_duplicates():
    coarse = np.random.default_rng(0).integers(0, 180, (9, 9, 1)).astype(np.float32)

    def tinted(*colour, lighter=0):
        pixels = (coarse * np.array(colour) + lighter).astype(np.uint8)
        return jpeg(Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC))

    pictures = [tinted(1, 0.3, 0.3), tinted(0.3, 1, 0.3), tinted(1, 0.3, 0.3, lighter=40)]
    values = scored(PdqDuplicate(), *(sample(str(n), image=i) for n, i in enumerate(pictures)))
    assert kept(PdqDuplicate(colour=-1), values) == [[True, False, False]]
    assert kept(PdqDuplicate(), values) == [[True, True, False]]


def test_flat_pictures_are_not_compared():
    rows = described((range(3), 0, 9), (range(3), 49, 9), (range(3), 50, 9), (range(3), 50, 9))
    assert kept(PdqDuplicate(), rows) == [[True, True, True, False]]
    assert kept(PdqDuplicate(quality=0), rows) == [[True, False, False, False]]


def test_a_photograph_is_found_again_smaller_and_compressed():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(4):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3)).astype(np.uint8))
        images.append(coarse.resize((320, 240), Image.Resampling.BICUBIC))
    images.append(images[1].resize((160, 120)))
    samples = []
    for n, image in enumerate(images):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=95 - 15 * n)
        samples.append(sample(str(n), image=data.getvalue()))
    part = PdqDuplicate()
    assert kept(part, scored(part, *samples[::-1])) == [[False, True, True, True, True]]
    assert kept(part, scored(part, *samples)) == [[True, True, True, True, False]]


def naive_repeats(rows, clip, epsilon):
    """Return which rows have a cosine above 1 - epsilon to one before them, in loops."""
    order = sorted(range(len(rows)), key=lambda n: (-clip[n], n))
    return {
        n
        for place, n in enumerate(order)
        if any(float(rows[n] @ rows[before]) > 1 - epsilon for before in order[:place])
    }


@pytest.fixture
def near(tmp_path):
    """Features of which many are near each other, and scores of samples that they are of."""
    rows = np.repeat(unit_rows(20), 4, axis=0) + 0.15 * unit_rows(80, seed=1)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    features = stored_features(tmp_path / "features", rows)
    samples = [sample(str(n), image=b"x") for n in range(80)]
    scores = SemanticDuplicate(features=features, share=0.5).score(candidates(samples))
    halved = np.stack([np.frombuffer(score[4:], "<f2").astype(np.float32) for score in scores])
    halved /= np.linalg.norm(halved, axis=1, keepdims=True)
    clip = [float(np.frombuffer(score[:4], "<f4")[0]) for score in scores]
    np.testing.assert_allclose(clip, (rows * rows[:, ::-1]).sum(1), atol=1e-6)
    return features, scores, halved, clip


@pytest.mark.parametrize("tile", [2048, 7])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.03, 0.2])
def test_semantic_duplicates_agree_with_naive_loops(near, monkeypatch, epsilon, tile):
    monkeypatch.setattr(semantic_duplicate, "TILE", tile)
    features, scores, rows, clip = near
    part = SemanticDuplicate(features=features, epsilon=epsilon)
    masks = kept(part, scores[:33], [], scores[33:])
    expected = naive_repeats(rows, clip, epsilon)
    assert {n for n, own in enumerate(itertools.chain(*masks)) if not own} == expected


def test_a_larger_epsilon_drops_more_and_a_share_is_met_exactly(near):
    features, scores, _, _ = near
    counts = []
    for epsilon in (0.001, 0.01, 0.1, 0.5):  # SemDeDup's README has it the other way round
        (mask,) = kept(SemanticDuplicate(features=features, epsilon=epsilon), scores)
        counts.append(sum(mask))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    for percent in range(20, 101, 20):
        (mask,) = kept(SemanticDuplicate(features=features, share=percent / 100), scores)
        assert sum(mask) == 80 * percent // 100


def test_clusters_never_find_more_than_comparing_all_and_nearly_as_much(near):
    features, scores, _, _ = near
    (whole,) = kept(SemanticDuplicate(features=features, epsilon=0.1), scores)
    (parted,) = kept(SemanticDuplicate(features=features, epsilon=0.1, clusters=5), scores)
    assert all(own <= other for own, other in zip(whole, parted, strict=True))
    assert sum(parted) - sum(whole) <= 8
    again = kept(SemanticDuplicate(features=features, epsilon=0.1, clusters=5), scores)
    assert again == [parted]


def test_what_is_equal_is_dropped_but_for_the_highest_clip_score(tmp_path):
    rows = np.repeat(unit_rows(1), 3, axis=0)
    text = np.stack([rows[0], rows[0], -rows[0]])
    features = stored_features(tmp_path / "features", rows)
    np.save(tmp_path / "features" / "text_emb" / "text_emb_0.npy", text[[2, 0, 1]])
    part = SemanticDuplicate(features=features, epsilon=0.01)
    scores = part.score(candidates(sample(str(n), image=b"x") for n in range(3)))
    assert kept(part, scores) == [[False, True, False]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "m"}, "either share=0.5"),
        ({"model": "m", "share": 0.5, "epsilon": 0.1}, "either share=0.5"),
        ({"epsilon": 0.1}, "either model='run/' or features"),
        ({"model": "m", "share": 0.0}, "share=0.0 is no share"),
        ({"model": "m", "epsilon": 2.0}, "epsilon=2.0 is out of range"),
    ],
)
def test_semantic_duplicate_says_what_it_needs(options, message):
    with pytest.raises(UserError, match=message):
        SemanticDuplicate(**options)


def test_toy_pictures_that_are_compressed_again_are_found_and_no_others():
    samples = list(draw_training(40, seed=1, shares={}))
    for n in range(0, 40, 2):
        again = jpeg(decode(samples[n].image), quality=60)
        samples.append(sample(f"again{n}", image=again))
    part = PdqDuplicate(quality=0)
    (mask,) = kept(part, scored(part, *samples))
    assert mask == [True] * 40 + [False] * 20
