"""Features on disk: whole, the same whatever the workers, of shards, folders and tables."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests_support import pairs, picture

import data_pipelines.embed as embedding
from data_pipelines.embed import embed
from data_pipelines.encoded import encode_shards
from data_pipelines.engine import Engine
from data_pipelines.shards import open_shards, write_shards
from vlp.checkpoint import load_encoder
from vlp.errors import UserError
from vlp.features import open_features, read_metadata, stack
from vlp.image import decode
from vlp.index import build_index, load_index
from vlp.manifest import damage

INLINE = Engine(kind="inline")
COUNT = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder with the same pairs as shards, as files and as tables."""
    folder = tmp_path_factory.mktemp("inputs")
    samples = pairs(COUNT)
    write_shards(samples, folder / "shards", samples_per_shard=5)
    (folder / "files" / "a").mkdir(parents=True)
    rows = []
    for one in samples:
        path = folder / "files" / "a" / f"{one.key}.png"
        path.write_bytes(one.image)
        path.with_suffix(".txt").write_text(one.text)
        rows.append({"uid": one.key, "image": f"files/a/{path.name}", "caption": one.text})
    table = pa.Table.from_pylist(rows)
    (folder / "table.jsonl").write_text("\n".join(["{no json", *map(json.dumps, rows), ""]))
    held = table.set_column(1, "image", pa.array([one.image for one in samples]))
    pq.write_table(held, folder / "held.parquet", row_group_size=4)
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("source", ["shards", "files", "table.jsonl", "held.parquet"])
def test_features_are_those_of_the_encoder_whatever_the_samples_lie_in(
    source, inputs, model, tmp_path
):
    result = embed(
        str(model), str(inputs / source), tmp_path / "out", engine=INLINE, samples_per_part=10
    )
    assert (result["samples"], result["dim"]) == (COUNT, 64)
    expected = encode_shards(load_encoder(str(model)), open_shards(inputs / "shards"))
    for kind in ("image", "text"):
        parts = stack(tmp_path / "out", kind).parts
        assert [len(part) for part in parts] == [10, 10, 4]
        np.testing.assert_allclose(np.concatenate(parts), getattr(expected, kind), atol=1e-6)
    metadata = read_metadata(tmp_path / "out").to_pylist()
    assert [row["caption"] for row in metadata] == [one.text for one in pairs(COUNT)]
    assert [row["key"][-5:] for row in metadata] == [one.key for one in pairs(COUNT)]
    assert damage(tmp_path / "out") is None
    build_index(tmp_path / "out", tmp_path / "index")
    index = load_index(tmp_path / "index")
    hit = index.hits(stack(tmp_path / "out", "image")[7:8][0], 1)[0]
    if source == "held.parquet":
        with pytest.raises(UserError, match=r"Where the picture of 00007 lies is not known"):
            index.picture(hit)
    else:
        assert index.picture(hit) == pairs(8)[7].image


@pytest.mark.slow
def test_bytes_are_the_same_for_every_engine_and_a_second_run(inputs, model, tmp_path):
    found = []
    for name, engine in (("one", INLINE), ("two", Engine(workers=2))):
        out = tmp_path / name
        embed(str(model), str(inputs / "shards"), out, engine=engine, samples_per_part=5)
        found.append(contents(out))
    assert found[0] == found[1]
    assert {f"img_emb/img_emb_{n}.npy" for n in range(5)} <= set(found[0])
    embed(str(model), str(inputs / "shards"), tmp_path / "one", engine=INLINE, samples_per_part=5)
    assert contents(tmp_path / "one") == found[0]


