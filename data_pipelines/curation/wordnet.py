"""The first meaning of a word in WordNet, from the files of a WordNet 3.0 that is here.

They are ``index.noun``, ``noun.exc`` and so on, as Debian's ``wordnet-base`` and Princeton's
archive have them. A meaning is called by its wnid, ``n02084071`` for the first of "dog".
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.curation.files import read_once
from vlp.errors import UserError, first_line

PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
"""Parts of speech in the order in which a word is looked up."""
ENDINGS = {
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
"""WordNet's rules of detachment: what an ending is replaced by."""


class Part(NamedTuple):
    """The words of one part of speech."""

    wnids: dict[str, str]
    """First meaning of each word."""
    irregular: dict[str, list[str]]
    """Base forms of irregular forms, "geese" of "goose"."""
    endings: list[tuple[str, str]]


class WordNet(NamedTuple):
    """Words and their first meanings."""

    parts: tuple[Part, ...]

    def wnid(self, word: str) -> str | None:
        """Return the first meaning of a word or its base form, as nltk's ``synsets(word)[0]``."""
        word = word.lower()
        return next((part.wnids[form] for part in self.parts for form in _forms(part, word)), None)


@read_once
def read_wordnet(folder: str) -> WordNet:
    """Return the words of a folder of WordNet's files.

    Raises:
        UserError: A file cannot be read.
    """
    try:
        return WordNet(tuple(_part(Path(folder), name, letter) for name, letter in PARTS.items()))
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"Cannot read WordNet's files in {folder} ({first_line(error)}). Give the folder with "
            f"index.noun, such as /usr/share/wordnet of Debian's wordnet-base."
        ) from None


def _part(folder: Path, name: str, letter: str) -> Part:
    wnids, irregular = {}, {}
    for line in (folder / f"index.{name}").read_text().splitlines():
        if not line.startswith(" "):  # the licence
            # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset...
            fields = line.split()
            wnids[fields[0]] = f"{letter}{fields[-int(fields[2])]}"
    for line in (folder / f"{name}.exc").read_text().splitlines():
        form, *bases = line.split()
        irregular[form] = bases
    endings = [tuple(rule.split(":")) for rule in ENDINGS[name].split()]
    return Part(wnids, irregular, [(old, new) for old, new in endings])


def _forms(part: Part, word: str) -> Iterator[str]:
    """Yield the forms of a word that are listed: it, its irregular or its detached bases."""
    if word in part.irregular:
        yield from _listed(part, [word, *part.irregular[word]])
        return
    forms = [word, *_detached(part, [word])]
    while forms:
        found = list(_listed(part, forms))
        if found:
            yield from found
            return
        forms = _detached(part, forms)


def _detached(part: Part, forms: Iterable[str]) -> list[str]:
    return [
        form.removesuffix(old) + new
        for form in forms
        for old, new in part.endings
        if form.endswith(old)
    ]


def _listed(part: Part, forms: Iterable[str]) -> Iterator[str]:
    return (form for form in dict.fromkeys(forms) if form in part.wnids)
