"""A tower on smaller pictures gives what a tower built for them gives, from the same weights."""

import pytest
import torch

from vlp.checkpoint import save_encoder
from vlp.encoder import _build, create_encoder, read_config
from vlp.errors import UserError
from vlp.picture_size import check_size

TEXT = {"context_length": 8, "width": 32, "heads": 2, "layers": 1}
VIT = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 64}
TOWERS = {
    "open_clip": VIT,
    "timm": {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 64},
    "timm without a class token": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "convolutions": {"timm_model_name": "test_resnet", "timm_proj": "linear", "image_size": 64},
}


@pytest.fixture(params=TOWERS)
def built(request):
    """Return an encoder for pictures of 64 pixels."""
    torch.manual_seed(0)
    config = {"embed_dim": 16, "vision_cfg": TOWERS[request.param], "text_cfg": TEXT}
    return create_encoder({"model_cfg": config}).eval()


def test_small_pictures_give_what_a_tower_built_for_them_gives(built, tmp_path):
    save_encoder(built, tmp_path)
    small = create_encoder(
        read_config(f"local-dir:{tmp_path}"),
        weights=tmp_path / "open_clip_model.safetensors",
        image_size=32,
    ).eval()
    pictures = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(built(pictures).image, small(pictures).image)


def test_pictures_of_the_towers_own_size_take_its_own_way(built):
    pictures = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    pixels = built._normalise(pictures)
    wanted = torch.nn.functional.normalize(built.visual(pixels), dim=-1)
    assert torch.equal(built(pictures).image, wanted)


def test_the_gradient_reaches_the_position_embeddings_through_the_resizing(built):
    pictures = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    built(pictures).image.sum().backward()
    found = [p for name, p in built.visual.named_parameters() if "pos" in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found)


def test_sizes_that_a_tower_cannot_take_are_refused():
    with torch.device("meta"):
        resnet = _build(read_config("RN50")["model_cfg"], None).visual
        vit = _build(read_config("ViT-B-32")["model_cfg"], None).visual
    with pytest.raises(UserError, match=r"\(ModifiedResNet\) takes pictures of one size only"):
        check_size(resnet, 112)
    with pytest.raises(UserError, match=r"A picture of 100 has no whole patches of 32 pixels"):
        check_size(vit, 100)
    check_size(vit, 96)
