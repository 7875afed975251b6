"""An encoder is open_clip's, both ways, and every kind of wrong weights says so."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from vlp.checkpoint import encoder_hash, load_encoder, load_weights, save_encoder
from vlp.encoder import create_encoder, read_config
from vlp.errors import UserError

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}


def wild_picture(seed: int = 0, size: tuple[int, int] = (70, 50)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_plain_open_clip_loads_our_checkpoint_and_gives_the_same_features(model, encoder):
    peer, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    peer.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model}")
    texts = ["a red circle", "two squares, one above the other " * 4]
    ours = encoder(encoder.transform(wild_picture())[None], encoder.tokenizer(texts))
    with torch.no_grad():
        image = peer.encode_image(preprocess(wild_picture())[None], normalize=True)
        text = peer.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(ours.image, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.text, text, atol=1e-5, rtol=0)
    assert peer.logit_scale.exp().item() == pytest.approx(ours.scale.item())


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_preprocessing_is_saved_and_equals_open_clips(mode, tmp_path):
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": mode}
    preprocess["interpolation"] = "bilinear"
    encoder = create_encoder({"model_cfg": VIT, "preprocess_cfg": preprocess}).eval()
    save_encoder(encoder, tmp_path)
    peer = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = load_encoder(tmp_path).transform(wild_picture(1))
    normalised = (pixels / 255 - 0.5) / 0.25
    torch.testing.assert_close(normalised, peer[2](wild_picture(1)), atol=1e-5, rtol=0)


def test_an_open_clip_pt_loads_and_a_pickle_that_runs_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    peer = open_clip.CustomTextCLIP(**VIT).eval()
    torch.save({"state_dict": peer.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    encoder = create_encoder({"model_cfg": VIT}, weights=tmp_path / "w.pt").eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (peer_mean(), peer_std()))
    with torch.no_grad():
        wanted = peer.encode_image((x / 255 - mean) / std, normalize=True)
        torch.testing.assert_close(encoder(x).image, wanted, atol=1e-5, rtol=0)
    torch.save({"state_dict": Dangerous()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="Cannot read the weights"):
        create_encoder({"model_cfg": VIT}, weights=tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


class Dangerous:
    def __reduce__(self):
        return (open, ("ran", "w"))


def peer_mean():
    return open_clip.OPENAI_DATASET_MEAN


def peer_std():
    return open_clip.OPENAI_DATASET_STD


def test_weights_of_another_architecture_are_named_in_one_line(tmp_path, model):
    with pytest.raises(UserError, match="are of another architecture") as caught:
        create_encoder({"model_cfg": VIT}, weights=model / "open_clip_model.safetensors")
    assert "\n" not in str(caught.value)


def test_position_embeddings_are_resized_to_another_resolution_and_context(tmp_path):
    small = create_encoder({"model_cfg": VIT}).eval()
    save_encoder(small, tmp_path)
    large = create_encoder(
        read_config(str(tmp_path)),
        weights=tmp_path / "open_clip_model.safetensors",
        image_size=48,
        context_length=24,
    ).eval()
    assert large.image_size == (48, 48)
    assert large.tokenizer.length == 24
    assert large.visual.positional_embedding.shape[0] == 37
    assert large(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).image.shape == (1, 32)
    kept = large.text.positional_embedding[:1], small.text.positional_embedding[:1]
    torch.testing.assert_close(*kept)
    save_encoder(large, tmp_path)
    assert load_encoder(tmp_path).image_size == (48, 48)


def test_each_tower_may_start_from_weights_of_its_own(tmp_path):
    torch.manual_seed(2)
    one, two = (create_encoder({"model_cfg": VIT}) for _ in range(2))
    for name, encoder in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        save_encoder(encoder, tmp_path / name)
    mixed = create_encoder(
        {"model_cfg": VIT},
        image_weights=str(tmp_path / "one" / "open_clip_model.safetensors"),
        text_weights=str(tmp_path / "two" / "open_clip_model.safetensors"),
    )
    assert torch.equal(mixed.visual.conv1.weight, one.visual.conv1.weight)
    assert torch.equal(mixed.text.token_embedding.weight, two.text.token_embedding.weight)


def test_a_timm_tower_takes_the_weights_of_a_timm_model(tmp_path):
    import timm

    torch.manual_seed(3)
    trunk = timm.create_model("test_resnet", num_classes=10)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pt")
    vision = {"timm_model_name": "test_resnet", "image_size": 64, "timm_proj": "linear"}
    encoder = create_encoder(
        {"model_cfg": {**VIT, "vision_cfg": vision}}, image_weights=str(tmp_path / "trunk.pt")
    )
    assert torch.equal(encoder.visual.trunk.conv1[0].weight, trunk.conv1[0].weight)
    assert encoder.image_size == (64, 64)
    with pytest.raises(UserError, match="another architecture"):
        create_encoder({"model_cfg": VIT}, image_weights=str(tmp_path / "trunk.pt"))


@pytest.mark.parametrize("way", ["both", "tower"])
def test_position_embeddings_of_a_timm_tower_are_resized(way, tmp_path):
    vision = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": ""}
    config = {"model_cfg": {**VIT, "vision_cfg": vision}}
    save_encoder(create_encoder(config), tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    options = {"weights": weights} if way == "both" else {"image_weights": str(weights)}
    large = create_encoder(config, image_size=224, **options).eval()
    assert large(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).image.shape == (1, 32)
    save_encoder(large, tmp_path)
    assert load_encoder(tmp_path).image_size == (224, 224)


def test_a_hub_model_brings_its_own_preprocessing(monkeypatch):
    mine = {"model_cfg": VIT, "preprocess_cfg": {"mean": [0.5] * 3, "resize_mode": "squash"}}
    monkeypatch.setattr("vlp.encoder._get_hf_config", lambda repository: mine)
    encoder = create_encoder(read_config("hf-hub:someone/something"))
    assert encoder.config["preprocess_cfg"]["mean"] == [0.5] * 3
    assert encoder.config["preprocess_cfg"]["resize_mode"] == "squash"


def test_an_encoder_that_is_loaded_draws_no_random_numbers(tmp_path):
    made = create_encoder(read_config("tiny"))
    save_encoder(made, tmp_path)
    before = torch.get_rng_state()
    loaded = load_encoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder_hash(loaded) == encoder_hash(made)


def test_weights_with_a_bias_load_into_an_encoder_without_and_the_other_way(tmp_path):
    encoder = create_encoder({"model_cfg": VIT})
    encoder.set_logits(10.0, -10.0)
    save_encoder(encoder, tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    assert not create_encoder({"model_cfg": VIT}, weights=weights).is_sigmoid
    assert load_encoder(tmp_path).is_sigmoid


def test_every_tenth_architecture_of_open_clip_is_read_without_a_network():
    for name in open_clip.list_models()[::10]:
        if name.startswith("coca"):
            continue
        config = read_config(name)
        assert {"embed_dim", "vision_cfg", "text_cfg"} <= set(config["model_cfg"])
    with pytest.raises(UserError, match="has a captioning decoder"):
        read_config("coca_ViT-B-32")


def test_an_unknown_architecture_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean ViT-B-32"):
        read_config("ViT-B-33")
    (tmp_path / "odd.json").write_text(json.dumps({"embed_dim": 3}))
    with pytest.raises(UserError, match="has no text_cfg"):
        read_config(str(tmp_path / "odd.json"))
    with pytest.raises(UserError, match="no architecture file"):
        read_config(str(tmp_path / "missing.json"))


def test_a_model_that_is_not_there_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="Give a run folder"):
        load_encoder("nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_encoder(tmp_path)


def test_the_hash_changes_with_a_single_weight(encoder, model):
    again = load_encoder(model)
    assert encoder_hash(again) == encoder_hash(encoder)
    again.logit_scale.data += 1e-3
    assert encoder_hash(again) != encoder_hash(encoder)


def test_a_damaged_checkpoint_is_refused_in_one_line(model, tmp_path, encoder):
    (tmp_path / "open_clip_model.safetensors").write_bytes(
        (model / "open_clip_model.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(UserError, match="is damaged"):
        load_weights(encoder, tmp_path)


def test_captions_are_tokenised_as_open_clip_does_and_cuts_are_found(encoder):
    texts = ["", "a dog", "é ñ 漢字 😀 &amp; <b>", "word " * 100, "exactly " * 22, "one more " * 23]
    ids, cut = encoder.tokenizer.with_cuts(texts)
    assert torch.equal(ids, open_clip.SimpleTokenizer(context_length=24)(texts))
    assert cut.tolist() == [False, False, False, True, False, True]
