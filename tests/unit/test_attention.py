"""Attention of the towers is that of their libraries, whichever way it is computed."""

import open_clip
import pytest
import timm
import torch
from torch import nn
from training_support import VIT, batch

from vlp import attention
from vlp.attention import SelfAttention, quicken
from vlp.encoder import create_encoder, open_clip_weights


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("masks", ["none", "one", "one of each head"])
def test_attention_equals_torchs_own(is_plain, masks, monkeypatch):
    monkeypatch.setattr(attention, "_is_quicker_plain", lambda tokens: is_plain)
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    ours = nn.MultiheadAttention(32, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    ours.__class__ = SelfAttention
    causal = torch.full((9, 9), -torch.inf).triu_(1)
    mask = {"none": None, "one": causal, "one of each head": causal.repeat(12, 1, 1)}[masks]
    rows, results = torch.randn(3, 9, 32), []
    for module in (theirs, ours):
        own = rows.clone().requires_grad_()
        out = module(own, own, own, attn_mask=mask, need_weights=False)[0]
        out.square().sum().backward()
        weights = [p.grad for p in module.parameters()]
        results.append([out.detach(), own.grad, *weights])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_half", [False, True])
def test_both_towers_have_open_clips_features(is_half):
    encoder = create_encoder({"model_cfg": VIT}).eval()
    peer = open_clip.CustomTextCLIP(**VIT).eval()
    peer.load_state_dict(open_clip_weights(encoder))
    rows = batch(4)
    pixels = (rows.images - encoder.pixel_mean) / encoder.pixel_std
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        ours = encoder(rows.images, rows.tokens)
        theirs = peer.encode_image(pixels, True), peer.encode_text(rows.tokens, True)
    tolerance = 2e-2 if is_half else 1e-5
    torch.testing.assert_close(ours.image, theirs[0].float(), atol=tolerance, rtol=0)
    torch.testing.assert_close(ours.text, theirs[1].float(), atol=tolerance, rtol=0)


def test_timms_attention_is_plain_where_that_is_quicker():
    tower = timm.create_model("test_vit", img_size=32)
    quicken(tower)
    tower(torch.zeros(1, 3, 32, 32))
    assert not tower.blocks[0].attn.fused_attn
    tower.double()(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert tower.blocks[0].attn.fused_attn
