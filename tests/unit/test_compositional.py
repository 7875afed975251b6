import json

import pytest
import torch
import torch.nn.functional as F
from encoded_support import encoded_set, sample, written
from tests_support import picture

from data_pipelines import toy
from data_pipelines.encoded import encode_dataset
from data_pipelines.toy_compositions import CHANGES, draw_compositions
from eval.choices import Item, captions_of, choose
from eval.compositional_sets import (
    SUGAR_CREPE,
    items_of_samples,
    read_item_set,
    relations_left_out,
)
from eval.evaluators.compositional import Compositional
from eval.features import Encode
from eval.result import mean_of
from vlp.encode import encode_images, encode_texts
from vlp.errors import UserError
from vlp.image import decode, open_image


@pytest.fixture
def pictures(tmp_path):
    """A folder with six pictures, 0.png to 5.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(picture(["red", "green", "blue"][i % 3], noise=i))
    return folder


@pytest.fixture
def sugar(tmp_path):
    """SugarCrepe's seven files, of two items each but one with three."""
    folder = tmp_path / "sugar"
    folder.mkdir()
    for number, kind in enumerate(SUGAR_CREPE):
        entries = {
            str(i): {
                "filename": f"{(number + i) % 6}.png",
                "caption": f"true {kind} {i}",
                "negative_caption": f"false {kind} {i}",
            }
            for i in range(3 if kind == "swap_obj" else 2)
        }
        (folder / f"{kind}.json").write_text(json.dumps(entries))
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def random_items(seed):
    """Items of one picture and of two, with captions that share words and features with ties."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(20):
        images = torch.randperm(8, generator=generator)[: 1 + number % 2].tolist()
        words = torch.randperm(12, generator=generator)[:4].tolist()
        items.append(
            Item(tuple(images), tuple(f"caption {w}" for w in words), f"kind {number % 3}")
        )
    features = (torch.randint(-1, 2, (rows, 4), generator=generator).float() for rows in (8, 12))
    images, texts = features
    return items, images, texts[: len(captions_of(items))]


@pytest.mark.parametrize("seed", range(5))
def test_margins_equal_a_naive_loop_and_a_tie_is_no_hit(seed):
    items, images, texts = random_items(seed)
    captions = captions_of(items)
    found = choose(images, texts, items)
    row = 0
    for number, item in enumerate(items):
        for place, image in enumerate(item.images):
            scores = [(images[image] @ texts[captions.index(c)]).item() for c in item.captions]
            false = [score for i, score in enumerate(scores) if i != place]
            assert found.item[row] == number
            assert found.caption[row].item() == scores[place] - max(false)
            own = texts[captions.index(item.captions[place])]
            others = [(images[i] @ own).item() for i in item.images if i != image]
            margin = found.picture[row].item()
            assert margin == scores[place] - max(others) if others else margin != margin
            row += 1
    assert row == len(found.item)
    ties = encoded_set([sample(0, "yes", false_captions=["no"])], torch.ones(1, 4))
    (item,) = items_of_samples(ties.samples)
    assert not (choose(ties.image, torch.ones(2, 4), [item]).caption > 0).any()


def test_winoground_scores_are_those_of_its_paper(pictures, tmp_path, encoder):
    """Text: both pictures choose their caption. Image: both captions theirs. Group: both of it."""
    entries = [
        {"image_0": "0", "image_1": "1", "caption_0": "a b", "caption_1": "b a"},
        {"image_0": "2.png", "image_1": "3.png", "caption_0": "c d", "caption_1": "d c"},
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    task = Compositional(benchmark="winoground", files=str(path), images=str(pictures))
    found = task(Encode(encoder), encoded_set([sample(0)], torch.ones(1, 64))).figures
    images = encode_images(encoder, [open_image(str(pictures / f"{i}.png")) for i in range(4)])
    texts = encode_texts(encoder, ["a b", "b a", "c d", "d c"])
    naive = []
    for start in (0, 2):
        s = images[start : start + 2] @ texts[start : start + 2].T  # [image, caption]
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        naive.append((bool(text), bool(image), bool(text and image)))
    expected = [sum(column) / 2 for column in zip(*naive, strict=True)]
    names = ("text_score", "image_score", "group_score")
    assert [found[f"compositional/{name}"] for name in names] == expected
    assert found["compositional/chance"] == 0.5


def test_sugar_crepe_gives_seven_kinds_three_means_macro_and_micro(sugar, pictures, encoder):
    task = Compositional(benchmark="sugar_crepe", files=str(sugar), images=str(pictures), name="s")
    result = task(Encode(encoder), encoded_set([sample(0)], torch.ones(1, 64)))
    found = result.figures
    assert found["s/items"] == 15
    hits = {}
    for kind in SUGAR_CREPE:
        entries = json.loads((sugar / f"{kind}.json").read_text()).values()
        of = []
        for entry in entries:
            image = encode_images(encoder, [open_image(str(pictures / entry["filename"]))])
            true, false = encode_texts(encoder, [entry["caption"], entry["negative_caption"]])
            of.append(bool(image[0] @ true > image[0] @ false))
        hits[kind] = of
    shares = {kind: sum(of) / len(of) for kind, of in hits.items()}
    for kind, share in shares.items():
        assert found[f"s/{kind}/accuracy"] == pytest.approx(share)
    for family, count in (("add", 2), ("replace", 3), ("swap", 2)):
        mean = sum(share for kind, share in shares.items() if kind.startswith(family)) / count
        assert found[f"s/{family}"] == pytest.approx(mean)
    assert found["s/macro_accuracy"] == pytest.approx(sum(shares.values()) / 7)
    assert found["s/accuracy"] == pytest.approx(sum(sum(of) for of in hits.values()) / 15)
    assert result.num_images == 6
    again = result.resample(torch.arange(6))
    again |= {name: mean_of(of) for name, of in result.per_image.items()}
    for name, value in again.items():
        assert value == pytest.approx(found[name]), name
    assert set(found) - set(again) == {"s/chance", "s/items"}


def test_a_single_file_of_sugar_crepe_is_a_set_of_its_own(sugar, pictures):
    found = read_item_set("sugar_crepe", str(sugar / "swap_obj.json"), str(pictures))
    assert len(found.items) == 3
    assert found.families == {"swap": ["swap_obj"]}


def visual_genome(count, pictures, **fields):
    box = {"bbox_x": 2, "bbox_y": 4, "bbox_w": 20, "bbox_h": 10}
    captions = {"true_caption": "the cat on the mat", "false_caption": "the mat on the cat"}
    return [{"image_path": f"{i % 6}.png", **box, **captions, **fields} for i in range(count)]


def test_relations_that_do_not_count_and_rare_attributes_are_left_out(pictures, tmp_path):
    entries = visual_genome(3, pictures, relation_name="on")
    entries += visual_genome(2, pictures, relation_name="next to")
    path = write(tmp_path / "visual_genome_relation.json", entries)
    found = read_item_set("vg_relation", str(path), str(pictures))
    assert [item.kind for item in found.items] == ["on"] * 3
    assert found.items[0].captions == ("the cat on the mat", "the mat on the cat")
    assert decode(found.pictures[0].read()).size == (20, 10)
    entries = visual_genome(25, pictures, attributes=["red", "big"])
    entries += visual_genome(24, pictures, attributes=["big", "red"])
    path = write(tmp_path / "visual_genome_attribution.json", entries)
    found = read_item_set("vg_attribution", str(path), str(pictures))
    assert {item.kind for item in found.items} == {"red_big"}
    assert len(found.items) == 25
    assert len(set(relations_left_out())) == 157


def test_frozen_orders_are_read_as_they_are(pictures, tmp_path):
    options = ["a cat on a mat", "a mat on a cat", "on a a cat mat"]
    path = write(tmp_path / "order.json", [{"image": "0.png", "caption_options": options}])
    (item,) = read_item_set("order", str(path), str(pictures)).items
    assert item.captions == tuple(options)


@pytest.fixture(scope="module")
def pairs():
    return list(draw_compositions(60, seed=0))


def test_toy_pairs_are_held_out_and_differ_by_one_change(pairs):
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        scenes = [
            toy.Scene(s.metadata["layout"], tuple(toy.Shape(**x) for x in s.metadata["shapes"]))
            for s in (first, second)
        ]
        assert all(scene.is_held_out for scene in scenes)
        assert scenes[0].description != scenes[1].description
        kind = first.metadata["kind"]
        assert kind.startswith("new_") == any(scene.shows_new_pair for scene in scenes)
        changed = CHANGES[kind.removeprefix("new_")](*scenes[0].shapes)
        assert changed == scenes[1].shapes
        assert first.metadata["false_captions"] == [second.text]
        assert second.metadata["false_captions"] == [first.text]
        words = [sorted(s.text.split()) for s in (first, second)]
        assert (words[0] == words[1]) == ("swap" in kind)
    kinds = [s.metadata["kind"] for s in pairs]
    assert {kinds.count(f"{new}{kind}") for new in ("", "new_") for kind in CHANGES} == {10}
    again = list(draw_compositions(10, seed=0))
    assert [s.image for s in again] == [s.image for s in pairs[:20]]


def test_who_reads_the_captions_alone_is_at_chance_on_toy_pairs(pairs, encoder, tmp_path):
    encoded = encode_dataset(encoder, written(tmp_path / "shards", pairs))
    found = Compositional()(Encode(encoder), encoded)
    assert found.figures["compositional/text_only"] == 0.5
    assert found.figures["compositional/chance"] == 0.5
    assert found.figures["compositional/items"] == 60
    per_image = found.per_image["compositional/accuracy"]
    assert per_image.values.mean().item() == found.figures["compositional/accuracy"]


def test_who_knows_what_a_picture_shows_is_right_about_every_toy_pair(pairs, encoder):
    """Images that have their caption's feature are the best that an encoder can do."""
    text = encode_texts(encoder, [s.text for s in pairs])
    found = Compositional()(Encode(encoder), encoded_set(pairs, text, text)).figures
    for name in ("accuracy", "macro_accuracy", "text_score", "image_score", "group_score"):
        assert found[f"compositional/{name}"] == 1
    assert found["compositional/ties"] == 0


