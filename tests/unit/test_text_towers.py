"""A Hugging Face text tower starts from its own weights, and travels with the checkpoint."""

import json
from functools import partial

import open_clip
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from vlp.checkpoint import load_encoder, save_encoder
from vlp.encoder import create_encoder, read_config
from vlp.tokenizer import Tokenizer, tokenize_twice

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a folder with a small BERT and its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def architecture(bert, tmp_path):
    """Return a JSON architecture with that tower."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "test_resnet", "image_size": 32},
        "text_cfg": {
            "hf_model_name": str(bert),
            "hf_tokenizer_name": str(bert),
            "hf_proj_type": "linear",
            "context_length": 8,
        },
    }
    (tmp_path / "mine.json").write_text(json.dumps(config))
    return str(tmp_path / "mine.json")


def test_a_hugging_face_tower_takes_its_own_weights(architecture, bert):
    encoder = create_encoder(read_config(architecture), text_weights="hf")
    wanted = BertModel.from_pretrained(bert, add_pooling_layer=False).state_dict()
    for name, value in encoder.text.transformer.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    random = create_encoder(read_config(architecture))
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(random.text.transformer.state_dict()[name], wanted[name])


def test_captions_go_through_its_tokenizer_and_cuts_are_found(architecture):
    encoder = create_encoder(read_config(architecture))
    ids, cut = encoder.tokenizer.with_cuts(["a red circle", "a red circle a blue square a red"])
    assert ids.shape == (2, 8)
    assert ids[0].tolist() == [2, 5, 6, 8, 3, 0, 0, 0]
    assert cut.tolist() == [False, True]


def test_the_checkpoint_loads_without_the_folder_it_came_from(architecture, bert, tmp_path):
    encoder = create_encoder(read_config(architecture), text_weights="hf").eval()
    tokens = encoder.tokenizer(["a red circle", "a blue square"])
    (tmp_path / "saved").mkdir()
    save_encoder(encoder, tmp_path / "saved")
    peer = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")
    assert torch.equal(tokenizer(["a red circle", "a blue square"]), tokens)
    with torch.no_grad():
        wanted = encoder(tokens=tokens).text
        torch.testing.assert_close(
            peer.encode_text(tokens, normalize=True), wanted, atol=1e-5, rtol=0
        )
        hidden = bert.rename(bert.with_name("moved"))
        try:
            again = load_encoder(tmp_path / "saved")
            torch.testing.assert_close(again(tokens=tokens).text, wanted)
        finally:
            hidden.rename(bert)


def test_a_tokenizer_whose_padding_is_its_end_token_keeps_the_end_and_finds_cuts():
    """T5's way in SigLIP: both are 1."""

    def tokenize(captions: list[str], length: int) -> torch.Tensor:
        rows = [[*list(range(2, 2 + len(c.split())))[: length - 1], 1] for c in captions]
        return torch.tensor([row + [1] * (length - len(row)) for row in rows])

    tokenizer = Tokenizer(partial(tokenize_twice, tokenize), 6)
    ids, cut = tokenizer.with_cuts(["a b", "a b c d e", "a b c d e f"])
    assert ids.tolist() == [[2, 3, 1, 1, 1, 1], [2, 3, 4, 5, 6, 1], [2, 3, 4, 5, 6, 1]]
    assert cut.tolist() == [False, False, True]
