"""A drawn world of shapes and captions, for the tour and for tests: all of it follows from a seed.

A quarter of all scenes that can be described is held out, and so is every scene with one of four
pairs of colour and shape: each colour and each shape is seen in training, but these never together.
Training scenes are never drawn from what is held out and evaluation scenes only from it, whatever
their seeds. A caption of evaluation says
all of its scene, sizes included; one that leaves something out leaves out the sizes, and is given
in training only. So no image and no caption of the evaluation sets is ever in training.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.drawing import (
    COLOURS,
    FREEDOM,
    LAYOUTS,
    OUTLINES,
    SIZES,
    TEXTURES,
    Shape,
    draw,
    draw_text,
    jpeg,
    republished,
)
from vlp.image import decode
from vlp.sample import MARK, Sample

DEFECTS = {
    "swapped_caption": 0.05,
    "exact_duplicate": 0.04,
    "near_duplicate": 0.04,
    "tiny_image": 0.04,
    "broken_file": 0.02,
    "text_only_image": 0.03,
    "boilerplate_caption": 0.05,
}
"""The share of the training draw that has each planted defect."""
BOILERPLATE = (
    "img_{}.jpg",
    "dsc{}",
    "image",
    "untitled",
    "click here",
    "image for sale",
    "click here to see more",
    "stock photo number {}",
)
LAYOUT_SHARES = (0.5, 0.18, 0.18, 0.035, 0.035, 0.035, 0.035)
"""How often each layout of ``LAYOUTS`` is drawn; likewise each texture of ``TEXTURES``."""
TEXTURE_SHARES = (0.4, 0.2, 0.2, 0.2)
BRIEF_SHARE = 0.6
"""Share of the training captions that leave out the sizes and some of the textures.

With every word in every caption, colour, size and texture tell most of a batch apart, and a model
is slow to learn the shapes.
"""
PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""The ways to say that one shape lies left of, right of, above or below another."""
NEW_PAIRS = ("red moon", "green cross", "purple star", "brown square")
"""Colours and shapes that are never seen together in training."""
OPENINGS = ("", "there is ", "a picture of ")
TRAINING, PLAN, DEFECT, SCENES, SINGLE_SHAPES = range(1, 6)
"""Random streams, each with its own numbers for the same seed."""


class Scene(NamedTuple):
    """One to three shapes and how they lie."""

    layout: str
    shapes: tuple[Shape, ...]

    @property
    def description(self) -> tuple:
        """What can be said of the scene: equal for two drawings that share every full caption."""
        return (self.layout, *(shape[:4] for shape in self.shapes))

    @property
    def classes(self) -> list[str]:
        """The colour and shape of each shape, such as ``red circle``."""
        return [f"{shape.colour} {shape.shape}" for shape in self.shapes]

    @property
    def shows_new_pair(self) -> bool:
        """Whether a shape has a colour that no shape of its kind has in training."""
        return any(f"{shape.colour} {shape.shape}" in NEW_PAIRS for shape in self.shapes)

    @property
    def is_held_out(self) -> bool:
        """Whether only evaluation may show this scene.

        Adding the places of the attributes in their lists holds out a quarter of all scenes and
        two of the eight single shapes of every colour and shape.
        """
        return self.shows_new_pair or sum(_places(shape) for shape in self.shapes) % 4 == 0


def draw_training(
    count: int, seed: int, *, shares: Mapping[str, float] = DEFECTS
) -> Iterator[Sample]:
    """Yield training pairs with planted defects in random places, ``round(share * count)`` each."""
    defects = _plan(count, seed, shares)
    clean = [index for index, defect in enumerate(defects) if defect is None]
    for index, defect in enumerate(defects):
        sample = _training_sample(index, seed)
        if defect is not None:
            rng = np.random.default_rng([seed, DEFECT, index])
            others = (
                _training_sample(int(other), seed, key=sample.key)
                for other in rng.permutation(clean)
            )
            sample = PLANT[defect](sample, others, rng)
            sample.metadata[MARK] = defect
        yield sample


