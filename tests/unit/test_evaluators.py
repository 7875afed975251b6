import io
import json
import tarfile

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from data_pipelines.encoded import encode_dataset
from eval.evaluators.retrieval import Retrieval
from eval.evaluators.zero_shot import ZeroShot
from eval.features import Encode, check_features
from eval.open_dataset import open_dataset
from eval.run import How, build_evaluators, evaluate, run_evaluators
from vlp.encode import encode_texts
from vlp.errors import UserError
from vlp.spec import names

COLOURS = ["red", "green", "blue", "yellow", "black", "orange"]


def drawn(colour, side=30):
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).rectangle((5, 5, side, side), fill=colour)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def write_tar(path, samples):
    """Write {key: {extension: content}} by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                data = content if isinstance(content, bytes) else str(content).encode()
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path.parent)


@pytest.fixture
def shards(tmp_path):
    """12 samples: two sizes of a square in each of six colours, captions equal by colour."""
    return write_tar(
        tmp_path / "shards" / "000000.tar",
        {
            f"{colour}{side}": {
                "png": drawn(colour, side),
                "txt": f"A {colour}  Square" if side == 20 else f"a {colour} square",
                "json": json.dumps({"colour": colour, "place": COLOURS.index(colour)}),
            }
            for side in (20, 30)
            for colour in COLOURS
        },
    )


@pytest.fixture
def captioned(tmp_path):
    """CLIP_benchmark's retrieval layout: a caption on each line, one shared by two images."""
    write_tar(
        tmp_path / "coco" / "test" / "0.tar",
        {
            "0": {"png": drawn("red"), "txt": "a red square\na square\n"},
            "1": {"png": drawn("blue"), "txt": "a blue square\n\nA square\nthe sea"},
            "2": {"png": drawn("green"), "txt": "grass"},
        },
    )
    (tmp_path / "coco" / "dataset_type.txt").write_text("retrieval\n")
    return str(tmp_path / "coco" / "test")


def encode(encoder, shards):
    return encode_dataset(encoder, open_dataset(shards), batch_size=5)


def naive_recall(similarity, matches, k):
    """The share of rows with a match among the k highest; ties against."""
    hits = []
    for row, own in zip(similarity.tolist(), matches, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i in own))
        hits.append(any(item in own for item in order[:k]))
    return sum(hits) / len(hits)


def test_equal_captions_are_one_text_with_several_images(encoder, shards):
    encoded = encode(encoder, shards)
    found = Retrieval()(Encode(encoder), encoded).figures
    assert (found["retrieval/images"], found["retrieval/texts"]) == (12, 6)
    assert found["retrieval/image_to_text/chance@1"] == pytest.approx(1 / 6)
    assert found["retrieval/text_to_image/chance@1"] == pytest.approx(2 / 12)
    assert "retrieval/image_to_text/recall@10" not in found  # there are six texts
    assert "retrieval/text_to_image/recall@10" in found
    similarity = encoded.image @ encoded.text[:6].T
    own = [{i % 6} for i in range(12)]
    for k in (1, 5):
        naive = naive_recall(similarity, own, k)
        assert found[f"retrieval/image_to_text/recall@{k}"] == pytest.approx(naive)
        naive = naive_recall(similarity.T, [{i, i + 6} for i in range(6)], k)
        assert found[f"retrieval/text_to_image/recall@{k}"] == pytest.approx(naive)
    both = (
        found["retrieval/image_to_text/recall@1"] + found["retrieval/text_to_image/recall@1"]
    ) / 2
    assert found["retrieval/mean_recall@1"] == pytest.approx(both)


def test_each_line_is_a_caption_in_the_retrieval_layout(encoder, captioned):
    encoded = encode(encoder, captioned)
    found = Retrieval(k=(1, 2))(Encode(encoder), encoded).figures
    captions = ["a red square", "a square", "a blue square", "the sea", "grass"]
    assert found["retrieval/texts"] == len(captions)
    similarity = encoded.image @ encode_texts(encoder, captions).T
    own_texts, own_images = [{0, 1}, {1, 2, 3}, {4}], [{0}, {0, 1}, {1}, {1}, {2}]
    for k in (1, 2):
        expected = naive_recall(similarity, own_texts, k)
        assert found[f"retrieval/image_to_text/recall@{k}"] == pytest.approx(expected)
        expected = naive_recall(similarity.T, own_images, k)
        assert found[f"retrieval/text_to_image/recall@{k}"] == pytest.approx(expected)
    assert found["retrieval/image_to_text/chance@1"] == pytest.approx((2 + 3 + 1) / 3 / 5)
    assert found["retrieval/text_to_image/chance@1"] == pytest.approx((1 + 2 + 1 + 1 + 1) / 5 / 3)
    assert Retrieval(lines=False)(Encode(encoder), encoded).figures["retrieval/texts"] == 3


def test_zero_shot_equals_a_naive_loop_over_samples(encoder, shards):
    encoded = encode(encoder, shards)
    task = ZeroShot(classes=COLOURS, label="colour", templates=("a {}", "{c}"), name="colours")
    found = task(Encode(encoder), encoded).figures
    weights = torch.stack(
        [
            F.normalize(encode_texts(encoder, [f"a {name}", name]).mean(0), dim=-1)
            for name in COLOURS
        ]
    )
    similarity = encoded.image @ weights.T
    own = [{i % 6} for i in range(12)]
    assert found["colours/acc@1"] == pytest.approx(naive_recall(similarity, own, 1))
    assert found["colours/acc@5"] == pytest.approx(naive_recall(similarity, own, 5))
    # Each colour has two images, so every class weighs the same already.
    assert found["colours/mean_per_class_recall"] == pytest.approx(found["colours/acc@1"])
    assert found["colours/chance"] == pytest.approx(1 / 6)
    assert found["colours/samples"] == 12
    by_place = ZeroShot(classes=COLOURS, label="place", templates=("a {}", "{c}"), name="colours")
    assert by_place(Encode(encoder), encoded).figures == found


