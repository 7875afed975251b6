"""A batch in pieces has the gradient of the whole batch, for every parameter."""

import pytest
import torch
from torch import nn
from training_support import VIT, batch

from training.compute.accumulate import Pieces, encode, refuse_batch_norm
from training.losses.sigmoid import Sigmoid
from training.losses.softmax import Softmax
from training.optimization.stages import trained_norms
from vlp.encoder import DualEncoder, create_encoder, read_config
from vlp.errors import UserError
from vlp.types import Batch

TIMM = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
COUNT = 16


@pytest.fixture
def towers() -> DualEncoder:
    """Return a vision transformer that drops patches and a text tower, in fp64."""
    torch.manual_seed(0)
    return create_encoder({"model_cfg": VIT}, patch_dropout=0.5).double().train()


def gradients(encoder: DualEncoder, pieces: Pieces, whole: Batch, loss=None) -> dict:
    """Return the loss and its gradient with respect to every parameter."""
    encoder.zero_grad()
    torch.manual_seed(5)
    pairs, encoding = encode(encoder, whole, pieces)
    loss = loss or (Sigmoid() if encoder.is_sigmoid else Softmax())
    value = loss(pairs, pairs, torch.arange(len(pairs.image)), encoding.scale, encoding.bias)
    value.backward()
    return {"loss": value} | {name: p.grad for name, p in encoder.named_parameters()}


def assert_equal(found: dict, wanted: dict, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        least = tolerance * gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, atol=least, rtol=0, msg=name)
        assert gradient.abs().max() > 0, f"{name} has no gradient"


