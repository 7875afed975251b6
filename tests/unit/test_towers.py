"""Blocks computed again and compiled towers have the gradient of plain ones."""

import copy
import shutil

import pytest
import torch
from torch import Tensor
from training_support import VIT, batch

from training.compute.towers import recompute_blocks, set_up_towers
from training.options import SpeedConfig
from vlp.encoder import DualEncoder, create_encoder, read_config
from vlp.errors import UserError

TIMM = {**VIT, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 32}}


def gradients(encoder: DualEncoder, *, is_half: bool = False) -> dict[str, Tensor]:
    encoder.train()
    encoder.zero_grad()
    rows = batch(6)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        encoding = encoder(rows.images, rows.tokens, rows.seed)
        loss = (encoding.image @ encoding.text.T).square().mean() * encoding.scale
    loss.backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("model", [VIT, TIMM], ids=["open_clip", "timm"])
def test_recomputed_blocks_have_the_same_gradient_with_patches_left_out(model, is_half):
    torch.manual_seed(0)
    plain = create_encoder({"model_cfg": model}, patch_dropout=0.5)
    recomputed = copy.deepcopy(plain)
    set_up_towers(recomputed, SpeedConfig(recompute=("image", "text")))
    wanted = gradients(plain, is_half=is_half)
    found = gradients(recomputed, is_half=is_half)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, wanted[name]), name


def test_a_tower_whose_blocks_cannot_be_computed_again_is_refused():
    with pytest.raises(UserError, match=r"batch norm.*Leave image out of --speed.recompute"):
        set_up_towers(create_encoder(read_config("tiny")), SpeedConfig(recompute=("image",)))
    with pytest.raises(UserError, match=r"no blocks.*--image-piece"):
        recompute_blocks(_Plain(), "image")


def test_a_window_of_steps_to_profile_is_checked():
    assert list(SpeedConfig(profile="3-5").profiled()) == [3, 4, 5]
    assert not SpeedConfig().profiled()
    for wrong in ("5-3", "0-2", "7", "a-b", "-3"):
        with pytest.raises(UserError, match=r"speed.profile is .* as 100-110"):
            SpeedConfig(profile=wrong)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs g++")
def test_compiled_towers_have_the_same_names_and_gradient():
    torch.manual_seed(0)
    plain = create_encoder({"model_cfg": VIT}, patch_dropout=0.5)
    compiled = copy.deepcopy(plain)
    set_up_towers(compiled, SpeedConfig(compile=True, recompute=("image", "text")))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    wanted, found = gradients(plain), gradients(compiled)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)


class _Plain(torch.nn.Module):
    def set_grad_checkpointing(self, enable: bool) -> None:
        """Do nothing, as open_clip's towers that cannot."""
