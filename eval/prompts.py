"""Class names, caption templates, and which class a sample belongs to: all from files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.dataset import Dataset
from eval.datasets.shards import find_beside
from vlp.classifier import BARE, Classes, check_distinct
from vlp.errors import UserError, nearest
from vlp.types import Sample

NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
BY_NAME = Path(__file__).parent / "templates"
"""Files of templates that need no path."""
WORDS = ("templates", "label_key", "ids", "classnames")
"""What a classes file says at any level; every other key is a part."""


def read_classes(source: str | Sequence[str], *, part: str | None = None) -> Classes:
    """Return the classes of a file, or of a list of names.

    Args:
        source: ``.txt`` with a name on each line, or ``.json``: a list of names, or a dictionary
            with ``classnames`` and, where there are any, ``ids``, ``templates`` and ``label_key``.
            A class may also be ``{"name": ..., label_key: id}``. Dictionaries may be nested:
            ``templates`` and ``label_key`` hold for all that is inside.
        part: Which of a nested file's class lists, such as ``"concept.train"``.

    Raises:
        UserError: The file is missing or no class list, or has no such part.
    """
    if not isinstance(source, str):
        return Classes(names=tuple(source))
    path = Path(source)
    tree = _read_json(path) if path.suffix == ".json" else _read_lines(path, "class")
    node, inherited = tree, _said(tree)
    for depth, word in enumerate(part.split(".") if part else []):
        if not isinstance(node, dict) or word in WORDS or word not in node:
            above = ".".join(part.split(".")[:depth]) if part else ""
            raise UserError(_no_part(path, part, tree, above))
        node = node[word]
        inherited |= _said(node)
    return _classes(node, inherited, path, part, tree)


def classes_of(dataset: Dataset) -> Classes:
    """Return the classes that a dataset brings: its own, or CLIP_benchmark's files beside it.

    Raises:
        UserError: There are none.
    """
    if dataset.classes is not None:
        return dataset.classes
    names, templates = (find_beside(dataset.files, name) for name in (NAMES, TEMPLATES))
    if names is None:
        raise UserError(
            f"zero_shot has no classes: there is no {NAMES} in {dataset.name} or above it. "
            f"Write zero_shot(classes='classes.json') or 'classes.txt'."
        )
    return Classes(
        names=tuple(_read_lines(names, "class")),
        templates=read_templates(str(templates)) if templates else BARE,
    )


def read_templates(source: str | Sequence[str]) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """Return templates by name, from a file, or as given.

    Args:
        source: ``imagenet`` for CLIP's 80 templates, ``imagenet_simple`` for 7 of them; a ``.txt``
            file, a line each; a ``.json`` file, with a list of templates, or with captions of each
            class's own under its name (CuPL); a template, or several.

    Raises:
        UserError: The file is missing, or holds no templates.
    """
    if not isinstance(source, str):
        return tuple(source)
    named = BY_NAME / f"{source}.txt"
    path = named if named.is_file() else Path(source)
    if path.suffix not in (".txt", ".json"):
        return (source,)
    if path.suffix == ".txt":
        return tuple(line for line in _read_lines(path, "template") if line.strip())
    return _templates(_read_json(path), path)


def keep_classes(classes: Classes, source: str | Sequence[Any]) -> Classes:
    """Return the classes that a dataset is of, as ImageNet-A is of 200 of ImageNet's.

    Args:
        classes: All.
        source: A ``.txt`` file, a line each, a ``.json`` list or a list of those that are kept:
            ids, names or places from 0; or a truth value for every class.

    Raises:
        UserError: An entry is no class, or stands for two.
    """
    if isinstance(source, str):
        path = Path(source)
        source = _read_json(path) if path.suffix == ".json" else _read_lines(path, "class")
    if source and all(isinstance(entry, bool) for entry in source):
        if len(source) != len(classes.names):
            raise UserError(f"subset= has {len(source)} entries for {len(classes.names)} classes.")
        kept = [place for place, is_kept in enumerate(source) if is_kept]
    else:
        places = _places(classes)
        wrong = next((entry for entry in source if entry not in places), None)
        if wrong is not None:
            raise UserError(f"subset= has {wrong!r}, and the classes are {_some(classes)}.")
        kept = [places[entry] for entry in source]
    ids = classes.ids or range(len(classes.names))  # a label still means what it meant
    names = tuple(classes.names[place] for place in kept)
    return replace(classes, names=names, ids=tuple(ids[place] for place in kept))


def _templates(found: Any, path: Path) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """Return what a JSON file says are templates, or the captions of each class."""
    if isinstance(found, str):
        return (found,)
    if isinstance(found, list):
        return tuple(found)
    own = [*found.values()] if isinstance(found, dict) else [None]
    if not all(isinstance(of, list) and all(isinstance(text, str) for text in of) for of in own):
        raise UserError(
            f"{path} is no list of templates. Write a JSON list of captions with {{}}, or a "
            f"dictionary from each class to a list of its captions."
        )
    return {name: tuple(own) for name, own in found.items()}


def class_of_samples(classes: Classes, samples: Sequence[Sample]) -> list[int]:
    """Return the place of each sample's class, -1 where its label is no class or is missing.

    Raises:
        UserError: No sample has a class.
    """
    return [own[0] if len(own) == 1 else -1 for own in classes_of_samples(classes, samples)]


def classes_of_samples(classes: Classes, samples: Sequence[Sample]) -> list[list[int]]:
    """Return the places of each sample's classes; a label that is no class is left out.

    A label, or each of a list of them, is looked up among the ids; where there are none, a word is
    a name and a number is a place, from 0. A number is also a place where every id is a word.

    Raises:
        UserError: No sample has a class.
    """
    key = classes.label_key
    if not any(key in sample.metadata for sample in samples):
        has = ", ".join(samples[0].metadata) if samples and samples[0].metadata else "none"
        raise UserError(
            f"No sample has the label {key!r}; the fields of the first are: {has}. "
            f"Write zero_shot(label='FIELD')."
        )
    labels = [_labels(sample.metadata.get(key)) for sample in samples]
    if classes.ids is None and any(isinstance(label, str) for own in labels for label in own):
        check_distinct(classes.names)
    places = _places(classes)
    found = [[places[label] for label in own if label in places] for own in labels]
    if not any(found):
        label = next(sample.metadata[key] for sample in samples if key in sample.metadata)
        raise UserError(
            f"No label is a class: a sample has {key} = {label!r}, and the {len(classes.names)} "
            f"classes are {_some(classes)}. Give the label's field as label= or other classes."
        )
    return found


def has_several_labels(classes: Classes, samples: Sequence[Sample]) -> bool:
    """Return whether labels are lists: an image may show several classes, or none."""
    return any(isinstance(sample.metadata.get(classes.label_key), list) for sample in samples)


def _places(classes: Classes) -> dict[int | str, int]:
    """Return the place of a class by what a label may be: a word or a number."""
    names = {name: place for place, name in enumerate(classes.names)}
    numbers = {place: place for place in range(len(classes.names))}
    if classes.ids is None:
        return numbers | names
    words = {str(own): place for place, own in enumerate(classes.ids)}
    by_number = {int(own): place for own, place in words.items() if own.lstrip("-").isdecimal()}
    # Ids that are numbers are all that a number may mean: concept 4 is no fifth class.
    return (by_number or numbers) | names | words


def _labels(value: Any) -> list[int | str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int | str) and not isinstance(v, bool)]


def _classes(
    node: Any, inherited: dict[str, Any], path: Path, part: str | None, tree: Any
) -> Classes:
    """Return the classes of one node of a file, with what the nodes above it said."""
    names = node.get("classnames") if isinstance(node, dict) else node
    if not isinstance(names, list):
        raise UserError(_no_part(path, part, tree, part or ""))
    ids = node.get("ids") if isinstance(node, dict) else None
    label_key = inherited.get("label_key", "cls")
    if names and all(isinstance(entry, dict) for entry in names):
        missing = [entry for entry in names if "name" not in entry or label_key not in entry]
        if missing:
            raise UserError(
                f"A class in {path} is {missing[0]}: it needs 'name' and the label_key, "
                f"{label_key!r}."
            )
        ids, names = [entry[label_key] for entry in names], [entry["name"] for entry in names]
    return Classes(
        names=tuple(names),
        ids=tuple(ids) if ids else None,
        templates=_templates(inherited.get("templates") or list(BARE), path),
        label_key=label_key,
    )


def _said(node: Any) -> dict[str, Any]:
    """Return what a node says of the classes in it and below it."""
    said = node if isinstance(node, dict) else {}
    return {word: said[word] for word in ("templates", "label_key") if word in said}


def _no_part(path: Path, part: str | None, tree: Any, above: str) -> str:
    parts = list(_parts(tree, ""))
    if not parts:
        return f'{path} holds no class names. Write a list of them, or {{"classnames": [...]}}.'
    if part is None:
        return f"{path} holds several class lists. Choose one with part=: {', '.join(parts)}."
    inside = [name for name in parts if name.startswith(f"{above}.")] or parts
    return f"{path} has no part {part!r}. {nearest(part, inside)}"


def _parts(node: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted paths of all class lists in a file; "" is the file itself."""
    names = node.get("classnames") if isinstance(node, dict) else node
    if isinstance(names, list):
        yield prefix
    if isinstance(node, dict):
        for word in node:
            if word not in WORDS:
                yield from _parts(node[word], f"{prefix}.{word}".lstrip("."))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.") from None


def _read_lines(path: Path, what: str) -> list[str]:
    """Return the lines without white space around them; a blank one inside is kept, as a fault."""
    lines = [line.strip() for line in _read(path).rstrip().splitlines()]
    if not lines:
        raise UserError(f"{path} is empty. Write one {what} on each line.")
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. Give a .txt or .json file."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text. Give a .txt or .json file.") from None


def _some(classes: Classes) -> str:
    """Return a few classes as a label would name them."""
    shown = [repr(own) for own in (classes.ids or classes.names)[:3]]
    return ", ".join(shown) + (", ..." if len(classes.names) > 3 else "")
