"""Words by their first meaning, from files as WordNet has them."""

import pytest
from curation_support import kept

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import forget
from data_pipelines.curation.wordnet import read_wordnet
from data_pipelines.filters.synset_words import SynsetWords
from vlp.errors import UserError
from vlp.sample import Sample

INDEX = {
    "noun": """  1 This is the licence.
dog n 2 3 @ ~ #m 2 1 02084071 10114209
goose n 1 2 @ ~ 1 1 01855672
box n 1 1 @ 1 1 02883344
run n 1 1 @ 1 1 00558008
lens n 1 1 @ 1 1 03656484
""",
    "verb": "  1 licence\nrun v 2 2 @ ~ 2 1 01926311 01930264\nchase v 1 1 @ 1 1 02001858\n",
    "adj": "big a 1 1 ! 1 1 01382086\n",
    "adv": "quickly r 1 0 1 1 00085811\n",
}
IRREGULAR = {"noun": "geese goose\n", "verb": "ran run\n", "adj": "", "adv": ""}


@pytest.fixture
def wordnet(tmp_path):
    for name, text in INDEX.items():
        (tmp_path / f"index.{name}").write_text(text)
        (tmp_path / f"{name}.exc").write_text(IRREGULAR[name])
    return str(tmp_path)


@pytest.mark.parametrize(
    ("word", "wnid"),
    [
        ("dog", "n02084071"),
        ("Dogs", "n02084071"),
        ("geese", "n01855672"),
        ("boxes", "n02883344"),
        ("lens", "n03656484"),
        ("run", "n00558008"),
        ("ran", "v01926311"),
        ("chasing", "v02001858"),
        ("biggest", None),
        ("big", "a01382086"),
        ("quickly", "r00085811"),
        ("dog,", None),
        ("", None),
    ],
)
def test_a_word_has_the_first_meaning_of_its_base_form(wordnet, word, wnid):
    assert read_wordnet(wordnet).wnid(word) == wnid


def candidates(captions):
    return [Candidate.of(Sample("k", b"x", caption, {})) for caption in captions]


@pytest.fixture
def synsets(tmp_path):
    (tmp_path / "synsets.txt").write_text("n02084071 dog\nn01855672\n")
    return str(tmp_path / "synsets.txt")


def test_words_with_a_listed_meaning_are_counted(wordnet, synsets):
    part = SynsetWords(synsets=synsets, words=wordnet)
    scores = part.score(candidates(["two dogs and geese", "a box", "dog, box"]))
    assert scores == [2, 0, 0]
    assert kept(part, scores) == [[True, False, False]]


def test_words_may_come_from_a_list_in_place_of_wordnet(tmp_path, synsets):
    (tmp_path / "words.txt").write_text("Dog n02084071\ndog n99999999\nbox\tn02883344\n")
    part = SynsetWords(synsets=synsets, words=str(tmp_path / "words.txt"))
    assert part.score(candidates(["a dog", "a box", "dogs"])) == [1, 0, 0]


def test_another_list_is_another_identity(tmp_path, wordnet, synsets):
    part = SynsetWords(synsets=synsets, words=wordnet)
    (tmp_path / "other.txt").write_text("n02883344\n")
    other = SynsetWords(synsets=str(tmp_path / "other.txt"), words=wordnet)
    assert part.identity() != other.identity()
    before = part.identity()
    (tmp_path / "noun.exc").write_text("geese goose\nmice mouse\n")
    forget()
    assert part.identity() != before


def test_wrong_files_get_one_line(tmp_path, wordnet, synsets):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Cannot read .*index\.noun"):
        SynsetWords(synsets=synsets, words=str(tmp_path / "empty")).identity()
    with pytest.raises(UserError, match=r"Give the folder with index\.noun"):
        read_wordnet(str(tmp_path / "empty"))
    (tmp_path / "wrong.txt").write_text("dog\n")
    with pytest.raises(UserError, match=r"'dog' in .*wrong\.txt is no wnid"):
        SynsetWords(synsets=str(tmp_path / "wrong.txt"), words=wordnet).score(candidates(["a"]))