@pytest.mark.parametrize(
    "pieces",
    [Pieces(COUNT // k, COUNT // k) for k in (1, 2, 4, 8, 16)]
    + [Pieces(5, 7), Pieces(0, 4), Pieces(3, 0)],
    ids=str,
)
@pytest.mark.parametrize("bias", [None, -10.0])
def test_pieces_give_every_parameter_the_gradient_of_the_whole_batch(towers, pieces, bias):
    towers.set_logits(10.0, bias)
    towers.double()
    whole = gradients(towers, Pieces(), batch(COUNT))
    assert_equal(gradients(towers, pieces, batch(COUNT)), whole, 1e-9)


def test_pieces_give_the_gradient_of_the_whole_batch_in_fp32(towers):
    towers.float()
    whole = gradients(towers, Pieces(), batch(COUNT))
    assert_equal(gradients(towers, Pieces(4, 2), batch(COUNT)), whole, 1e-5)


def test_pieces_under_autocast_are_as_near_to_fp32_as_one_pass_is(towers):
    towers.float()
    exact = gradients(towers, Pieces(), batch(COUNT))
    for pieces in (Pieces(), Pieces(4, 2)):
        towers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            pairs, encoding = encode(towers, batch(COUNT), pieces)
        assert pairs.image.dtype == pairs.text.dtype == torch.float32
        Softmax()(pairs, pairs, torch.arange(COUNT), encoding.scale, None).backward()
        for name, parameter in towers.named_parameters():
            error = (parameter.grad - exact[name]).norm() / exact[name].norm()
            assert error < 0.04, name  # bf16 has 8 bits: 0.028 in one pass, 0.022 in pieces


def test_the_scale_of_fp16_is_in_the_gradient_of_pieces_once(towers):
    class Scaled(Softmax):
        def __call__(self, *seen):
            return 1024 * super().__call__(*seen)

    whole = gradients(towers, Pieces(), batch(COUNT))
    scaled = gradients(towers, Pieces(4, 2), batch(COUNT), Scaled())
    assert_equal(scaled, {name: 1024 * value for name, value in whole.items()}, 1e-9)


def test_the_patches_of_a_picture_follow_from_its_seed_alone(towers):
    whole = batch(COUNT)
    features = towers(whole.images, None, whole.seed).image
    torch.manual_seed(99)
    turned = towers(whole.images.flip(0), None, whole.seed.flip(0)).image.flip(0)
    torch.testing.assert_close(turned, features, atol=1e-12, rtol=0)
    other = towers(whole.images, None, whole.seed + 1).image
    assert (other - features).abs().max() > 1e-3


def test_views_and_hard_captions_go_through_the_towers_in_pieces_too(towers):
    views = batch(2 * COUNT).images.unflatten(0, (2, COUNT))
    hard = batch(3 * COUNT).tokens.unflatten(0, (COUNT, 3))
    whole = batch(
        COUNT,
        image_views=views,
        text_views=batch(2 * COUNT).tokens.unflatten(0, (2, COUNT)),
        hard_tokens=hard,
        hard_group=torch.arange(3 * COUNT).unflatten(0, (COUNT, 3)),
    )
    pairs, _ = encode(towers, whole, Pieces())
    pieces, _ = encode(towers, whole, Pieces(5, 5))
    for name in ("image", "text", "views", "text_views", "hard_text"):
        torch.testing.assert_close(getattr(pieces, name), getattr(pairs, name))
    assert pairs.views.shape == pairs.text_views.shape == (2, COUNT, 16)
    towers.eval()
    pairs, _ = encode(towers, whole, Pieces(5, 5))
    assert pairs.hard_group is whole.hard_group
    third = towers(views[1, 3:4], hard[3, 2:3])
    torch.testing.assert_close(pairs.views.select(0, 1)[3:4], third.image)
    torch.testing.assert_close(pairs.hard_text.select(0, 3)[2:3], third.text)


class Drawn(nn.Module):
    """Dropout whose masks are written down, each as often as it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mask = torch.rand_like(features) < 0.5
        self.masks.append(mask)
        return features * mask


def test_other_dropout_is_drawn_again_as_it_was_drawn_first(towers):
    class Tower(nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.tower, self.drawn = tower, Drawn()

        def forward(self, rows):
            return self.drawn(self.tower(rows))

    towers.visual = Tower(towers.visual)
    found = gradients(towers, Pieces(4, 4), batch(COUNT))
    masks = towers.visual.drawn.masks
    first, again = masks[:4], masks[4:]
    assert len(again) == 4
    for mask in again:  # backward goes through the pieces in any order
        assert any(torch.equal(mask, other) for other in first)
    assert not torch.equal(first[0], first[1])
    masks_in_turn = iter(first)
    towers.visual.drawn.forward = lambda rows: rows * torch.cat(list(masks_in_turn))
    assert_equal(found, gradients(towers, Pieces(), batch(COUNT)), 1e-9)


def test_batch_norm_is_refused_for_a_tower_in_pieces():
    encoder = create_encoder(read_config("tiny"))
    norms = trained_norms(encoder, set())
    with pytest.raises(UserError, match=r"image tower has batch norm.*Write --image-piece 0"):
        refuse_batch_norm(norms, Pieces(image=8), 16, 16)
    refuse_batch_norm(norms, Pieces(text=8), 16, 16)
    refuse_batch_norm(norms, Pieces(image=16), 16, 16)
    frozen = {f"visual.{name}" for name, _ in encoder.visual.named_parameters()}
    refuse_batch_norm(trained_norms(encoder, frozen), Pieces(image=8), 16, 16)


def test_a_share_of_the_patches_is_left_out_of_towers_that_have_patches():
    for vision, patches in ((VIT["vision_cfg"], 16), (TIMM, 100)):
        encoder = create_encoder(
            {"model_cfg": VIT | {"vision_cfg": vision}}, patch_dropout=0.75
        ).train()
        seen = []
        dropout = encoder.patch_dropout
        dropout.register_forward_hook(lambda _, rows, kept, seen=seen: seen.append(kept.shape[1]))
        size = encoder.image_size[0]
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        encoder(images, None, torch.arange(2))
        encoder.eval()(images)
        assert seen == [patches // 4 + dropout.num_prefix, patches + dropout.num_prefix]
    with pytest.raises(UserError, match=r"ResNet has no patches.*--model.patch-dropout 0"):
        create_encoder(read_config("tiny"), patch_dropout=0.5)
