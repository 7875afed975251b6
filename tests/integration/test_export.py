"""Models for open_clip, transformers and ONNX: what others load gives the same features."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchvision.transforms.functional import center_crop
from training_support import VIT
from transformers import AutoModel, PreTrainedTokenizerFast
from transformers.image_transforms import center_crop as np_center_crop

from vlp import cli
from vlp.checkpoint import load_encoder, save_encoder
from vlp.encode import encode_images, encode_texts
from vlp.encoder import create_encoder
from vlp.errors import UserError
from vlp.exports import parity, transformers_folder
from vlp.exports.transformers_folder import _is_cropped_alike
from vlp.image import open_image

CAPTIONS = ["a red circle", "two dogs, on a mat", "x"]
ALONE = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
assert "vlp" not in sys.modules and "open_clip" not in sys.modules
folder, picture, *captions = sys.argv[1:]
model = AutoModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder, backend="pil")
length = model.config.text_config.max_position_embeddings
inputs = processor(images=Image.open(picture), return_tensors="pt")
texts = processor(
    text=captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
)
with torch.no_grad():
    found = model(pixel_values=inputs["pixel_values"], input_ids=texts["input_ids"])
print(json.dumps([found.image_embeds.tolist(), found.text_embeds.tolist()]))
"""


def words_tokenizer(folder):
    """Write a tokenizer of words in Hugging Face's form, with SigLIP's padding and end."""
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *["a", "red", "circle", "two", "dogs", "on", "mat", "x", "photo", "of", "dog"],
    ]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return a small CLIP, its text tower as wide as CLIP's ids need, all weights at random."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_encoder(create_encoder({"model_cfg": VIT}), folder)
    return folder


def export(model, out, to, *words):
    return cli.run(["export", str(model), str(out), "--to", to, "--quiet", *words])


@pytest.fixture
def picture(tmp_path):
    draws = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    path = tmp_path / "picture.jpg"
    Image.fromarray(draws).resize((71, 90), Image.Resampling.BICUBIC).save(path)
    return path


def test_transformers_alone_gives_the_features_of_the_encoder(clip, picture, tmp_path):
    told = export(clip, tmp_path / "out", "transformers")
    assert told["largest_difference"] < 1e-5
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "out"), str(picture), *CAPTIONS],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    image, text = (torch.tensor(rows) for rows in json.loads(done.stdout))
    encoder = load_encoder(clip)
    torch.testing.assert_close(text, encode_texts(encoder, CAPTIONS), atol=1e-5, rtol=0)
    expected = encode_images(encoder, [open_image(str(picture))])
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(71, 90), (97, 41), (41, 97), (50, 51), (300, 201), (32, 32)])
def test_crops_that_differ_between_transformers_and_torchvision_are_known(size):
    rest = int(32 * max(size) / min(size)) - 32
    numbered = torch.arange(32 + rest).expand(1, 1, 32, -1)  # a row of a picture, each column named
    ours = center_crop(numbered, [32, 32])[0, 0, 0, 0].item()
    theirs = np_center_crop(numbered[0].numpy(), (32, 32))[0, 0, 0]
    assert _is_cropped_alike(size, 32) == (ours == theirs)


def test_a_processor_of_other_options_is_refused(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(transformers_folder.RESAMPLE, "bicubic", 2)  # bilinear
    with pytest.raises(UserError, match="processor's pictures differ from the encoder's"):
        export(clip, tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"pool_type": "avg"}}, "pool_type='avg' of the image tower"),
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask=True of the text tower"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1]}}, "an image tower of ResNet's kind"),
    ],
)
def test_what_transformers_has_no_place_for_is_named_and_nothing_written(change, message, tmp_path):
    model = {**VIT, **{name: VIT.get(name, {}) | part for name, part in change.items()}}
    (tmp_path / "model").mkdir()
    save_encoder(create_encoder({"model_cfg": model}), tmp_path / "model")
    with pytest.raises(UserError, match=message):
        export(tmp_path / "model", tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
def test_features_that_differ_are_refused_and_nothing_is_written(to, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "BOUND", 1e-12)
    with pytest.raises(UserError, match="features differ from the encoder's by"):
        export(clip, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.extra
def test_onnxruntime_gives_the_features_of_the_encoder_for_any_batch(clip, picture, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export(clip, tmp_path / "out", "onnx")["largest_difference"] < 1e-5
    encoder = load_encoder(clip)
    pixels = encoder.transform(Image.open(picture))[None].numpy()
    for kind, name, rows, expected in (
        ("image", "pixels", pixels, encode_images(encoder, [Image.open(picture)])),
        ("text", "tokens", encoder.tokenizer(CAPTIONS).numpy(), encode_texts(encoder, CAPTIONS)),
    ):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{kind}.onnx")
        for count in (1, 3, 40):
            found = session.run(["features"], {name: np.resize(rows, (count, *rows.shape[1:]))})[0]
            wanted = expected[torch.arange(count) % len(expected)]
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    about = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert about["logits"]["scale"] == pytest.approx(encoder.logit_scale.exp().item())


@pytest.mark.slow
def test_a_siglip_is_transformers_siglip_down_to_how_it_reads_captions(tmp_path, capsys):
    text = {
        **{"context_length": 16, "vocab_size": 64, "width": 768, "heads": 12, "layers": 2},
        **{"hf_tokenizer_name": words_tokenizer(tmp_path / "words")},
        **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        **{"norm_kwargs": {"eps": 1e-6}, "tokenizer_kwargs": {"clean": "canonicalize"}},
    }
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": 64}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    model = {"embed_dim": 768, "vision_cfg": vision, "text_cfg": text, "init_logit_bias": -10.0}
    picture = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    torch.manual_seed(0)
    encoder = create_encoder({"model_cfg": model, "preprocess_cfg": picture}).eval()
    for parameter in encoder.parameters():  # many begin at 0, where nothing could differ
        parameter.data += 0.02 * torch.randn_like(parameter)
    (tmp_path / "model").mkdir()
    save_encoder(encoder, tmp_path / "model")
    told = cli.run(
        ["export", *map(str, (tmp_path / "model", tmp_path / "out")), "--to=transformers"]
    )
    assert told["largest_difference"] < 1e-5
    assert "otherwise" not in capsys.readouterr().err
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.logit_bias.item() == pytest.approx(encoder.logit_bias.item())
