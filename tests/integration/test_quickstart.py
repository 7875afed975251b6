"""The tour, as a newcomer takes it: it learns what it says, on data that it has not seen."""

import json
import subprocess
import sys

import open_clip
import pytest
import torch

from data_pipelines.shards import open_shards
from vlp.checkpoint import find_checkpoint, load_encoder
from vlp.image import ImageError, decode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """Take the tour once, in a process of its own; return its folder and its result."""
    out = tmp_path_factory.mktemp("tour") / "quickstart"
    argv = [sys.executable, "-m", "vlp", "quickstart", str(out), "--json"]
    said = subprocess.run(argv, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return out, json.loads(said.stdout)


def test_retrieval_is_far_above_chance_on_scenes_never_seen(tour):
    metrics, chance = tour[1]["metrics"], 1 / 600
    assert metrics["retrieval/image_to_text/recall@1"] > 20 * chance
    assert metrics["retrieval/text_to_image/recall@1"] > 20 * chance


def test_colours_by_shapes_are_named_zero_shot(tour):
    assert tour[1]["metrics"]["zero_shot/acc@1"] >= 0.8


def test_the_true_caption_of_two_is_chosen_more_often_than_by_chance(tour):
    """Chance is 0.5, for whoever reads the captions alone as well."""
    assert tour[1]["metrics"]["compositional/accuracy"] > 0.55


def test_no_image_and_no_caption_of_the_evaluation_is_in_training(tour):
    pixels, captions = set(), set()
    for sample in open_shards(tour[0] / "raw"):
        captions.add(sample.text.casefold())
        try:
            pixels.add(decode(sample.image).tobytes())
        except ImageError:
            continue
    scenes = list(open_shards(tour[0] / "scenes"))
    assert len(scenes) >= 500
    assert len({s.text.casefold() for s in scenes}) == len(scenes)
    for sample in [*scenes, *open_shards(tour[0] / "shapes")]:
        assert decode(sample.image).tobytes() not in pixels
    assert not captions & {s.text.casefold() for s in scenes}


def test_plain_open_clip_loads_the_checkpoint_of_the_tour(tour):
    folder = find_checkpoint(tour[0] / "run")
    peer, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    peer.eval()
    ours = load_encoder(tour[0] / "run")
    samples = list(open_shards(tour[0] / "scenes"))[:32]
    pictures = [decode(s.image) for s in samples]
    texts = [s.text for s in samples]
    mine = ours(torch.stack([ours.transform(p) for p in pictures]), ours.tokenizer(texts))
    with torch.no_grad():
        image = peer.encode_image(torch.stack([preprocess(p) for p in pictures]), normalize=True)
        text = peer.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(mine.image, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.text, text, atol=1e-5, rtol=0)


def test_the_tour_leaves_a_picture_of_what_was_found(tour):
    sheet = decode((tour[0] / "sheet.png").read_bytes())
    assert sheet.width > 400
    assert sheet.height > 400
