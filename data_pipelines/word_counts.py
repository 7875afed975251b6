"""The words of a corpus by tag, as a vocabulary: what one word of a caption may be replaced by."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.curation.syntax import load
from data_pipelines.shards import open_shards
from data_pipelines.tagged_words import KINDS
from vlp.console import progress, show
from vlp.errors import UserError
from vlp.output import write_json

LEAST = 3
"""Times that a word occurs: rarer ones are mostly misspelt."""
MOST = 10_000
"""Words of a tag, the most frequent ones."""
SHOWN = 8


def write_words(source: str, path: Path, *, pipeline: str) -> dict[str, Any]:
    """Write the words of all captions by tag, each with how often it occurs; return their numbers.

    Raises:
        UserError: The file is no JSON file, spaCy or the pipeline is not installed, or no word
            occurs often enough.
    """
    if path.suffix != ".json" or path.is_dir():
        raise UserError(
            f"The words go to a JSON file, and not to {path}. Write --words words.json."
        )
    shards = open_shards(source)
    load(pipeline)
    with progress(len(shards), "tag") as advance:

        def captions() -> Iterable[str]:
            for sample in shards:
                advance()
                yield " ".join(sample.text.split())

        words = count_words(captions(), pipeline)
    if not words:
        raise UserError(f"No two words of a tag occur {LEAST} times in the captions of {source}.")
    write_json(path, words)
    for tag, of in words.items():
        most = ", ".join(list(of)[:SHOWN])
        show(f"{tag}: {len(of):,} words, such as {most}.")
    show(f'Written to {path}: --negatives "replace_words(vocabulary={str(path)!r})".')
    return {"words": str(path), "tags": {tag: len(of) for tag, of in words.items()}}


def count_words(captions: Iterable[str], pipeline: str) -> dict[str, dict[str, int]]:
    """Return by tag (Penn Treebank's, such as ``NN``) its words and how often they occur.

    Nouns, adjectives, verbs and adverbs, each under the tag that it most often has, in small
    letters; names are left out, and so are tags of a single word.
    """
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    docs = load(pipeline).pipe(captions, disable=["parser"])
    for token in (token for doc in docs for token in doc):
        if token.pos_ in KINDS and token.pos_ != "PROPN" and token.is_alpha:
            tags[token.lower_][token.tag_] += 1
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for word, of in sorted(tags.items(), key=lambda item: (-item[1].total(), item[0])):
        tag = min(of, key=lambda tag: (-of[tag], tag))
        if of.total() >= LEAST and len(found[tag]) < MOST:
            found[tag][word] = of.total()
    return {tag: found[tag] for tag in sorted(found) if len(found[tag]) > 1}
