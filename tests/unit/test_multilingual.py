import statistics

import pytest
from encoded_support import encoded_set, sample, written

from data_pipelines.encoded import encode_dataset
from eval.evaluators.multilingual import Multilingual
from eval.features import Encode
from vlp.encode import encode_texts
from vlp.errors import UserError

WORDS = {"en": ("red", "green", "blue", "red"), "de": ("rot", "grün", "blau", "rot")}


def said(row):
    return {language: f"{words[row % 4]} {row // 4}" for language, words in WORDS.items()}


@pytest.fixture
def encoded(encoder, tmp_path):
    """12 pictures, captions of two languages; two of four pictures share theirs. One has none."""
    samples = [sample(i, f"caption {i}", captions=said(i)) for i in range(12)]
    samples.append(sample(12, "only English", captions={"en": "a thing"}))
    return encode_dataset(encoder, written(tmp_path / "shards", samples))


def naive_rank(row, own):
    order = sorted(range(len(row)), key=lambda i: (-row[i], i in own))
    return 1 + min(order.index(item) for item in own)


def test_ranks_over_languages_equal_a_naive_loop(encoder, encoded, capsys):
    result = Multilingual()(Encode(encoder), encoded)
    found = result.figures
    assert found["multilingual/images"] == 12
    assert "left out 1 samples without all 2 languages" in capsys.readouterr().out
    ranks = {"image_to_text": [], "text_to_image": []}
    for language in ("de", "en"):
        captions = [said(row)[language] for row in range(12)]
        distinct = list(dict.fromkeys(captions))
        similarity = encoded.image[:12] @ encode_texts(encoder, distinct).T
        own = [{distinct.index(caption)} for caption in captions]
        by_image = [naive_rank(*of) for of in zip(similarity.tolist(), own, strict=True)]
        ranks["image_to_text"].append(by_image)
        images = [{i for i in range(12) if captions[i] == caption} for caption in captions]
        by_text = [similarity.T.tolist()[distinct.index(caption)] for caption in captions]
        ranks["text_to_image"].append([naive_rank(*of) for of in zip(by_text, images, strict=True)])
    for way, of in ranks.items():
        recalls = [sum(rank == 1 for rank in row) / 12 for row in of]
        for language, recall in zip(("de", "en"), recalls, strict=True):
            assert found[f"multilingual/{way}/{language}/recall@1"] == pytest.approx(recall)
        columns = list(zip(*of, strict=True))
        variance = statistics.mean(statistics.pvariance(column) for column in columns)
        deviation = statistics.mean(statistics.pstdev(column) for column in columns)
        assert found[f"multilingual/{way}/mean_rank_variance"] == pytest.approx(variance)
        assert found[f"multilingual/{way}/mean_rank_deviation"] == pytest.approx(deviation)
        assert found[f"multilingual/{way}/recall@1"] == pytest.approx(statistics.mean(recalls))
        assert found[f"multilingual/{way}/recall@1_least"] == pytest.approx(min(recalls))
    per_image = result.per_image["multilingual/text_to_image/recall@1"]
    assert per_image.weights.tolist() == [1] * 12 + [0]


def test_one_language_twice_has_no_variance(encoder, encoded):
    for row in range(12):
        encoded.samples[row].metadata["captions"]["de"] = said(row)["en"]
    found = Multilingual()(Encode(encoder), encoded).figures
    assert found["multilingual/text_to_image/mean_rank_variance"] == 0
    assert found["multilingual/text_to_image/recall@1_deviation"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "texts"}, "fewer than two languages in the field 'texts'.*: none"),
        ({"languages": ("en", "fr")}, "no caption in 'fr'.*: en 13, de 12"),
        ({"languages": ("en",)}, "fewer than two languages"),
    ],
)
def test_captions_that_are_missing_are_named(encoder, encoded, options, message):
    with pytest.raises(UserError, match=message):
        Multilingual(**options).check(encoded.dataset)


def test_languages_that_no_sample_has_together_are_refused(encoder):
    samples = [sample(0, captions={"en": "a"}), sample(1, captions={"de": "b"})]
    image = encode_texts(encoder, ["a", "b"])
    with pytest.raises(UserError, match="No sample has a caption in all of de, en"):
        Multilingual()(Encode(encoder), encoded_set(samples, image))
