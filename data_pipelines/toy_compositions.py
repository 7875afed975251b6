"""Pairs of toy scenes that differ in one thing, each the other's false caption.

Every caption is true of one picture and false of the other, as in Winoground (Thrush et al. 2022):
whoever reads the captions alone is right for exactly half of the pictures. Both scenes are held
out, so no training has seen either; in every second pair, nor a colour and a shape together that
one of them shows.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines.drawing import COLOURS, OUTLINES, Shape
from data_pipelines.toy import Scene, caption_of, draw_scene, sample_of
from vlp.types import Sample

COMPOSITIONS = 6
"""The random stream, beside those of ``toy.py``."""


def draw_compositions(pairs: int, seed: int) -> Iterator[Sample]:
    """Yield two samples for each pair, the kinds of ``CHANGES`` in turn.

    ``kind`` in the metadata says what was changed, after ``new_`` where a scene shows one of
    ``NEW_PAIRS``; ``pair`` which two belong together; ``false_captions`` the caption of the other.
    """
    kinds = itertools.cycle(itertools.product(CHANGES, (False, True)))
    for number, (change, is_new) in zip(range(pairs), kinds, strict=False):
        rng = np.random.default_rng([seed, COMPOSITIONS, number])
        scenes = _draw_pair(rng, change, is_new)
        kind = f"new_{change}" if is_new else change
        wording = int(rng.integers(2**32))
        captions = [caption_of(scene, np.random.default_rng(wording)) for scene in scenes]
        for place, scene in enumerate(scenes):
            sample = sample_of(f"{number:06d}{'ab'[place]}", scene, captions[place], rng)
            said = {"kind": kind, "pair": f"{number:06d}", "false_captions": [captions[1 - place]]}
            sample.metadata.update(said)
            yield sample


def _draw_pair(rng: np.random.Generator, change: str, is_new: bool) -> tuple[Scene, Scene]:
    """Return a random scene of two shapes and what a change makes of it; both are held out."""
    while True:
        scene = draw_scene(rng, is_held_out=True, layout=str(rng.choice(["row", "column"])))
        other = Scene(scene.layout, CHANGES[change](*scene.shapes))
        is_clear = len(set(other.classes)) == 2 and other.description != scene.description
        shows_new = scene.shows_new_pair or other.shows_new_pair
        if is_clear and other.is_held_out and shows_new == is_new:
            return scene, other


def _swap(field: str) -> Callable[[Shape, Shape], tuple[Shape, Shape]]:
    """Return what gives each of two shapes the other's colour, size or texture."""

    def change(first: Shape, second: Shape) -> tuple[Shape, Shape]:
        own, others = getattr(first, field), getattr(second, field)
        return first._replace(**{field: others}), second._replace(**{field: own})

    return change


def _replace(field: str, words: list[str]) -> Callable[[Shape, Shape], tuple[Shape, Shape]]:
    """Return what gives the first shape the word four places on: the scene stays held out."""

    def change(first: Shape, second: Shape) -> tuple[Shape, Shape]:
        place = (words.index(getattr(first, field)) + 4) % len(words)
        return first._replace(**{field: words[place]}), second

    return change


def _swap_places(first: Shape, second: Shape) -> tuple[Shape, Shape]:
    return second._replace(x=first.x, y=first.y), first._replace(x=second.x, y=second.y)


CHANGES: dict[str, Callable[[Shape, Shape], tuple[Shape, Shape]]] = {
    "replace_colour": _replace("colour", list(COLOURS)),
    "replace_shape": _replace("shape", list(OUTLINES)),
    "swap_colours": _swap("colour"),
    "swap_sizes": _swap("size"),
    "swap_textures": _swap("texture"),
    "swap_places": _swap_places,
}
"""What may differ between the scenes of a pair: the two shapes in, the two of the other out."""
