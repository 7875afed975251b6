"""Rows before the projection, of every kind of tower: projected, they are the tower's features."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import nn
from transformers import BertConfig

from data_pipelines.encoded import encode_shards
from data_pipelines.shards import open_shards
from training.compute.towers import compile_towers
from vlp.encoder import create_encoder
from vlp.projection import encode_with_pooled, find_projection

DIM = 64
TEXT = {"context_length": 8, "width": 32, "heads": 2, "layers": 1}
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "image_size": 64}


def timm(name: str, pool: str, proj: str | None) -> dict:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32}


IMAGE_TOWERS = {
    "vit": (VIT, 32),
    "vit, average": (VIT | {"pool_type": "avg", "final_ln_after_pool": True}, 32),
    "vit, attention pools": (VIT | {"attentional_pool": True, "attn_pooler_heads": 2}, DIM),
    "resnet": (RESNET, 256),
    "timm, linear": (timm("test_vit", "token", "linear"), 64),
    "timm, two layers": (timm("test_resnet", "avg", "mlp"), 96),
    "timm, its classifier": (timm("test_vit", "token", None), 64),
    "timm, attention pools, its classifier": (timm("test_vit", "map", None), 64),
    "timm, classifier of a convolutional tower": (timm("test_resnet", "avg", None), 96),
    "timm, attention projects": (timm("resnet10t", "abs_attn", None), 512),
    "timm, attention with rotations projects": (timm("resnet10t", "rot_attn", None), 512),
    "timm, attention, then linear": (timm("resnet10t", "abs_attn", "linear"), DIM),
}
"""Config and length of the rows before the projection."""


def text_tower(**options) -> nn.Module:
    return TextTransformer(**TEXT, vocab_size=100, output_dim=DIM, **options)


def hugging_face(config, **options) -> nn.Module:
    return HFTextEncoder("", DIM, config=config, pooler_type="mean_pooler", **options)


BERT = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 32}
TEXT_TOWERS = {
    "text": lambda: text_tower(),
    "text, with a bias": lambda: text_tower(proj_bias=True, pool_type="last", no_causal_mask=True),
    "text, class token": lambda: text_tower(embed_cls=True),
    "bert, linear": lambda: hugging_face(BertConfig(**BERT), proj_type="linear"),
    "bert, two layers": lambda: hugging_face(BertConfig(**BERT), proj_type="mlp"),
}


def project(tower: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    projection = find_projection(tower)
    assert projection is not None
    return projection(rows) if isinstance(projection, nn.Module) else rows @ projection


def build(vision: dict) -> nn.Module:
    torch.manual_seed(0)
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT}
    return create_encoder({"model_cfg": config}).eval()


def pictures(vision: dict, count: int = 3) -> torch.Tensor:
    side = vision["image_size"]
    return torch.randint(0, 255, (count, 3, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
def test_projected_rows_of_an_image_tower_are_its_features(kind):
    vision, width = IMAGE_TOWERS[kind]
    encoder, images = build(vision), pictures(vision)
    found = encoder(images, pooled=True)
    assert found.image_pooled.shape == (3, width)
    projected = F.normalize(project(encoder.visual, found.image_pooled), dim=-1)
    torch.testing.assert_close(projected, found.image, atol=1e-6, rtol=0)
    assert torch.equal(found.image, encoder(images).image)  # nothing else changes
    assert encoder(images).image_pooled is None


@pytest.mark.parametrize("kind", TEXT_TOWERS)
def test_projected_rows_of_a_text_tower_are_its_features(kind):
    torch.manual_seed(0)
    tower, tokens = TEXT_TOWERS[kind]().eval(), torch.randint(5, 90, (4, 8))
    features, rows = encode_with_pooled(tower, tower, tokens)
    assert rows.shape == (4, 32)
    torch.testing.assert_close(project(tower, rows), features, atol=1e-6, rtol=0)
    assert torch.equal(features, tower(tokens))


def test_a_tower_without_a_projection_gives_the_same_rows_before_and_after():
    vision = timm("test_vit", "map", "none")
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT | {"width": 64}}
    config["text_cfg"]["proj_type"] = "none"
    encoder = create_encoder({"model_cfg": config}).eval()
    found = encoder(pictures(vision), torch.randint(5, 90, (2, 8)), pooled=True)
    assert find_projection(encoder.visual) is find_projection(encoder.text) is None
    assert torch.equal(F.normalize(found.image_pooled, dim=-1), found.image)
    assert torch.equal(F.normalize(found.text_pooled, dim=-1), found.text)


def test_pictures_of_another_size_have_rows_too():
    encoder = build(VIT)
    found = encoder(pictures(VIT | {"image_size": 64}), pooled=True)
    projected = F.normalize(project(encoder.visual, found.image_pooled), dim=-1)
    torch.testing.assert_close(projected, found.image, atol=1e-6, rtol=0)


def test_rows_are_fp32_and_reach_back_under_autocast():
    encoder = build(VIT)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(pictures(VIT), torch.randint(5, 90, (3, 8)), pooled=True)
    assert found.image_pooled.dtype == found.text_pooled.dtype == torch.float32
    found.image_pooled.sum().backward()
    assert encoder.visual.conv1.weight.grad is not None
    assert encoder.visual.proj.grad is None  # it comes after


@pytest.mark.slow
def test_compiled_towers_give_the_same_rows():
    encoder, images, tokens = build(VIT), pictures(VIT), torch.randint(5, 90, (3, 8))
    wanted = encoder(images, tokens, pooled=True)
    compile_towers(encoder)
    with torch.no_grad():
        encoder(images, tokens)
    found = encoder(images, tokens, pooled=True)
    torch.testing.assert_close(found.image_pooled, wanted.image_pooled)
    torch.testing.assert_close(found.text_pooled, wanted.text_pooled)


def test_a_set_of_samples_carries_them_where_asked_for(encoder, shards):
    plain = encode_shards(encoder, open_shards(shards))
    found = encode_shards(encoder, open_shards(shards), pooled=True, batch_size=10)
    assert plain.image_pooled is plain.text_pooled is None
    for tower, rows, features in (
        (encoder.visual, found.image_pooled, found.image),
        (encoder.text, found.text_pooled, found.text),
    ):
        projected = F.normalize(project(tower, rows), dim=-1)
        torch.testing.assert_close(projected, features, atol=1e-6, rtol=0)