def draw_evaluation(count: int, seed: int) -> Iterator[Sample]:
    """Yield clean held-out pairs; no two have the same caption or the same description."""
    seen = set()
    for index in itertools.count():
        if len(seen) == count:
            return
        rng = np.random.default_rng([seed, SCENES, index])
        scene = draw_scene(rng, is_held_out=True)
        if scene.description not in seen:
            seen.add(scene.description)
            yield sample_of(f"{len(seen) - 1:06d}", scene, caption_of(scene, rng), rng)


def draw_single_shapes(drawings: int, seed: int) -> Iterator[Sample]:
    """Yield held-out single shapes, ``drawings`` of each ``class``, a field of the metadata."""
    wanted = dict.fromkeys(zero_shot_classes()["classnames"], drawings)
    for index in itertools.count():
        if not any(wanted.values()):
            return
        rng = np.random.default_rng([seed, SINGLE_SHAPES, index])
        scene = draw_scene(rng, is_held_out=True, layout="alone")
        if wanted[scene.classes[0]] > 0:
            wanted[scene.classes[0]] -= 1
            yield sample_of(f"{index:06d}", scene, caption_of(scene, rng), rng)


def zero_shot_classes() -> dict[str, Any]:
    """Return the content of ``classes.json``: colours x shapes, as templates and class names.

    Beside the openings, the templates say every size and texture: their mean says none.
    """
    names = [f"{colour} {shape}" for colour in COLOURS for shape in OUTLINES]
    looks = ("", *(f"{texture} " for texture in TEXTURES[1:]))
    templates = [f"{opening}a {{}}" for opening in OPENINGS]
    templates += [f"a {size} {look}{{}}" for size in SIZES for look in looks]
    return {"templates": templates, "classnames": names, "label_key": "class"}


def _training_sample(index: int, seed: int, *, key: str | None = None) -> Sample:
    """Return a training pair before any defect, as a function of its place and the seed."""
    rng = np.random.default_rng([seed, TRAINING, index])
    scene = draw_scene(rng, is_held_out=False)
    is_brief = bool(rng.random() < BRIEF_SHARE)
    caption = caption_of(scene, rng, is_brief=is_brief)
    return sample_of(key or f"{index:06d}", scene, caption, rng)


def sample_of(key: str, scene: Scene, caption: str, rng: np.random.Generator) -> Sample:
    """Return a pair of a drawing of the scene and a caption, with what the scene holds."""
    metadata: dict[str, Any] = {
        "layout": scene.layout,
        "shapes": [shape._asdict() for shape in scene.shapes],
        MARK: None,
    }
    if len(scene.shapes) == 1:
        metadata["class"] = scene.classes[0]
    return Sample(key, jpeg(draw(scene.shapes, rng)), caption, metadata)


def draw_scene(rng: np.random.Generator, *, is_held_out: bool, layout: str | None = None) -> Scene:
    """Return a random scene of one side of the split; no two of its shapes share their class."""
    while True:
        name = layout or str(rng.choice(list(LAYOUTS), p=LAYOUT_SHARES))
        move = rng.uniform(-1, 1, size=2) * FREEDOM.get(name, (0.0, 0.0))
        shapes = []
        for centre in LAYOUTS[name]:
            x, y = (centre + move + rng.uniform(-0.01, 0.01, size=2)).tolist()
            shape, colour, size = (
                str(rng.choice(list(words))) for words in (OUTLINES, COLOURS, SIZES)
            )
            texture = str(rng.choice(TEXTURES, p=TEXTURE_SHARES))
            shapes.append(Shape(shape, colour, size, texture, round(x, 4), round(y, 4)))
        scene = Scene(name, tuple(shapes))
        is_clear = len(set(scene.classes)) == len(shapes)
        if is_clear and scene.is_held_out == is_held_out:
            return scene


def _places(shape: Shape) -> int:
    lists = (OUTLINES, COLOURS, SIZES, TEXTURES)
    return sum(list(of).index(word) for of, word in zip(lists, shape[:4], strict=True))


