"""Patterns name parameters; groups give them rates; what is frozen keeps its statistics."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel

from training.optimization.groups import frozen_names, parameter_groups, select
from training.optimization.layers import tower_layers
from training.optimization.rules import Stage
from training.optimization.stages import freeze
from training.options import OptimizerConfig
from vlp.encoder import _build, create_encoder, read_config
from vlp.errors import UserError


@pytest.fixture(scope="module")
def trained():
    """Return a tiny encoder that can be trained."""
    torch.manual_seed(0)
    return create_encoder(read_config("tiny"))


def on_meta(name: str) -> torch.nn.Module:
    """Return an architecture without its numbers."""
    with torch.device("meta"):
        return _build(read_config(name)["model_cfg"], None)


def rates(encoder, options: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """Return the factor on the rate and the decay of each parameter that is trained."""
    names = {id(p): name for name, p in encoder.named_parameters()}
    return {
        names[id(p)]: (group["rate"], group["weight_decay"])
        for group in parameter_groups(encoder, options)
        for p in group["params"]
    }


def test_norms_biases_and_scale_do_not_decay_and_nothing_is_left_out(trained):
    found = rates(trained, OptimizerConfig(weight_decay=0.3))
    assert set(found) == {name for name, _ in trained.named_parameters()}
    for name, parameter in trained.named_parameters():
        assert found[name] == (1.0, 0.3 if parameter.ndim > 1 else 0.0)
    assert found["logit_scale"] == (1.0, 0.0)


def test_a_pattern_names_a_module_a_shell_pattern_or_layers(trained):
    everything = {name for name, _ in trained.named_parameters()}
    visual = {name for name in everything if name.startswith("visual.")}
    assert select(trained, "visual") == select(trained, "visual.*") == visual
    assert select(trained, "logit_scale") == {"logit_scale"}
    assert select(trained, "*.ln_[12].bias") == {
        f"text.transformer.resblocks.0.ln_{number}.bias" for number in (1, 2)
    }
    last = select(trained, "text[-1:]")
    assert last == {"text.ln_final.weight", "text.ln_final.bias", "text.text_projection"}
    assert select(trained, "text[:-1]") == select(trained, "text") - last


def test_a_pattern_that_names_nothing_is_answered_with_what_is_near(trained):
    with pytest.raises(UserError, match=r"called 'visuel'. Did you mean visual"):
        select(trained, "visuel")
    with pytest.raises(UserError, match=r"text.transformer.resblocks.0"):
        parameter_groups(trained, OptimizerConfig(groups=("text.transformer.resblock.0: lr=2",)))
    with pytest.raises(UserError, match=r"Nothing is left to train"):
        parameter_groups(trained, OptimizerConfig(groups=("*: freeze",)))


def test_the_last_rule_that_names_a_parameter_decides(trained):
    groups = ("visual: lr=0.1 decay=0.5", "visual.head: lr=2", "text: freeze")
    found = rates(trained, OptimizerConfig(weight_decay=0.2, groups=groups))
    assert found["visual.head.proj.weight"] == (2.0, 0.1)
    assert found["visual.trunk.bn1.weight"] == (0.1, 0.0)
    assert not any(name.startswith("text") for name in found)
    assert found["logit_scale"] == (1.0, 0.0)


def test_layer_decay_is_a_power_of_the_distance_to_the_last_layer():
    encoder = on_meta("ViT-B-32")
    groups = ("text: layer-decay=1", "visual.proj: lr=3")
    found = rates(encoder, OptimizerConfig(layer_decay=0.5, groups=groups))
    expected = {"visual.conv1.weight": 0.5**13, "visual.positional_embedding": 0.5**13}
    expected |= {
        f"visual.transformer.resblocks.{n}.ln_1.weight": 0.5 ** (12 - n) for n in range(12)
    }
    expected |= {"visual.ln_post.weight": 1, "visual.proj": 3, "logit_scale": 1}
    expected |= {"text.token_embedding.weight": 1}
    assert {name: found[name][0] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "depths"),
    [("ViT-B-32", (13, 13)), ("RN50", (17, 13)), ("ViT-B-16-SigLIP", (13, 13)), ("tiny", (5, 2))],
)
def test_every_tower_has_layers_from_0_up(name, depths):
    encoder = on_meta(name)
    for tower, depth in zip(("visual", "text"), depths, strict=True):
        layers = tower_layers(encoder, tower)
        assert set(layers) == select(encoder, tower)
        assert set(layers.values()) == set(range(depth + 1))


def test_the_layers_of_a_hugging_face_tower_are_told_by_its_names():
    encoder = torch.nn.Module()
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    encoder.text = torch.nn.ModuleDict(
        {
            "transformer": BertModel(BertConfig(num_hidden_layers=3, vocab_size=9, **shape)),
            "proj": torch.nn.Sequential(torch.nn.Linear(8, 4)),
        }
    )
    layers = tower_layers(encoder, "text")
    assert layers["text.transformer.embeddings.LayerNorm.weight"] == 0
    assert layers["text.transformer.encoder.layer.2.output.dense.bias"] == 3
    assert layers["text.proj.0.weight"] == 4


def test_a_tower_whose_layers_are_not_known_is_refused():
    encoder = torch.nn.Module()
    encoder.visual = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"The layers of the tower visual \(Linear\) are not known"):
        tower_layers(encoder, "visual")


def test_what_every_stage_freezes_needs_no_optimizer(trained):
    stages = [Stage(length=None, freeze=("visual",)), Stage(length=None, freeze=("visual.trunk",))]
    groups = parameter_groups(trained, OptimizerConfig(), stages)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(trained.parameters())) - len(select(trained, "visual.trunk"))


def test_a_frozen_tower_computes_no_gradient_and_keeps_its_batch_norms(trained):
    encoder = copy.deepcopy(trained)
    options, stage = OptimizerConfig(), Stage(length=None, freeze=("visual.trunk.layer1", "text"))
    freeze(encoder, frozen_names(encoder, options, stage))
    images = torch.randint(0, 255, (4, 3, 48, 48), dtype=torch.uint8)
    before = copy.deepcopy(encoder.state_dict())
    encoded = encoder(images, torch.ones(4, 24, dtype=torch.int64))
    assert encoded.image.requires_grad
    assert not encoded.text.requires_grad
    after = encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual.trunk.bn1.running_mean" in moved
    assert not any(name.startswith("visual.trunk.layer1.") for name in moved)


def test_a_stage_that_freezes_nothing_brings_everything_back(trained):
    encoder = copy.deepcopy(trained)
    freeze(encoder, select(encoder, "visual"))
    assert not encoder.visual.trunk.bn1.training
    freeze(encoder, set())
    assert all(module.training for module in encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
