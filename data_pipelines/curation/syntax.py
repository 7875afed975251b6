"""Captions parsed by spaCy, once for all filters that look at their syntax. The one door to spaCy.

The pipeline is one that is installed, such as spaCy's own ``en_core_web_sm``; none is fetched.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import file_hash, read_once
from vlp.errors import UserError, first_line, needs

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

UNUSED = ("ner", "lemmatizer", "textcat")
"""Parts of a pipeline that say nothing about syntax and take a third of the time."""
OBJECTS = ("NOUN", "PROPN", "PRON")
SUBJECTS = ("nsubj", "nsubjpass")
GOVERNED = ("dobj", "obj", "dative")
ATTRIBUTES = ("amod", "nmod", "poss")


def parsed(pipeline: str, candidates: Sequence[Candidate]) -> "list[Doc]":
    """Return the captions of candidates with parts of speech and dependencies."""
    new = [one for one in candidates if (pipeline, "syntax") not in one.features]
    for one, doc in zip(new, load(pipeline).pipe([one.text for one in new]), strict=True):
        one.features[pipeline, "syntax"] = doc
    return [one.features[pipeline, "syntax"] for one in candidates]


def pipeline_identity(pipeline: str) -> str:
    """Return what changes when spaCy, the pipeline's meta or its weights change."""
    folder = load(pipeline).path
    digests = [file_hash(str(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
    told = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
    return f"spacy {version('spacy')} {pipeline} {told}"


@read_once
def load(pipeline: str) -> Any:
    """Return an installed spaCy pipeline, loaded once in a process.

    Raises:
        UserError: spaCy or the pipeline is not installed, or it does not parse.
    """
    with needs("filters", "Parsing captions takes spaCy"):
        import spacy
    try:
        found = spacy.load(pipeline, exclude=UNUSED)
    except (OSError, ImportError, ValueError) as error:
        installed = ", ".join(spacy.util.get_installed_models()) or "none"
        raise UserError(
            f"spaCy cannot load the pipeline {pipeline!r} ({first_line(error)}). Installed: "
            f"{installed}. Name one with pipeline='...', or install it first; none is fetched."
        ) from None
    if not {"tagger", "parser"} <= set(found.pipe_names):
        raise UserError(f"The spaCy pipeline {pipeline!r} has no tagger and parser. Name another.")
    return found


def complexity(doc: "Doc") -> int:
    """Return the largest number of relations and attributes of an object of the scene graph.

    Objects are nouns. Attributes are words that say how an object is ("black cat", "the cat is
    black"); relations are verbs and prepositions, with an object at either end ("cat chasing a
    bird", "cup of tea"), and count for both. "dog" is 0, "a black cat is chasing a small brown
    bird" is 3, for the bird.
    """
    counts = Counter(end for token in doc for end in _ends(token) if end.pos_ in OBJECTS)
    return max(counts.values(), default=0)


def attribute_of(token: "Token") -> "Token | None":
    """Return what an adjective says something of ("red ball", "the ball is red"); None of others.

    None, too, where nothing is known of dependencies.
    """
    role, head = _role(token)
    if role == "acomp":
        return next(_subjects(head), None)
    return head if role == "amod" else None


def _ends(token: "Token") -> "Iterator[Token]":
    """Yield what an attribute or a relation is of; nothing for any other word."""
    role, head = _role(token)
    if role in ATTRIBUTES:
        yield head
        yield from (token,) if role == "poss" else ()
    elif role == "acomp":
        yield from _subjects(head)
    elif token.pos_ == "VERB":
        yield from _subjects(token)
        yield from (child for child in token.children if child.dep_ in GOVERNED)
    elif role in ("prep", "agent"):
        yield from (head,) if head.pos_ in OBJECTS else _subjects(head)
        yield from (child for child in token.children if child.dep_ == "pobj")


def _role(token: "Token") -> "tuple[str, Token]":
    """Return a word's dependency and head; "black and white": white is what black is."""
    first = token
    while first.dep_ == "conj":
        first = first.head
    return first.dep_, first.head


def _subjects(verb: "Token") -> "Iterator[Token]":
    """Yield who does what a verb says: "the man rides", or "man riding"."""
    if verb.dep_ in ("acl", "relcl"):
        yield verb.head
    yield from (child for child in verb.children if child.dep_ in SUBJECTS)
