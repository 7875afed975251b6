"""The fast way to CLIP's ids gives open_clip's, whatever the text, and its cache stays bounded."""

import copy
import pickle
import random

import open_clip
import pytest
import torch

from vlp import bpe
from vlp.bpe import Bpe
from vlp.encoder import create_encoder
from vlp.tokenizer import Tokenizer

PIECES = [
    *("a photo of a dog", "Two", "don't", "it's", "'S", "IT'S", "they'll've", "'", "''tis", "l'd"),
    *("rock'n'roll", "1990s", "3.14", "x²", "½", "٣", "Ⅷ", "_", "__init__", "--", "...", "!?"),
    *("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>", "<START_of_Text>"),
    *("<ſtart_of_text>", "<start_of_", "text>", "a<end_of_text>b", "<", ">", "<b>x</b>", "it'ſ"),
    *("&amp;", "&amp;amp;", "&lt;p&gt;", "&nbsp;", "&#233;", "&#x1F600;", "&Eacute;", "&", "&&"),
    *("&amp;lt;start_of_text&amp;gt;", "&rsquo;", "AT&T", "&#13;", "&#0;", "&#32;", "&#8203;"),
    *("âœ”", "â€™", "schÃ¶n", "lâ€™humanitÃ©", "Ã\xa0", "ï»¿", "\x93hi\x94", "caf\xe9", "Ä°"),
    *("İ", "İstanbul", "ẞ", "STRASSE", "ΟΔΟΣ", "ΣΑΣ", "Σ", "ΑΣ'", "Σ.", "ΑΣ\u0301", "ΑΣ\xad"),
    *("ﬁn", "ﬀ", "ＦＵＬＬ", "１２", "！", "ｶﾞ", "“smart”", "‘quotes’", "e\u0301", "\u0301"),
    *("Ǆ", "\u212a", "\u212b", "ſ"),
    *("漢字", "ひらがな", "한국어", "שלום", "مرحبا", "हिन्दी", "ไทย"),
    *("\u202eabc\u202c", "\u200f", "\u061c", "\ufffd", "\ufeff", "\ud83d", "\ud83d\ude00"),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "😀", "𝔘𝔫𝔦", "𐐀", "𐍈"),
    *("\u200b", "\u200d", "\u2060", "\xad", "\x1b[31mred\x1b[0m", "\r", "\r\n", "\x00", "\x7f"),
    *("http://example.com/A/b.jpg?c=1&d=2", "pneumonoultramicroscopicsilicovolcanoconiosis"),
]  # fmt: skip
SPACES = [
    *(" ", " ", " ", " ", "", "", "\n", "\t", "  ", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1f"),
    *("\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\x1e"),
]
RANGES = [
    (0, 0x100),
    (0, 0x250),
    (0x300, 0x600),
    (0x2000, 0x2100),
    (0xFB00, 0x10000),
    (0, 0x110000),
]


@pytest.fixture(scope="module")
def peer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@pytest.fixture
def fast(peer) -> Bpe:
    return Bpe(peer)


def odd_text(draw: random.Random) -> str:
    """Return a text of odd pieces, of single characters of any kind, or of plain words."""
    kind = draw.random()
    if kind < 0.6:
        count = draw.choice([1, 3, 6, 15])
        return "".join(draw.choice(PIECES) + draw.choice(SPACES) for _ in range(count))
    if kind < 0.9:
        low, high = draw.choice(RANGES)
        return "".join(chr(draw.randrange(low, high)) for _ in range(draw.choice([1, 2, 5, 40])))
    return "".join(chr(draw.randrange(32, 127)) for _ in range(draw.choice([2, 60, 400])))


def words(draw: random.Random, count: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(draw.choices(letters, k=3)) for _ in range(count))


@pytest.mark.parametrize("length", [16, 32, 77])
def test_odd_texts_get_open_clips_ids_and_cuts_cached_or_not(peer, fast, length):
    draw = random.Random(length)
    texts = [odd_text(draw) for _ in range(1000)]
    wanted = peer(texts, length)
    cut = [len(peer.encode(text)) + 2 > length for text in texts]
    assert any(cut)
    for _ in range(2):
        ids, was_cut = fast(texts, length)
        assert ids.dtype == wanted.dtype
        assert torch.equal(ids, wanted)
        assert was_cut.tolist() == cut
    alone = texts[0]
    assert torch.equal(fast([alone], length)[0], wanted[:1])


def test_each_printable_ascii_character_beside_each_other_skips_cleaning_without_harm(peer, fast):
    printable = [chr(i) for i in range(32, 127)]
    texts = ["".join(a + b for b in printable) for a in printable]
    texts += [f"X{chr(i)}Y {chr(i)} z{chr(i)}" for i in range(256)]
    assert torch.equal(fast(texts, 300)[0], peer(texts, 300))


@pytest.mark.parametrize("length", [1, 2, 3, 16])
def test_long_words_long_texts_and_texts_that_just_fit(peer, fast, length):
    texts = ["", " ", "\n", "dog", "dog " * 5000, "x" * 600, "É" * 300, "9" * 50, "🏳️‍🌈" * 40]
    texts += ["dog " * n for n in range(length)]
    ids, cut = fast(texts, length)
    assert torch.equal(ids, peer(texts, length))
    assert cut.tolist() == [len(peer.encode(text)) + 2 > length for text in texts]


def test_the_cache_keeps_to_its_bound_and_the_ids_stay_right(peer, fast, monkeypatch):
    monkeypatch.setattr(bpe, "MAX_CHUNKS", 50)
    before = dict(peer.cache)
    draw = random.Random(1)
    for _ in range(40):
        texts = [words(draw, 10), odd_text(draw), "x" * 33]
        assert torch.equal(fast(texts, 77)[0], open_clip.tokenize(texts))
        assert len(fast._ids) <= 50
        assert max(map(len, fast._ids)) <= bpe.MAX_CHUNK_CHARACTERS
    assert not fast._ids._tokenizer.cache
    assert peer.cache == before


def counted(fast: Bpe, monkeypatch) -> list[str]:
    """Return the list that each token is put on when its byte pairs are merged."""
    seen, merge = [], fast._ids._tokenizer.bpe
    monkeypatch.setattr(
        fast._ids._tokenizer, "bpe", lambda token: seen.append(token) or merge(token)
    )
    return seen


def test_a_repeated_chunk_is_encoded_once(fast, monkeypatch):
    seen = counted(fast, monkeypatch)
    for _ in range(3):
        fast(["A dog, a dog's dog", "dog,"], 77)
    assert sorted(seen) == sorted(["a", "dog", ",", "'s"])


def test_a_full_cache_serves_common_words_again(fast, monkeypatch):
    """Four chunks of five are common ones; the rare ones alone are four times the bound."""
    monkeypatch.setattr(bpe, "MAX_CHUNKS", 500)
    seen = counted(fast, monkeypatch)
    draw = random.Random(3)
    common = words(draw, 50).split()
    for _ in range(1000):
        fast([" ".join(draw.choices(common, k=8)) + " " + words(draw, 2)], 77)
    assert len(seen) < 2000 + 50 * 6


def test_a_copy_of_a_used_one_gives_the_same_ids(peer, fast):
    texts = ["<start_of_text> a dog", "<end_of_text>"]
    fast(texts[:1], 16)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(texts, 16)[0], peer(texts, 16))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clean": "canonicalize"},
        {"clean": "whitespace"},
        {"additional_special_tokens": ["red dog", "<|x|>"]},
        {"reduction_mask": "simple"},
    ],
    ids=str,
)
def test_only_a_tokenizer_that_is_clips_own_goes_the_fast_way(options, model_cfg):
    model_cfg["text_cfg"]["tokenizer_kwargs"] = options
    tokenizer = create_encoder({"model_cfg": model_cfg}).tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(tokenizer._encode, Bpe) == (not options)
    texts = ["A Red Dog, it's a red dog <|x|>", "ΟΔΟΣ &amp;"]
    wanted = open_clip.SimpleTokenizer(**options)(texts, 32)
    assert torch.equal(tokenizer(texts), wanted)


@pytest.fixture
def model_cfg() -> dict:
    vision = {"layers": 1, "width": 32, "head_width": 32, "patch_size": 8, "image_size": 16}
    text = {"context_length": 32, "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
