"""Captions cut to the longest of a batch have the features of whole ones, or are not cut."""

import json

import open_clip
import pytest
import torch
from open_clip.factory import get_model_config
from open_clip.hf_model import HFTextEncoder
from open_clip.model import _build_text_tower
from open_clip.transformer import TextTransformer
from transformers import BertConfig, M2M100Config, MT5Config, RobertaConfig, XLMRobertaConfig

from vlp.attention import quicken
from vlp.caption_length import cut_masks, find_last_read
from vlp.encoder import create_encoder, read_config

SIZES = {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
LENGTHS = (3, 9, 13)
END = 99
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
BERT |= {"vocab_size": 100, "num_attention_heads": 2, "max_position_embeddings": 32}
M2M = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
HUGGING_FACE = {
    "bert": BertConfig(**BERT),
    "roberta": RobertaConfig(**BERT),
    "xlm-roberta": XLMRobertaConfig(**BERT),
    "m2m_100": M2M100Config(vocab_size=100, d_model=32, decoder_layers=1, **M2M),
    "mt5": MT5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
}


def kinds() -> list[str]:
    """Return all that open_clip's configs say of its own text towers besides their sizes."""
    found = {json.dumps({"embed_cls": True}), json.dumps({"qk_norm": True})}
    for name in open_clip.list_models():
        text = (get_model_config(name) or {})["text_cfg"]
        if "hf_model_name" not in text:
            left = {k: v for k, v in text.items() if k not in SIZES and "tokenizer" not in k}
            found.add(json.dumps(left | {"output_tokens": False}, sort_keys=True))
    return sorted(found)


def tokens(end: int = END, padding: int = 0) -> torch.Tensor:
    rows = torch.full((len(LENGTHS), SIZES["context_length"]), padding)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[:length] = torch.randint(5, 90, (length,))
        row[length - 1] = end
    return rows


def check_cut(tower: torch.nn.Module, ids: torch.Tensor, wanted_length: int) -> None:
    """Assert that features and gradients of whole and of cut captions are equal to rounding."""
    found = find_last_read(tower)
    assert found is not None
    length = int(found(ids).max()) + 1
    assert length == wanted_length
    features, gradients = [], []
    for captions in (ids, ids[:, :length]):
        tower.zero_grad()
        features.append(tower(captions))
        features[-1].square().sum().backward()
        own = [p.grad.flatten() for p in tower.parameters() if p.grad is not None]
        gradients.append(torch.cat(own))
    torch.testing.assert_close(features[1], features[0], atol=2e-6, rtol=2e-6)
    assert (gradients[1] - gradients[0]).norm() <= 2e-6 * gradients[0].norm()


@pytest.mark.parametrize("kind", kinds())
def test_every_text_tower_of_open_clip_is_cut_without_change_or_not_at_all(kind):
    options = json.loads(kind)
    torch.manual_seed(0)
    tower = _build_text_tower(16, {**SIZES, **options}).eval()
    quicken(tower)
    cut_masks(tower)
    if options.get("no_causal_mask") or options.get("embed_cls"):  # SigLIP, CLIPA, CoCa
        assert find_last_read(tower) is None
    else:
        end = options["eos_id"] if options.get("pool_type") == "eos" else END
        check_cut(tower, tokens(end), max(LENGTHS))


@pytest.mark.parametrize("pool_type", ["first", "argmax", "eos"])
def test_a_tower_that_sees_all_tokens_but_padding_is_cut_behind_the_last_of_them(pool_type):
    torch.manual_seed(0)
    options = {"no_causal_mask": True, "use_pad_mask": True, "eos_id": 4, "pool_type": pool_type}
    tower = TextTransformer(**SIZES, output_dim=16, **options).eval()
    check_cut(tower, tokens(end=4), max(LENGTHS))


@pytest.mark.parametrize("kind", HUGGING_FACE)
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_hugging_face_towers_are_cut_behind_the_last_token(kind, pooler):
    torch.manual_seed(0)
    config = HUGGING_FACE[kind]
    tower = HFTextEncoder("", 16, config, pooler_type=pooler, proj_type="linear").eval()
    if config.is_encoder_decoder:
        tower.transformer = tower.transformer.encoder
    check_cut(tower, tokens(padding=config.pad_token_id), max(LENGTHS))


def test_an_encoder_cuts_to_its_longest_caption_and_in_eights_where_it_is_compiled():
    encoder = create_encoder(read_config("tiny")).eval()
    ids = encoder.tokenizer(["a red circle", "a large blue square in the corner"])
    assert encoder.caption_length(ids) == 9
    assert encoder.caption_length(ids[:1]) == 5
    assert encoder.caption_length(ids[:0]) == 24
    encoder.is_compiled = True
    assert encoder.caption_length(ids) == 16
    assert encoder.caption_length(encoder.tokenizer(["a red circle " * 20])) == 24
    whole, cut = encoder(tokens=ids).text, encoder(tokens=ids[:, :16]).text
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)
