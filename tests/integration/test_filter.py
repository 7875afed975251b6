"""``vlp filter`` as a person runs it: a process, from shards to clean shards or a list of them."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from curation_support import contents, filtered, many

from data_pipelines import toy
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.keep_list import read_copies
from data_pipelines.shards import open_shards, write_shards

ROOT = Path(__file__).parents[2]
KEEP = ("decodable", "caption_words(min={})", "exact_duplicate(by='pair')")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with four shards of the toy world, defects included."""
    folder = tmp_path_factory.mktemp("filter")
    write_shards(toy.draw_training(120, 5), folder / "raw", samples_per_shard=30)
    return folder


def run(folder, out, *options, words=4):
    """Filter in a process of its own, and return its report, which is its result, too."""
    keep = [rule.format(words) for rule in KEEP]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "vlp", "filter", "raw", out, "--keep", *keep, "--json", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((folder / out / "report.json").read_text())
    assert json.loads(ran.stdout) == report
    return report


def expected(folder, words):
    """Return the keys that pass, by a loop over the shards."""
    seen, keys = set(), []
    for one in open_shards(folder / "raw"):
        digest = hashlib.sha256(one.image).hexdigest(), one.text
        is_broken = one.metadata[toy.MARK] == "broken_file"
        if not is_broken and len(one.text.split()) >= words and digest not in seen:
            seen.add(digest)
            keys.append(one.key)
    return keys


def test_shards_become_clean_shards_and_nothing_is_done_twice(folder):
    first = run(folder, "clean", "--samples-per-shard", "40")
    keys = expected(folder, 4)
    assert 60 < len(keys) < 118
    clean = {one.key: one for one in open_shards(folder / "clean")}
    assert clean == {one.key: one for one in open_shards(folder / "raw") if one.key in set(keys)}
    assert (first["samples_in"], first["samples_out"]) == (120, len(keys))
    assert first["timing"]["scores_reused"] == 0
    written = {path.relative_to(folder / "clean").parts[0] for path in folder.glob("clean/*")}
    assert written >= {"report.html", "README.md", "manifest.json", "sizes.json", "decisions"}
    assert "<html" in (folder / "clean" / "report.html").read_text()
    before = contents(folder / "clean")

    again = run(folder, "clean", "--samples-per-shard", "40")
    assert again["timing"] == {"scores_reused": 4, "scorers": {}}
    assert contents(folder / "clean") == before
    assert {**again, "timing": 0} == {**first, "timing": 0}

    keep, options = [rule.format(6) for rule in KEEP], {"engine": Engine(kind="inline")}
    other = filter_shards(
        str(folder / "raw"), folder / "clean", keep=keep, overwrite=True, **options
    )
    assert other["timing"] == {"scores_reused": 4, "scorers": {}}
    assert sorted(one.key for one in open_shards(folder / "clean")) == sorted(expected(folder, 6))


def test_a_list_names_what_shards_would_hold_and_loads_no_torch(folder):
    code = (
        "import sys; from data_pipelines import engine; from vlp.cli import run\n"
        "engine.Processes = None  # few samples start no pool\n"
        "run(sys.argv[1:]); print('torch' in sys.modules)\n"
    )
    keep = [rule.format(5) for rule in KEEP]
    argv = ["filter", "raw", "list", "--keep-list", "--quiet", "--keep", *keep]
    ran = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=folder, capture_output=True, text=True
    )
    assert ran.stdout.splitlines()[-1] == "False", ran.stderr
    assert not list((folder / "list").glob("*.tar"))
    shards = open_shards(folder / "raw")
    copies = [int(own) for part in read_copies(str(folder / "list"), shards) for own in part]
    kept = [entry.key for entry, count in zip(shards.entries, copies, strict=True) if count]
    assert kept == expected(folder, 5)


def test_a_pool_writes_what_one_process_writes(tmp_path):
    keep = ("caption_words(min=2)", "image_side(min=21, top=0.7)", "exact_duplicate(by='pair')")
    samples = many(24)
    random.Random(1).shuffle(samples)
    filtered(tmp_path, samples, *keep, per_shard=12, out="one")
    filtered(tmp_path, samples, *keep, per_shard=12, out="two", engine=Engine(workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