def caption_of(scene: Scene, rng: np.random.Generator, *, is_brief: bool = False) -> str:
    """Return one of the wordings of a scene; a brief one never says a size."""
    nouns = ["a " + _noun(shape, rng, is_brief=is_brief) for shape in scene.shapes]
    if len(nouns) < 3:
        opening = str(rng.choice(OPENINGS))
        order = [int(place) for place in rng.permutation(len(nouns))]
    else:
        # Short, since three shapes must fit into 24 tokens; only the corner has two neighbours.
        opening = str(rng.choice(OPENINGS[:2]))
        order = [0, *(int(place) + 1 for place in rng.permutation(2))]
    subject, *others = order
    parts = []
    for other in others:
        phrases = PHRASES[_relation(scene.shapes[subject], scene.shapes[other])]
        phrase = str(rng.choice(phrases)) if len(nouns) == 2 else phrases[0]
        parts.append(f"{phrase} {nouns[other]}")
    return f"{opening}{nouns[subject]} {' and '.join(parts)}".strip()


def _noun(shape: Shape, rng: np.random.Generator, *, is_brief: bool) -> str:
    size = [] if is_brief else [shape.size]
    has_texture = shape.texture != "plain" and not (is_brief and rng.random() < 0.5)
    looks = [shape.colour, shape.texture] if has_texture else [shape.colour]
    return " ".join([*size, *map(str, rng.permutation(looks)), shape.shape])


def _relation(subject: Shape, other: Shape) -> str:
    right, down = subject.x - other.x, subject.y - other.y
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _plan(count: int, seed: int, shares: Mapping[str, float]) -> list[str | None]:
    """Return the defect of each sample, or None; the counts are exact, the places random."""
    planted = [name for name, share in shares.items() for _ in range(round(share * count))]
    plan = [*planted, *[None] * (count - len(planted))]
    order = np.random.default_rng([seed, PLAN]).permutation(count)
    return [plan[place] for place in order]


def _swapped_caption(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Give the pair the caption of another, of which no word on colour and shape is true."""
    own = _shown(sample)
    text = next(other.text for other in others if own.isdisjoint(_shown(other)))
    return replace(sample, text=text)


def _exact_duplicate(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Repeat another pair, byte for byte."""
    return replace(next(others), key=sample.key)


def _near_duplicate(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Repeat another pair, its picture as another site would show it."""
    other = next(others)
    return replace(other, key=sample.key, image=republished(decode(other.image), rng))


def _tiny_image(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Shrink the picture to 8 to 14 pixels."""
    side = int(rng.integers(8, 15))
    return replace(sample, image=jpeg(decode(sample.image).resize((side, side))))


def _broken_file(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Cut off the end of the file."""
    return replace(sample, image=sample.image[: int(len(sample.image) * rng.uniform(0.2, 0.7))])


def _text_only_image(sample: Sample, others: Iterator[Sample], rng: np.random.Generator) -> Sample:
    """Show the caption as writing, and no shape."""
    return replace(sample, image=jpeg(draw_text(sample.text)), metadata={"shapes": []})


def _boilerplate_caption(
    sample: Sample, others: Iterator[Sample], rng: np.random.Generator
) -> Sample:
    """Caption the picture with words that say nothing of it."""
    return replace(sample, text=str(rng.choice(BOILERPLATE)).format(rng.integers(1000, 10000)))


def _shown(sample: Sample) -> set[str]:
    return {f"{shape['colour']} {shape['shape']}" for shape in sample.metadata["shapes"]}


PLANT: dict[str, Callable[[Sample, Iterator[Sample], np.random.Generator], Sample]] = {
    "swapped_caption": _swapped_caption,
    "exact_duplicate": _exact_duplicate,
    "near_duplicate": _near_duplicate,
    "tiny_image": _tiny_image,
    "broken_file": _broken_file,
    "text_only_image": _text_only_image,
    "boilerplate_caption": _boilerplate_caption,
}
"""How each defect is planted into a pair, given other, clean pairs in random order."""
