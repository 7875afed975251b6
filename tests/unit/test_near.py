"""Filters that look for what is nearly the same: captions, and pictures of evaluation sets."""

import io
import random

import numpy as np
import pytest
from curation_support import kept
from PIL import Image
from tests_support import picture

from data_pipelines.curation import evaluation_sets
from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import read_rules
from data_pipelines.filters import caption_near_duplicate
from data_pipelines.filters.caption_near_duplicate import CaptionNearDuplicate, minhash
from data_pipelines.filters.evaluation_caption import EvaluationCaption
from data_pipelines.filters.evaluation_image import EvaluationImage, nearest_bits
from data_pipelines.shards import write_shards
from vlp.errors import UserError
from vlp.sample import Sample

LONG = "two brown dogs are running over a green field in summer"


def candidate(text="k", image=b"x", key="k"):
    return Candidate.of(Sample(key, image, text, {}))


def runs(text, length=5):
    text = " ".join(text.lower().split())
    return {text[n : n + length] for n in range(max(1, len(text) - length + 1))}


def jaccard(one, other):
    one, other = runs(one), runs(other)
    return len(one & other) / len(one | other)


def templates(count, seed=0):
    """Captions of a few templates, and of one that nothing is like."""
    rng = random.Random(seed)
    words = [
        "blue",
        "red",
        "tall",
        "green",
        "small",
        "bright",
        "narrow",
        "ancient",
        "wooden",
        "silver",
    ]
    nouns = ["house", "mountain", "bicycle", "elephant", "keyboard", "umbrella"]
    captions = []
    for n in range(count):
        noun, word = rng.choice(nouns), rng.choice(words)
        captions.append(
            rng.choice(
                [f"stock photo of a {noun} number {n}", f"the {word} {noun} by the {word} sea"]
            )
        )
    return captions


def test_the_share_of_equal_hashes_is_the_jaccard_similarity():
    captions = templates(40)
    hashes = [minhash(caption.lower(), 5) for caption in captions]
    errors = [
        (hashes[i] == hashes[j]).mean() - jaccard(captions[i], captions[j])
        for i in range(40)
        for j in range(i)
    ]
    assert abs(np.mean(errors)) < 0.01
    # A mean of 128 draws has a deviation of at most 0.044.
    assert np.std(errors) < 0.044


@pytest.mark.parametrize("cut", [60, 25])
def test_one_of_captions_that_hang_together_by_similarity_stays(cut):
    captions = templates(60)
    part = CaptionNearDuplicate()
    scores = part.score([candidate(caption) for caption in captions])
    hashes = np.stack([np.frombuffer(score, "<u4") for score in scores])
    expected, seen = [], []
    for n in range(60):  # naive: what an earlier caption reaches by steps of 0.7 goes
        reached, new = set(), {n}
        while new:
            reached |= new
            new = {
                j
                for i in new
                for j in range(60)
                if j not in reached and (hashes[i] == hashes[j]).mean() >= 0.7
            }
        expected.append(min(reached) == n)
        seen.append(len(reached))
    assert max(seen) > 3
    assert 3 < sum(expected) < 50
    masks = kept(part, scores[:cut], scores[cut:])
    assert [row for mask in masks for row in mask] == expected


def test_a_template_filled_in_many_times_costs_no_square(monkeypatch):
    monkeypatch.setattr(caption_near_duplicate, "WHOLE", 8)
    captions = [
        f"this is the very same long template, filled in with number {n}" for n in range(99)
    ]
    part = CaptionNearDuplicate()
    (mask,) = kept(part, part.score([candidate(caption) for caption in captions]))
    assert mask == [True] + [False] * 98


def test_similarity_decides_and_left_rows_alone_are_compared():
    captions = [LONG, LONG + " again", "something else altogether"]
    part = CaptionNearDuplicate()
    scores = part.score([candidate(caption) for caption in captions])
    assert kept(part, scores) == [[True, False, True]]
    assert kept(CaptionNearDuplicate(similarity=1.0), scores) == [[True, True, True]]
    assert kept(part, scores, left=[[False, True, True]]) == [[False, True, True]]
    assert kept(part, scores, left=[[False] * 3]) == [[False] * 3]


