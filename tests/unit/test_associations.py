import itertools
import json

import pyarrow as pa
import pytest
import torch
from encoded_support import encoded_set, sample
from tests_support import picture

from eval.benchmark import read_preset
from eval.evaluators.associations import Associations
from eval.features import Encode
from eval.result import mean_of
from vlp.encode import encode_images, encode_texts
from vlp.errors import UserError
from vlp.image import open_image

ENTRIES = [
    {"cue": "Fire", "candidates": list("abcde"), "associations": ["a", "d"]},
    {"cue": "ocean", "candidates": list("fedcba"), "associations": ["f"]},
    {"cue": "leaf", "candidates": list("abcdefghij"), "associations": ["b", "c", "e"]},
]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate("abcdefghij"):
        data = picture(["red", "green", "blue", "black"][i % 4], noise=i)
        (folder / f"{name}.jpg").write_bytes(data)
    return folder


def write(tmp_path, entries):
    path = tmp_path / "winogavil.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return str(path)


def test_the_overlap_with_peoples_choice_equals_one_of_sets(encoder, pictures, tmp_path):
    task = Associations(files=write(tmp_path, ENTRIES), images=str(pictures))
    result = task(Encode(encoder), encoded_set([sample(0)], torch.ones(1, 64)))
    scores, chances = [], []
    for entry, caption in zip(ENTRIES, ("A fire", "An ocean", "A leaf"), strict=True):
        names, true = entry["candidates"], set(entry["associations"])
        images = encode_images(encoder, [open_image(str(pictures / f"{n}.jpg")) for n in names])
        similar = (images @ encode_texts(encoder, [caption])[0]).tolist()
        best = sorted(range(len(names)), key=lambda i, of=similar: -of[i])[: len(true)]
        chosen = {names[i] for i in best}
        scores.append(len(chosen & true) / len(chosen | true))
        draws = [set(draw) for draw in itertools.combinations(names, len(true))]
        chances.append(sum(len(d & true) / len(d | true) for d in draws) / len(draws))
    found = result.figures
    assert found["associations/jaccard"] == pytest.approx(sum(scores) / 3)
    assert found["associations/candidates_5_6/jaccard"] == pytest.approx(sum(scores[:2]) / 2)
    assert found["associations/candidates_10_12/jaccard"] == pytest.approx(scores[2])
    assert found["associations/chance"] == pytest.approx(sum(chances) / 3)
    assert result.num_images == 10
    for name, of in result.per_image.items():
        assert mean_of(of) == pytest.approx(found[name])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"cue": "x", "candidates": ["a"]}], "needs cue, candidates and associations"),
        ([{"cue": "x", "candidates": ["a"], "associations": ["b"]}], "cue 'x' is associated"),
        ([{"cue": "x", "candidates": ["z"], "associations": ["z"]}], r"1 pictures .* as z\.jpg"),
        ([], "holds no instance"),
    ],
)
def test_files_of_another_form_are_refused(pictures, tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        Associations(files=write(tmp_path, entries), images=str(pictures))


def test_the_arrow_file_of_datacomps_cache_gives_the_same_with_its_own_pictures(
    encoder, pictures, tmp_path
):
    files = write(tmp_path, ENTRIES)
    rows = [
        {**entry, "candidate_images": [cell(pictures / f"{n}.jpg") for n in entry["candidates"]]}
        for entry in ENTRIES
    ]
    path = tmp_path / "hf_cache" / "nlphuji___winogavil" / "test" / "winogavil-test.arrow"
    path.parent.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    nothing = encoded_set([sample(0)], torch.ones(1, 64))
    by_files = Associations(files=files, images=str(pictures))(Encode(encoder), nothing)
    task = Associations(files=str(path))
    assert task(Encode(encoder), nothing).figures == by_files.figures
    member = next(m for m in read_preset("datacomp38") if m.key == "misc/winogavil")
    assert member.find(tmp_path) == path
    encode = Encode(encoder)
    encoded = encode.dataset(task.dataset())
    assert len(encoded.samples) == 10
    encoder_calls: list[int] = []
    handle = encoder.visual.register_forward_hook(lambda *_: encoder_calls.append(1))
    assert task(encode, encoded).figures == by_files.figures
    handle.remove()
    assert not encoder_calls  # its pictures were the evaluated set


def cell(path):
    return {"bytes": path.read_bytes(), "path": path.name}


def test_files_that_are_not_given_are_asked_for(pictures):
    with pytest.raises(UserError, match=r"Write associations\(files='winogavil.jsonl'"):
        Associations().check(None)
    with pytest.raises(UserError, match="no folder of pictures images"):
        Associations(files="x.jsonl")