def test_a_false_caption_that_is_the_true_one_is_a_tie(encoder, pictures, tmp_path):
    entry = {"filename": "0.png", "caption": "a dog", "negative_caption": "a dog"}
    path = write(tmp_path / "swap_obj.json", {"0": entry})
    task = Compositional(benchmark="sugar_crepe", files=str(path), images=str(pictures))
    published = task(Encode(encoder), encoded_set([sample(0)], torch.ones(1, 64))).figures
    own = encoded_set([sample(0, "a dog", false_captions=["a dog"])], torch.ones(1, 64))
    for found in (published, Compositional()(Encode(encoder), own).figures):
        assert found["compositional/ties"] == 1
        assert found["compositional/accuracy"] == 0


def test_a_caption_that_gives_itself_away_shows_in_the_text_only_score(encoder):
    samples = [sample(i, "a dog", false_captions=[f"the of the {i}"]) for i in range(6)]
    image = encode_texts(encoder, ["a dog"]).expand(6, -1) + 0.01 * torch.randn(6, 64)
    found = Compositional()(
        Encode(encoder), encoded_set(samples, F.normalize(image, dim=1))
    ).figures
    assert found["compositional/text_only"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "sugar"}, "no benchmark 'sugar'. Did you mean sugar_crepe"),
        ({"files": "x.json"}, "has files and no benchmark"),
        ({"benchmark": "order"}, "needs the files of order"),
        ({"benchmark": "order", "files": "none.json", "images": "."}, r"Cannot read none\.json"),
        (
            {"benchmark": "order", "files": "x", "images": "nowhere"},
            "no folder of pictures nowhere",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_is_encoded(options, message):
    with pytest.raises(UserError, match=message):
        Compositional(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "0.png"}], "an entry has no 'caption_options'"),
        ({"image": "0.png"}, "is of another form"),
        ([], "holds no item"),
        (
            [{"image": "9.png", "caption_options": ["a", "b"]}],
            r"names 1 pictures .* such as 9\.png",
        ),
    ],
)
def test_a_file_of_another_form_or_with_missing_pictures_is_refused(
    pictures, tmp_path, content, message
):
    path = write(tmp_path / "order.json", content)
    with pytest.raises(UserError, match=message):
        Compositional(benchmark="order", files=str(path), images=str(pictures))


def test_shards_without_false_captions_are_refused(encoder):
    with pytest.raises(UserError, match="no sample with false_captions in its metadata"):
        Compositional()(Encode(encoder), encoded_set([sample(0)], torch.ones(1, 64)))
    with pytest.raises(UserError, match="false_captions of 00000 are 'one'"):
        items_of_samples([sample(0, false_captions="one")])