def test_samples_of_other_classes_are_left_out_and_counted(encoder, shards, capsys):
    found = ZeroShot(classes=COLOURS[:4], label="colour")(
        Encode(encoder), encode(encoder, shards)
    ).figures
    assert found["zero_shot/samples"] == 8
    assert found["zero_shot/left_out"] == 4
    assert "zero_shot/acc@5" not in found
    assert "left out 4 samples whose colour is no class" in capsys.readouterr().out


def test_clip_benchmarks_classification_layout_needs_no_options(model, tmp_path, capsys):
    folder = write_tar(
        tmp_path / "set" / "test" / "0.tar",
        {f"s{i}": {"png": drawn(c), "cls": i} for i, c in enumerate(COLOURS)},
    )
    (tmp_path / "set" / "classnames.txt").write_text("\n".join(COLOURS))
    templates = tmp_path / "set" / "zeroshot_classification_templates.txt"
    templates.write_text("a photo of {c}.\n")
    found = evaluate(str(model), folder, tasks=["zero_shot"])
    assert found["metrics"]["zero_shot/samples"] == 6
    assert "6 classes, 1 template: 'a photo of {c}.'" in capsys.readouterr().out
    templates.unlink()
    evaluate(str(model), folder, tasks=["zero_shot"])
    assert "no templates: the caption of a class is its bare name" in capsys.readouterr().out


def test_figures_do_not_depend_on_the_batch_size(encoder, shards):
    evaluators = build_evaluators(["retrieval", f"zero_shot(classes={COLOURS}, label='colour')"])
    found = [
        run_evaluators(encode, encode.dataset(open_dataset(shards)), evaluators)
        for encode in (Encode(encoder, batch_size=size) for size in (1, 12))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_evaluate_writes_what_it_returns_and_replaces_only_its_own(model, shards, tmp_path):
    out = tmp_path / "out"
    write_tar(
        tmp_path / "shards" / "000001.tar",
        {"bad": {"png": b"no picture", "txt": "a broken file"}, "alone": {"png": drawn("red")}},
    )
    found = evaluate(str(model), shards, tasks=["retrieval"], out=out, how=How(batch_size=4))
    assert json.loads((out / "metrics.json").read_text()) == found
    assert found["samples"] == 12
    assert {reason: fault["count"] for reason, fault in found["faults"].items()} == {
        "image format is not known": 1,
        "no caption": 1,
    }
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    evaluate(str(model), shards, tasks=["retrieval"], out=out)
    with pytest.raises(UserError, match="written with another config: tasks was"):
        evaluate(str(model), shards, tasks=["retrieval(k=(1,))"], out=out)
    evaluate(str(model), shards, tasks=["retrieval(k=(1,))"], out=out, how=How(overwrite=True))


@pytest.mark.parametrize("name", names("eval.evaluators"))
def test_every_evaluator_is_built_by_its_name_and_carries_it(name):
    (evaluator,) = build_evaluators([name])
    assert evaluator.name == name
    (other,) = build_evaluators([f"{name}(name='other')"])
    assert other.name == "other"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "There is no task. Known: associations, "),
        (("retrieva",), "Did you mean retrieval"),
        (("retrieval(k=0)",), r"got k=0. Write k=\(1, 5, 10\)"),
        (("retrieval(k=(5, -1))",), "whole numbers from 1"),
        (("retrieval(k=())",), "whole numbers from 1"),
        (("retrieval", "retrieval(k=(1,))"), "both called 'retrieval'"),
        (("retrieval(name='captions')",), "'--features' and the task .* both called 'captions'"),
        (("retrieval(name='evaluated')",), "both called 'evaluated'"),
        (("zero_shot(classes='none.json')",), r"Cannot read none\.json"),
        (("zero_shot(classes=['cat'], templates=['a photo'])",), "'a photo' has no place"),
        (("zero_shot(part='concept')",), "part= and no file"),
        (("zero_shot",), r"no classnames\.txt in"),
    ],
)
def test_wrong_tasks_are_refused_before_the_model_is_loaded(shards, tasks, message):
    with pytest.raises(UserError, match=message):
        evaluate("no model", shards, tasks=tasks)


def test_features_that_are_nan_are_refused(encoder, shards):
    encoded = encode(encoder, shards)
    encoded.image[3, 0] = torch.nan
    with pytest.raises(UserError, match="image features that are NaN"):
        check_features(encoded)


def test_shards_of_which_nothing_can_be_read_are_refused(model, tmp_path):
    folder = write_tar(tmp_path / "bad" / "0.tar", {"a": {"png": b"no picture", "txt": "a cat"}})
    with pytest.raises(UserError, match=r"none could be read \(1 image format is not known\)"):
        evaluate(str(model), folder, tasks=["retrieval"])


def test_retrieval_without_captions_is_refused(encoder, tmp_path):
    folder = write_tar(tmp_path / "labels" / "0.tar", {"a": {"png": drawn("red"), "cls": 0}})
    with pytest.raises(UserError, match="retrieval needs captions"):
        Retrieval()(Encode(encoder), encode(encoder, folder))