@pytest.fixture
def evaluation(tmp_path):
    """Shards of 12 pictures with a long caption each, one flat, one broken."""
    flat, broken = io.BytesIO(), b"broken"
    Image.new("RGB", (64, 64), "white").save(flat, "PNG")
    samples = [Sample(str(n), photo(n), f"{LONG}, number {n}\nanother", {}) for n in range(12)]
    samples += [Sample("flat", flat.getvalue(), "cat", {}), Sample("broken", broken, "dog", {})]
    write_shards(samples, tmp_path / "evaluation", samples_per_shard=5)
    return str(tmp_path / "evaluation")


def photo(seed):
    return picture(size=(96, 96), noise=seed)


def again(data, size=60, quality=70):
    """Return a picture made smaller and compressed."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((size, size)).save(smaller, "JPEG", quality=quality)
    return smaller.getvalue()


def test_a_picture_of_the_evaluation_set_falls_though_resized_and_compressed(evaluation):
    pytest.importorskip("pdqhash")
    part = EvaluationImage(against=evaluation)
    part.identity()
    images = [again(photo(n)) for n in range(12)] + [photo(n) for n in range(50, 62)]
    scores = part.score([candidate(image=image) for image in images])
    assert max(scores[:12]) <= 31
    assert min(scores[12:]) > 31
    assert kept(part, scores) == [[False] * 12 + [True] * 12]
    flat = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(flat, "PNG")
    assert part.score([candidate(image=flat.getvalue())]) == [256]


def test_hashes_of_evaluation_pictures_are_made_once(evaluation, monkeypatch):
    pytest.importorskip("pdqhash")
    first = evaluation_sets.picture_hashes(evaluation)
    assert len(first) == 12
    evaluation_sets.picture_hashes.cache_clear()
    monkeypatch.setattr(evaluation_sets, "pdq", None)
    np.testing.assert_array_equal(evaluation_sets.picture_hashes(evaluation), first)


def test_the_nearest_hash_is_found_by_counting_bits():
    rng = np.random.default_rng(0)
    hashes, others = (rng.integers(0, 256, (n, 32)).astype(np.uint8) for n in (20, 300))
    expected = [min(int(np.unpackbits(one ^ other).sum()) for other in others) for one in hashes]
    assert nearest_bits(hashes, others).tolist() == expected
    assert nearest_bits(hashes, others[:0]).tolist() == [256] * 20


def test_a_caption_falls_that_shares_eight_words_in_a_row(evaluation):
    part = EvaluationCaption(against=evaluation)
    captions = [
        "TWO brown  dogs are running over a green lawn",
        "two brown dogs are running over a lawn",
        "cat",
        f"{LONG}, number 3",
        "12 another",
    ]
    scores = part.score([candidate(caption) for caption in captions])
    assert scores == [1, 0, 0, 6, 0]
    assert kept(part, scores) == [[False, True, True, False, True]]
    assert EvaluationCaption(against=evaluation, words=1).score([candidate("a cat")]) == [2]


def test_another_evaluation_set_is_another_identity(evaluation, tmp_path):
    write_shards([Sample("0", photo(0), "a b", {})], tmp_path / "other")
    one, other = (EvaluationCaption(against=s) for s in (evaluation, str(tmp_path / "other")))
    assert one.identity() != other.identity()
    with pytest.raises(UserError, match="nothing_here"):
        EvaluationImage(against=str(tmp_path / "nothing_here")).identity()


def test_the_preset_decontaminate_looks_at_pictures_and_captions(evaluation):
    rules = read_rules([f"decontaminate(against={evaluation!r})"])
    assert [type(rule.parts[0].filter) for rule in rules] == [EvaluationImage, EvaluationCaption]
    with pytest.raises(UserError, match="takes the options against"):
        read_rules(["decontaminate"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionNearDuplicate(similarity=0.3), "similarity=0.3 is out of range"),
        (lambda: CaptionNearDuplicate(characters=0), "characters=0 is no run"),
        (lambda: EvaluationCaption(against="x", words=0), "words=0 is no run"),
    ],
)
def test_wrong_options_get_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