@pytest.mark.parametrize(("only", "pooled"), [("images", True), ("texts", False), (None, True)])
def test_only_what_is_asked_for_is_encoded_and_written(only, pooled, inputs, model, tmp_path):
    options = {"only": only, "pooled": pooled, "dtype": "fp16", "engine": INLINE}
    embed(str(model), str(inputs / "shards"), tmp_path / "out", **options)
    expected = encode_shards(load_encoder(str(model)), open_shards(inputs / "shards"), pooled=True)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    for kind, name, lacks in (("image", "img_emb", "texts"), ("text", "text_emb", "images")):
        assert (name in there) == (only != lacks)
        assert (f"{kind}_pooled" in there) == (only != lacks and pooled)
        for folder, attribute in ((name, kind), (f"{kind}_pooled", f"{kind}_pooled")):
            if folder in there:
                rows = np.load(tmp_path / "out" / folder / f"{folder}_0.npy")
                wanted = getattr(expected, attribute).numpy()
                assert rows.dtype == np.float16
                np.testing.assert_allclose(rows, wanted, atol=2e-3 * np.abs(wanted).max())
    if only == "texts":
        with pytest.raises(UserError, match="holds no features of images"):
            build_index(tmp_path / "out", tmp_path / "index")
    if only == "images":
        assert build_index(tmp_path / "out", tmp_path / "index")["features"] == COUNT
        with pytest.raises(UserError, match="holds no features of texts"):
            open_features(tmp_path / "out")


