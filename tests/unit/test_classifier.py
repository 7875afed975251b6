import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from vlp.checkpoint import load_encoder, save_encoder
from vlp.classifier import build_classifier, classify, fill, probabilities
from vlp.encode import encode_texts
from vlp.errors import UserError

NAMES = ["red circle", "blue square", "a {curly} name", "star"]
TEMPLATES = ["{}", "a photo of a {}.", "the {c} and another {c}"]


@pytest.fixture
def own_encoder(model):
    """Another copy of the tiny encoder, to set its scale and bias."""
    return load_encoder(model)


@pytest.fixture
def picture(tmp_path):
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).ellipse((5, 5, 35, 35), fill="red")
    image.save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_the_classifier_equals_the_definition_and_open_clips(encoder, model):
    weights = build_classifier(encoder, NAMES, TEMPLATES)
    for name, row in zip(NAMES, weights, strict=True):
        captions = [template.replace("{c}", "{}").replace("{}", name) for template in TEMPLATES]
        mean = encode_texts(encoder, captions).mean(0)
        torch.testing.assert_close(row, F.normalize(mean, dim=-1), atol=1e-6, rtol=0)
    theirs = open_clip.build_zero_shot_classifier(
        open_clip.create_model(f"local-dir:{model}").eval(),
        open_clip.get_tokenizer(f"local-dir:{model}"),
        NAMES,
        [
            template.replace("{c}", "{0}") if "{c}" in template else template
            for template in TEMPLATES
        ],
    )
    torch.testing.assert_close(weights, theirs.T, atol=1e-6, rtol=0)


def test_a_template_takes_the_name_in_either_form_and_keeps_other_braces():
    assert fill("a {} or {c} in {x}", "cat {}") == "a cat {} or cat {} in {x}"


def test_a_softmax_model_shares_one_probability_and_a_sigmoid_model_does_not(own_encoder):
    torch.manual_seed(1)
    features = F.normalize(torch.randn(3, own_encoder.dim), dim=-1)
    weights = F.normalize(torch.randn(4, own_encoder.dim), dim=-1)
    cosines = features @ weights.T
    own_encoder.set_logits(10.0, None)
    shared = probabilities(own_encoder, features, weights)
    torch.testing.assert_close(shared, (10 * cosines).softmax(-1))
    torch.testing.assert_close(shared.sum(-1), torch.ones(3))
    own_encoder.set_logits(10.0, -3.0)
    own = probabilities(own_encoder, features, weights)
    torch.testing.assert_close(own, 1 / (1 + (3 - 10 * cosines).exp()))


def test_classify_names_the_likeliest_class_first(model, picture, capsys):
    found = classify(str(model), picture, classes=("cat", "dog", "owl"), templates=("a {}", "{}"))
    assert {row["class"] for row in found} == {"cat", "dog", "owl"}
    assert [row["cosine"] for row in found] == sorted((r["cosine"] for r in found), reverse=True)
    assert sum(row["probability"] for row in found) == pytest.approx(1)
    said = capsys.readouterr().out
    assert "3 classes share one probability (softmax model)" in said
    assert said.index(found[0]["class"]) < said.index(found[2]["class"])


def test_a_sigmoid_model_says_that_each_probability_is_its_own(
    own_encoder, tmp_path, picture, capsys
):
    own_encoder.set_logits(10.0, -10.0)
    save_encoder(own_encoder, tmp_path)
    found = classify(str(tmp_path), picture, classes=("cat", "dog"), templates=("{}",))
    expected = [torch.tensor(10 * row["cosine"] - 10).sigmoid().item() for row in found]
    assert [row["probability"] for row in found] == pytest.approx(expected)
    assert "a probability of its own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ((), ("{}",), "There are no classes"),
        (("cat", " "), ("{}",), "Class 2 of 2 is ' '"),
        (("cat", "dog", "cat"), ("{}",), "'cat' stands twice"),
        (("cat",), ("a photo",), "'a photo' has no place for the class name"),
        (("cat",), (), "There is no template"),
    ],
)
def test_wrong_names_and_templates_say_what_to_write(model, picture, classes, templates, message):
    with pytest.raises(UserError, match=message):
        classify(str(model), picture, classes=classes, templates=templates)


def test_an_image_that_cannot_be_read_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"Cannot read .*notes\.jpg"):
        classify("no model", str(tmp_path / "notes.jpg"), classes=("cat",), templates=("{}",))
