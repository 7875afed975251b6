"""Every recipe is a config that its architecture, its optimizer and its schedule take."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig

from data_pipelines.captions import CaptionChoice
from training.objective import build_objective
from training.optimization.groups import frozen_names, parameter_groups
from training.optimization.optimizers import build_optimizer
from training.optimization.schedule import plan_schedule
from training.recipes import RECIPES
from vlp.encoder import _build, read_config

PAIRS = 400_000_000  # as many as CLIP had, for the recipes that count in epochs


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a folder with BERT's config: as deep as the real one, which is not at hand."""
    folder = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    BertConfig(num_hidden_layers=12, vocab_size=16, **shape).save_pretrained(folder)
    return folder


def on_meta(name: str, bert) -> torch.nn.Module:
    """Return a recipe's own architecture, without its numbers."""
    model = read_config(name)["model_cfg"]
    if "hf_model_name" in model["text_cfg"]:
        model["text_cfg"]["hf_model_name"] = str(bert)
        model["text_cfg"]["hf_model_pretrained"] = False
    with torch.device("meta"):
        return _build(model, None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_started(name, bert):
    config = RECIPES[name]()
    encoder = on_meta(config.model.name, bert)
    schedule = plan_schedule(config, config.run_length(PAIRS))
    groups = parameter_groups(encoder, config.optimizer, schedule.stages)
    build_optimizer(config.optimizer, groups)
    build_objective(config.loss)
    CaptionChoice.parse(config.data.captions)
    steps = config.num_steps(PAIRS)
    trained = sum(p.numel() for group in groups for p in group["params"])
    print(f"{name}: {steps:,} steps of {config.data.batch_size:,}, {trained:,} numbers trained")
    print("  " + "\n  ".join(schedule.lines()))  # pytest -s shows it
    batch = config.data.batch_size
    rates = [schedule.rate(step * batch) for step in range(0, steps, max(1, steps // 1000))]
    assert max(rates) == pytest.approx(config.optimizer.learning_rate, rel=0.02)
    assert schedule.rate((steps - 1) * batch) < 0.01 * max(rates)


def test_lit_trains_the_text_tower_alone(bert):
    config = RECIPES["lit_b16"]()
    encoder = on_meta("lit_b16", bert)
    (stage,) = plan_schedule(config, config.run_length(PAIRS)).stages
    frozen = frozen_names(encoder, config.optimizer, stage)
    assert frozen == {name for name, _ in encoder.named_parameters() if name.startswith("visual.")}


def test_two_stages_lock_the_image_tower_first(bert):
    config = replace(RECIPES["two_stage"](), steps=100)
    schedule = plan_schedule(config, config.run_length(None))
    frozen = [
        frozen_names(on_meta("ViT-B-32", bert), config.optimizer, stage)
        for stage in schedule.stages
    ]
    assert "visual.proj" in frozen[0]
    assert not frozen[1]
    batch = config.data.batch_size
    assert [schedule.stage_at(step * batch) for step in (0, 32, 33, 99)] == [0, 0, 1, 1]


def test_convirt_leaves_the_first_half_of_bert_as_it_is(bert):
    config = RECIPES["convirt"]()
    (stage,) = plan_schedule(config, config.run_length(PAIRS)).stages
    frozen = frozen_names(on_meta("convirt", bert), config.optimizer, stage)
    layers = {name.split(".")[4] for name in frozen if ".encoder.layer." in name}
    assert layers == set("012345")
    assert "text.transformer.embeddings.word_embeddings.weight" in frozen
    assert not any(name.startswith("visual") for name in frozen)