def test_pictures_without_captions_and_captions_without_pictures(inputs, model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for number in range(3):
        (bare / f"{number}.png").write_bytes(pairs(3)[number].image)
    with pytest.raises(UserError, match=r"No sample of .* could be read \(3 no caption\)"):
        embed(str(model), str(bare), tmp_path / "out", engine=INLINE)
    assert (
        embed(str(model), str(bare), tmp_path / "out", engine=INLINE, only="images")["samples"] == 3
    )
    (tmp_path / "texts.csv").write_text("caption,number\na red field,1\n,2\na blue field,3\n")
    with pytest.raises(UserError, match="no column 'image'"):
        embed(str(model), str(tmp_path / "texts.csv"), tmp_path / "texts", engine=INLINE)
    result = embed(
        str(model), str(tmp_path / "texts.csv"), tmp_path / "texts", engine=INLINE, only="texts"
    )
    assert (result["samples"], result["faults"]["no caption"]["count"]) == (2, 1)
    assert read_metadata(tmp_path / "texts")["key"].to_pylist() == ["000000000", "000000002"]


def test_what_cannot_be_read_is_counted_by_reason_and_leaves_no_hole(inputs, model, tmp_path):
    samples = pairs(12)
    samples[2] = replace(samples[2], image=b"no picture")
    samples[7] = replace(samples[7], image=samples[7].image[:80])
    write_shards(samples, tmp_path / "shards", samples_per_shard=4)
    result = embed(
        str(model), str(tmp_path / "shards"), tmp_path / "out", engine=INLINE, samples_per_part=4
    )
    assert result["samples"] == 10
    assert sum(fault["count"] for fault in result["faults"].values()) == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["faults"] == result["faults"]
    assert manifest["model_hash"]
    keys = read_metadata(tmp_path / "out")["key"].to_pylist()
    assert keys == [f"{n:05d}" for n in range(12) if n not in (2, 7)]


def test_what_is_no_unicode_is_counted_or_kept_as_json_spells_it(model, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "features"
    folder.mkdir()
    said = {
        "a": ("a dog", "half \ud800"),
        os.fsdecode(b"caf\xe9"): ("a", "b"),
        "b": ("\ud800", "c"),
    }
    for name, (caption, title) in said.items():
        (folder / f"{name}.png").write_bytes(picture("red", (40, 32)))
        (folder / f"{name}.json").write_text(json.dumps({"caption": caption, "title": title}))
    told = embed(str(model), str(folder), out, engine=Engine(kind="inline"))
    assert {reason: fault["count"] for reason, fault in told["faults"].items()} == {
        "key is no UTF-8": 1,
        "caption is no UTF-8": 1,
    }
    build_index(out, tmp_path / "index")
    [hit] = load_index(tmp_path / "index").hits(stack(out, "image")[:1][0], 5)
    assert (hit.key, hit.metadata["fields"]["title"]) == ("a", "half \ud800")


def test_a_run_goes_on_with_the_parts_that_are_still_valid(inputs, model, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    shutil.copytree(inputs / "shards", shards)
    arguments = (str(model), str(shards), tmp_path / "out")
    embed(*arguments, engine=INLINE, samples_per_part=5)
    part = tmp_path / ".out.part"
    shutil.copytree(tmp_path / "out", part)
    (part / ".begun").write_text("embed")
    shutil.rmtree(tmp_path / "out")
    (part / "metadata" / "metadata_1.parquet").unlink()  # it was killed before this one
    (part / "img_emb" / ".img_emb_1.npy.123.part").write_bytes(b"half")
    (part / "img_emb" / "img_emb_9.npy").write_bytes(b"of another cut")
    write_shards(pairs(30)[25:], tmp_path / "other", samples_per_shard=5)
    shutil.copy(tmp_path / "other" / "000000.tar", shards / "000003.tar")
    encoded = encoded_first_keys(monkeypatch)
    embed(*arguments, engine=INLINE, samples_per_part=5)
    assert encoded == ["00005", "00025"]
    again = contents(tmp_path / "out")
    embed(str(model), str(shards), tmp_path / "anew", engine=INLINE, samples_per_part=5)
    assert again == contents(tmp_path / "anew")


@pytest.mark.parametrize("loss", ["a feature file is empty", "the metadata is empty"])
def test_a_part_that_lost_its_bytes_is_embedded_again(loss, inputs, model, tmp_path, monkeypatch):
    arguments = (str(model), str(inputs / "shards"), tmp_path / "out")
    embed(*arguments, engine=INLINE, samples_per_part=5)
    whole = contents(tmp_path / "out")
    part = (tmp_path / "out").rename(tmp_path / ".out.part")
    (part / ".begun").write_text("embed")
    name = "text_emb_1.npy" if loss.startswith("a feature") else "metadata_1.parquet"
    next(part.rglob(name)).write_bytes(b"")
    encoded = encoded_first_keys(monkeypatch)
    embed(*arguments, engine=INLINE, samples_per_part=5)
    assert encoded == ["00005"]
    assert contents(tmp_path / "out") == whole


def test_a_second_run_embeds_only_what_has_changed(inputs, model, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    shutil.copytree(inputs / "shards", shards)
    arguments = (str(model), str(shards), tmp_path / "out")
    embed(*arguments, engine=INLINE, samples_per_part=5)
    whole, encoded = contents(tmp_path / "out"), encoded_first_keys(monkeypatch)
    embed(*arguments, engine=INLINE, samples_per_part=5)
    assert encoded == []
    assert contents(tmp_path / "out") == whole
    write_shards(pairs(30)[25:], tmp_path / "other", samples_per_shard=5)
    shutil.copy(tmp_path / "other" / "000000.tar", shards / "000003.tar")
    embed(*arguments, engine=INLINE, samples_per_part=5)
    assert encoded == ["00025"]
    embed(*arguments, engine=INLINE, samples_per_part=5, pooled=True, overwrite=True)
    assert encoded == ["00025", "00000", "00005", "00010", "00025", "00020"]


def encoded_first_keys(monkeypatch):
    """Return a list that gets the first key of each part that is encoded from now on."""
    encoded, before = [], embedding.encode_dataset

    def counted(encoder, dataset, **options):
        encoded.append(dataset.keys[0])
        return before(encoder, dataset, **options)

    monkeypatch.setattr(embedding, "encode_dataset", counted)
    return encoded


def test_features_of_clip_retrieval_are_read(inputs, model, tmp_path):
    encoder = load_encoder(str(model))
    rows = encode_shards(encoder, open_shards(inputs / "shards"))
    theirs = tmp_path / "theirs"
    for name in ("img_emb", "text_emb", "metadata"):
        (theirs / name).mkdir(parents=True)
    paths = [str(inputs / "files" / "a" / f"{one.key}.png") for one in pairs(COUNT)]
    for number, chosen in enumerate((slice(0, 10), slice(10, COUNT))):
        np.save(
            theirs / "img_emb" / f"img_emb_{number}.npy", rows.image[chosen].numpy().astype("f2")
        )
        np.save(
            theirs / "text_emb" / f"text_emb_{number}.npy", rows.text[chosen].numpy().astype("f2")
        )
        table = pa.table(
            {
                "image_path": paths[chosen],
                "caption": [one.text for one in pairs(COUNT)][chosen],
                "colour": [one.metadata["colour"] for one in pairs(COUNT)][chosen],
            }
        )
        pq.write_table(table, theirs / "metadata" / f"metadata_{number}.parquet")
    assert open_features(theirs).row(paths[12], pairs(COUNT)[12].text) == 12
    with pytest.raises(UserError, match="Name it with --model"):
        build_index(theirs, tmp_path / "index")
    build_index(theirs, tmp_path / "index", model=str(model))
    hit = load_index(tmp_path / "index").hits(rows.image[12].numpy(), 1)[0]
    assert (hit.key, hit.metadata["fields"]) == (paths[12], {"colour": "red"})
    assert abs(hit.score - 1) < 1e-3
    assert decode(load_index(tmp_path / "index").picture(hit)).size == (40, 32)


@pytest.mark.parametrize("source", ["files", "shards"])
def test_clip_retrieval_finds_rows_where_it_looks_for_them(source, inputs, model, tmp_path):
    """It takes files in the order of their names, where 10 comes before 2, and counts rows."""
    options = {"engine": INLINE, "samples_per_part": 2}
    embed(str(model), str(inputs / source), tmp_path / "out", **options)
    files = {
        name: sorted((tmp_path / "out" / name).glob(f"*.{end}"), key=str)
        for name, end in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet"))
    }
    names = [path.name for path in files["img_emb"]]
    assert names == [path.name.replace("text", "img") for path in files["text_emb"]]
    metadata = pa.concat_tables(map(pq.read_table, files["metadata"])).to_pylist()
    assert len(metadata) == COUNT
    ours = open_features(tmp_path / "out")
    for place, kind in enumerate(("img_emb", "text_emb")):
        rows = np.concatenate([np.load(path) for path in files[kind]])
        for row, told in zip(rows, metadata, strict=True):
            number = ours.row(told["key"], told["caption"])
            assert np.array_equal(row, ours.pair(number)[place])
    if source == "files":
        assert names.index("img_emb_10.npy") < names.index("img_emb_2.npy")
        pictures = {one.text: decode(one.image).tobytes() for one in pairs(COUNT)}
        for told in metadata:
            held = decode(Path(told["image_path"]).read_bytes()).tobytes()
            assert held == pictures[told["caption"]]
    else:
        assert all(told["image_path"] == told["key"] for told in metadata)


def test_features_in_bf16_are_those_of_fp32_to_its_rounding(inputs, model, tmp_path):
    source, rows = str(inputs / "shards"), {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        embed(str(model), source, out, precision=precision, engine=INLINE)
        rows[precision] = np.load(out / "img_emb" / "img_emb_0.npy")
        np.testing.assert_allclose(np.linalg.norm(rows[precision], axis=1), 1, atol=1e-5)
    assert not np.array_equal(rows["fp32"], rows["bf16"])
    assert (rows["fp32"] * rows["bf16"]).sum(axis=1).min() > 0.999
    with pytest.raises(UserError, match="precision was 'fp32', is 'bf16'"):
        embed(str(model), source, tmp_path / "fp32", precision="bf16", engine=INLINE)


def test_features_in_parts_are_one_matrix(inputs, model, tmp_path):
    options = {"engine": INLINE, "samples_per_part": 7}
    embed(str(model), str(inputs / "files"), tmp_path / "out", **options)
    rows = stack(tmp_path / "out", "image")
    whole = np.concatenate(rows.parts)
    assert len(rows.parts) == 4
    assert np.array_equal(rows[5:16], whole[5:16])
    order = np.random.default_rng(0).permutation(COUNT)
    assert np.array_equal(rows[order], whole[order])
    assert torch.from_numpy(rows[:0]).shape == (0, 64)


def test_what_makes_no_sense_is_refused(inputs, model, tmp_path):
    with pytest.raises(UserError, match="batch_size is 0"):
        embed(str(model), str(inputs / "shards"), tmp_path / "out", batch_size=0)
    with pytest.raises(UserError, match="holds no images"):
        embed(str(model), str(model), tmp_path / "out")
    with pytest.raises(UserError, match="There are no shards at"):
        embed(str(model), str(tmp_path / "nowhere"), tmp_path / "out")
