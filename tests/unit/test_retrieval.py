import pytest
import torch
import torch.nn.functional as F
from encoded_support import encoded_set, sample
from sklearn.metrics import roc_auc_score

from eval.evaluators.geometry import Geometry
from eval.evaluators.retrieval import Retrieval
from eval.features import Encode
from eval.result import mean_of
from vlp.errors import UserError

COUNT, DIM = 40, 16
WAYS = ("image_to_text", "text_to_image")


@pytest.fixture
def encoded():
    """Images near their captions; each caption of the first ten is that of two images."""
    generator = torch.Generator().manual_seed(0)
    owner = [min(i, i % 10) if i < 20 else i for i in range(COUNT)]
    text = F.normalize(torch.randn(COUNT, DIM, generator=generator), dim=1)[owner]
    image = text + 0.5 * torch.randn(COUNT, DIM, generator=generator)
    return encoded_set([sample(i, f"caption {own}") for i, own in enumerate(owner)], image, text)


def test_ranks_and_the_auc_equal_those_of_all_pairs(encoder, encoded):
    found = Retrieval()(Encode(encoder), encoded).figures
    rows = [*range(10), *range(20, COUNT)]  # where each caption is seen first
    similarity = encoded.image @ encoded.text[rows].T  # [images, texts]
    said = [own.text for own in encoded.samples]
    match = torch.tensor([[said[i] == said[row] for row in rows] for i in range(COUNT)])
    assert found["retrieval/auc"] == pytest.approx(
        roc_auc_score(match.flatten(), similarity.flatten()), abs=1e-12
    )
    for way, of, own in ((WAYS[0], similarity, match), (WAYS[1], similarity.T, match.T)):
        ranks = []
        for scores, matches in zip(of.tolist(), own.tolist(), strict=True):
            order = sorted(range(len(scores)), key=lambda i, scores=scores: -scores[i])
            ranks.append(1 + min(order.index(i) for i, is_own in enumerate(matches) if is_own))
        expected = sum(1 / rank for rank in ranks) / len(ranks)
        assert found[f"retrieval/{way}/mrr"] == pytest.approx(expected)
    recalls = [found[f"retrieval/{way}/recall@{k}"] for way in WAYS for k in (1, 5, 10)]
    assert found["retrieval/rsum"] == pytest.approx(100 * sum(recalls))
    assert 100 < found["retrieval/rsum"] < 600


def test_means_over_images_are_the_figures_and_resampling_all_gives_the_rest(encoder, encoded):
    result = Retrieval()(Encode(encoder), encoded)
    again = result.resample(torch.arange(COUNT))
    again |= {name: mean_of(of) for name, of in result.per_image.items()}
    for name, value in again.items():
        assert value == pytest.approx(result.figures[name]), name
    # A caption of two images counts for half in each.
    weights = result.per_image["retrieval/text_to_image/recall@1"].weights
    assert weights.tolist() == [0.5] * 20 + [1] * 20


def test_folds_are_consecutive_and_averaged(encoder, encoded):
    found = Retrieval(k=(1, 5), fold=10)(Encode(encoder), encoded).figures
    folds = []
    for start in range(0, COUNT, 10):
        part = slice(start, start + 10)
        own = encoded_set(encoded.samples[part], encoded.image[part], encoded.text[part])
        folds.append(Retrieval(k=(1, 5))(Encode(encoder), own).figures)
    for way in WAYS:
        for k in (1, 5):
            expected = sum(of[f"retrieval/{way}/recall@{k}"] for of in folds) / 4
            assert found[f"retrieval/fold_10/{way}/recall@{k}"] == pytest.approx(expected)
    assert found["retrieval/text_to_image/recall@1"] < expected  # fewer to look among is easier
    with pytest.raises(UserError, match="40 images, fewer than fold=1000"):
        Retrieval(fold=1000)(Encode(encoder), encoded)
    with pytest.raises(UserError, match="folds of at least 2 images, got fold=1"):
        Retrieval(fold=1)


def test_captions_that_are_all_equal_are_found_by_every_image_and_have_no_auc(encoder):
    image = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    result = Retrieval()(
        Encode(encoder), encoded_set([sample(i, "a thing") for i in range(5)], image)
    )
    assert result.figures["retrieval/image_to_text/recall@1"] == 1
    assert "retrieval/auc" not in result.figures
    assert list(result.parts[0].series) == ["of a match"]


def test_the_report_draws_similarities_and_the_furthest_images(encoder, encoded):
    result = Retrieval()(Encode(encoder), encoded)
    parts = {part.name: part for part in result.parts}
    series = parts["retrieval/similarities"].series
    assert len(series["of a match"]) == COUNT
    others = (encoded.image @ encoded.text[[*range(10), *range(20, COUNT)]].T).flatten()
    assert torch.isclose(series["of other pairs"][:100, None], others, atol=1e-6).any(1).all()
    assert not torch.isclose(series["of other pairs"].max(), series["of a match"].max())
    depth = dict(parts["retrieval/depth"].series["text to image"])
    for k in (1, 5, 10):
        expected = result.figures[f"retrieval/text_to_image/recall@{k}"]
        assert depth[k] == pytest.approx(expected)
    assert depth[COUNT] == 1
    misses = parts["retrieval/misses"]
    hits = result.per_image["retrieval/image_to_text/recall@1"].values
    assert misses.rows
    assert not hits[misses.rows].any()


def test_geometry_looks_at_pairs_evenly_and_says_what_each_modality_is_like(encoder, encoded):
    pooled = torch.randn(COUNT, 24, generator=torch.Generator().manual_seed(1))
    of = encoded_set(
        encoded.samples, encoded.image, encoded.text, image_pooled=pooled, text_pooled=pooled[:, :8]
    )
    result = Geometry()(Encode(encoder), of)
    found = {name.removeprefix("geometry/"): value for name, value in result.figures.items()}
    cosine = (of.image * of.text).sum(1)
    assert found["alignment"] == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-5)
    assert found["pairs"] == COUNT
    assert 1 < found["image/rank_me_pooled"] <= 24.01
    assert 1 < found["text/rank_me_pooled"] <= 8.01
    assert found["scale"] == pytest.approx(encoder.logit_scale.exp().item())
    for name, per_image in result.per_image.items():
        assert mean_of(per_image) == pytest.approx(result.figures[name])
    some = Geometry(at_most=14)(Encode(encoder), of).figures
    assert some["geometry/pairs"] == 14
    rows = [round(i * 39 / 13) for i in range(14)]
    assert some["geometry/alignment"] == pytest.approx(
        (2 - 2 * cosine)[rows].mean().item(), rel=1e-5
    )
    parts = {part.name: part for part in result.parts}
    assert parts["geometry/map"].series["images"].shape == (COUNT, 2)


def test_geometry_without_pairs_is_refused(encoder):
    with pytest.raises(UserError, match="compares pairs, and 1 samples have a caption"):
        Geometry()(
            Encode(encoder), encoded_set([sample(0, "a"), sample(1, "")], torch.randn(2, DIM))
        )
    with pytest.raises(UserError, match="at_most from 2"):
        Geometry(at_most=1)
