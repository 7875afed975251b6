"""Photograph-like JPEGs and captions, for a benchmark where no data is given."""

import io
import random
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image

from data_pipelines.shards import write_shards
from vlp.types import Sample

NUM_PHOTOGRAPHS = 400


def drawn_photographs(folder: Path) -> Path:
    """Return a folder of shards of smooth noise with grain, 60 and 130 KB a picture."""
    part = folder.with_suffix(".part")
    if not folder.is_dir():
        print(f"Drawing photographs into {folder}")
        shutil.rmtree(part, ignore_errors=True)
        texts = captions(NUM_PHOTOGRAPHS, seed=-1)
        pictures = (Sample(f"{i:05d}", photograph(i), text) for i, text in enumerate(texts))
        write_shards(pictures, part, samples_per_shard=100)
        part.rename(folder)
    return folder


def photograph(seed: int) -> bytes:
    """Return a JPEG of quality 90 and 4:2:0, 640x480 or, for every third seed, 1024x768."""
    rng = np.random.default_rng(seed)
    size = (1024, 768) if seed % 3 == 0 else (640, 480)
    pixels = rng.normal(0, 3.5, (size[1], size[0], 3))
    for cells, strength in ((4, 1.0), (16, 0.4), (64, 0.2)):  # as in nature, less the finer it is
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += strength / 1.6 * np.asarray(noise.resize(size, Image.Resampling.BICUBIC))
    out = io.BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=90, subsampling="4:2:0")
    return out.getvalue()


def captions(count: int, seed: int) -> list[str]:
    """Return captions of 4 to 20 words; rare words, names, numbers and accents among them."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        drawn = [words()[int(len(words()) ** rng.random()) - 1] for _ in range(rng.randint(4, 20))]
        if rng.random() < 0.3:
            drawn.insert(2, "".join(rng.sample(drawn, 2)).capitalize())  # a name never seen
        if rng.random() < 0.2:
            drawn.append(f"#{rng.randrange(10**5)}")
        if rng.random() < 0.05:
            drawn.append(rng.choice(("café", "naïve", "東京", "“quoted”", "🌊")))
        made.append(" ".join(drawn) + rng.choice(("", ".", " , close up")))
    return made


@cache
def words() -> list[str]:
    """Return the whole words of CLIP's tokenizer, the frequent ones first."""
    tokens = open_clip.SimpleTokenizer().encoder
    whole = (token.removesuffix("</w>") for token in tokens if token.endswith("</w>"))
    return [word for word in whole if word.isascii() and word.isalpha() and len(word) > 1]
