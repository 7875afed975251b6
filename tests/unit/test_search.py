"""From shards to features to an index to hits."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests_support import picture

from data_pipelines.embed import embed
from data_pipelines.keep_list import read_copies
from data_pipelines.shards import open_shards
from data_pipelines.tar_index import open_index
from vlp import cli
from vlp.checkpoint import load_encoder, save_encoder
from vlp.errors import UserError
from vlp.image import decode
from vlp.index import build_index, load_index
from vlp.index.change import add_rows
from vlp.search import search


@pytest.fixture
def built(shards, model, tmp_path):
    """Return (features, index) of the drawn shards."""
    embed(str(model), str(shards), tmp_path / "features")
    build_index(tmp_path / "features", tmp_path / "index")
    return tmp_path / "features", tmp_path / "index"


def test_features_lie_as_clip_retrieval_lays_them_out(built):
    features = built[0]
    image = np.load(features / "img_emb" / "img_emb_0.npy")
    text = np.load(features / "text_emb" / "text_emb_0.npy")
    table = pq.read_table(features / "metadata" / "metadata_0.parquet")
    assert image.shape == text.shape == (64, 64)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-6)
    assert table["key"].to_pylist() == [f"{i:05d}" for i in range(64)]
    assert json.loads(table["metadata"][0].as_py())["colour"] == "red"


def test_features_do_not_depend_on_the_batch_size(built, shards, model, tmp_path):
    embed(str(model), str(shards), tmp_path / "other", batch_size=7)
    one, other = (
        np.load(folder / "img_emb" / "img_emb_0.npy") for folder in (built[0], tmp_path / "other")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_hits_are_those_of_the_whole_similarity_matrix(built):
    index = load_index(built[1])
    rows = np.load(built[0] / "img_emb" / "img_emb_0.npy")
    query = rows[7]
    best = np.argsort(-(rows @ query), kind="stable")[:5]
    hits = index.hits(query, 5)
    assert hits[0].key == "00007"
    np.testing.assert_allclose([h.score for h in hits], (rows @ query)[best], atol=1e-6)
    assert len(index.hits(query, 1000)) == 64


def test_a_hit_brings_its_picture_with_one_seek(built):
    index = load_index(built[1])
    hit = index.hits(np.load(built[0] / "img_emb" / "img_emb_0.npy")[3], 1)[0]
    assert decode(index.picture(hit)).size == (40, 32)


def test_an_image_file_finds_itself(built, shards, tmp_path):
    hit = load_index(built[1]).hits(np.load(built[0] / "img_emb" / "img_emb_0.npy")[9], 1)[0]
    (tmp_path / "query.png").write_bytes(load_index(built[1]).picture(hit))
    found = search(built[1], [str(tmp_path / "query.png")], k=1, sheet=tmp_path / "sheet.png")
    assert found[0]["key"] == "00009"
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert decode((tmp_path / "sheet.png").read_bytes()).width > 100


def test_a_text_is_searched_with_the_model_of_the_index(built):
    found = search(built[1], ["a blue field"], k=3)
    assert len(found) == 3
    assert found[0]["score"] >= found[-1]["score"]
    assert set(found[0]) >= {"key", "score", "caption"}


def test_another_model_than_the_index_was_built_with_is_refused(built, model, tmp_path):
    other = load_encoder(model)
    other.visual.head.proj.weight.data.add_(torch.tensor(0.1))
    (tmp_path / "other").mkdir()
    save_encoder(other, tmp_path / "other")
    with pytest.raises(UserError, match="built with another model"):
        search(built[1], ["x"], model=str(tmp_path / "other"))


def test_folders_that_hold_something_else_are_named(built, shards, tmp_path):
    with pytest.raises(UserError, match="holds no features"):
        build_index(shards, tmp_path / "x")
    with pytest.raises(UserError, match="holds no index"):
        load_index(built[0])
    with pytest.raises(UserError, match="k is 0"):
        search(built[1], ["x"], k=0)
    with pytest.raises(UserError, match="The query is empty"):
        search(built[1], [" "])
    (built[1] / "segments/000001/vectors.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        load_index(built[1])


def test_a_shard_that_has_moved_is_named(built, shards):
    index = load_index(built[1])
    for shard in shards.glob("*.tar"):
        shard.unlink()
    hit = index.hits(np.load(built[0] / "img_emb" / "img_emb_0.npy")[0], 1)[0]
    with pytest.raises(UserError, match="is not there any more"):
        index.picture(hit)


def test_hits_are_written_as_a_keep_list_that_filter_and_training_read(built, shards, tmp_path):
    path = tmp_path / "keep.parquet"
    found = search(built[1], ["a blue field"], where=("colour=blue",), k=6, export=path)
    assert {one["fields"]["colour"] for one in found} == {"blue"}
    copies = read_copies(str(path), open_shards(shards))
    kept = [
        key
        for shard, own in zip(sorted(shards.glob("*.tar")), copies, strict=True)
        for key, count in zip(open_index(shard).keys, own.tolist(), strict=True)
        if count
    ]
    assert sorted(kept) == sorted(one["key"] for one in found)
    argv = ["filter", shards, tmp_path / "kept", "--keep", f"listed(path={str(path)!r})"]
    assert cli.run([str(word) for word in argv])["samples_out"] == len(kept)


def test_the_command_takes_several_queries_weights_and_what_to_stay_away_from(
    built, tmp_path, capsys
):
    ask = lambda *words: cli.run(["search", str(built[1]), *words])  # noqa: E731
    keys = lambda found: [one["key"] for one in found]  # noqa: E731
    index = load_index(built[1])
    [five] = index.rows_of("00005")
    (tmp_path / "five.png").write_bytes(index.picture(index.hit(five, 1.0)))
    by_file = ask(str(tmp_path / "five.png"), "a red field", "--k", "4", "--weights", "1", "0.5")
    by_key = ask("a red field", "--like", "00005", "--k", "3", "--weights", "0.5", "1")
    assert keys(by_file) == ["00005", *keys(by_key)]
    away = ask("a red field", "--without", "a blue field", "--k", "64")
    same = ask("a red field", "a blue field", "--weights", "1", "-1", "--k", "64")
    assert keys(away) == keys(same)
    capsys.readouterr()
    assert len(ask("a red field", "--k", "100")) == 64
    assert "64 hits, and 100 were asked for: there are no more." in capsys.readouterr().out
    assert ask("a red field", "--where", "cls>7") == []
    assert "Nothing was found" in capsys.readouterr().out
    for words, told in (
        (["x", "--weights", "1", "2"], "2 weights for 1 queries and keys"),
        (["x", "--where", "colour"], "The condition 'colour' is none"),
        (["--like", "nobody"], "holds no sample with the key 'nobody'"),
        ([], "The query is empty"),
        (["x", "--export", str(tmp_path / "list.csv")], "keep-list .* is Parquet"),
    ):
        with pytest.raises(UserError, match=told):
            ask(*words)


def test_a_sheet_has_rows_of_ten_and_is_grey_where_a_picture_is_gone(
    built, shards, tmp_path, capsys
):
    first, *others = sorted(shards.glob("*.tar"))
    first.write_bytes(b"\0" * first.stat().st_size)
    search(built[1], ["a red field"], k=25, sheet=tmp_path / "sheet.png")
    assert decode((tmp_path / "sheet.png").read_bytes()).size == (10 * 140 + 12, 3 * 182 + 22 + 12)
    assert "No picture of 000" in capsys.readouterr().err
    assert others


def test_nothing_that_is_found_is_said_once(built, tmp_path, capsys):
    found = search(built[1], ["x"], where=("colour=none",), sheet=tmp_path / "sheet.png")
    assert found == []
    assert "were asked for" not in capsys.readouterr().out


def test_pictures_of_no_shard_are_in_no_keep_list_and_do_not_change_that_of_others(
    built, model, tmp_path
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture("red", (40, 32)))
    embed(str(model), str(tmp_path / "photos"), tmp_path / "more", only="images")
    add_rows(built[1], tmp_path / "more")
    search(built[1], ["x"], where=("colour=red",), export=tmp_path / "keep.parquet")
    names = pq.read_table(tmp_path / "keep.parquet")["shard"].to_pylist()
    assert all("/" not in name for name in names)  # from the folder of all shards, not of all files
    with pytest.raises(UserError, match="a lies in no shard"):
        search(built[1], ["x"], where=("key=a",), export=tmp_path / "keep.parquet")
