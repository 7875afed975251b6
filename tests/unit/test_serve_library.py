"""The pictures of an index as the service gives them, in this process."""

import numpy as np
import pytest
from index_support import unit_rows, write_features
from tests_support import pairs

from data_pipelines.embed import embed
from data_pipelines.engine import Engine
from data_pipelines.shards import write_shards
from vlp.errors import UserError
from vlp.index import build_index, load_index
from vlp.index.change import add_rows, compact_index, delete_keys
from vlp.serve.download import packed
from vlp.serve.library import Library
from vlp.serve.limits import Refused
from vlp.serve.messages import SearchRequest

NONE = np.empty((0, 64), np.float32)


@pytest.fixture
def folder(shards, model, tmp_path):
    return indexed(model, shards, tmp_path)


@pytest.fixture(scope="module")
def library(model, tmp_path_factory):
    """Return an index that no test changes."""
    folder = tmp_path_factory.mktemp("library")
    write_shards(pairs(64), folder / "shards")
    return Library(load_index(indexed(model, folder / "shards", folder)))


def indexed(model, shards, folder):
    embed(str(model), str(shards), folder / "features", engine=Engine(kind="inline"))
    build_index(folder / "features", folder / "index")
    return folder / "index"


def browse(library, **query):
    return library.find(SearchRequest(**query), NONE, NONE)


def test_a_field_called_key_does_not_hide_the_key_and_parts_may_differ_in_type(tmp_path):
    write_features(tmp_path / "one", unit_rows(2), fields=lambda n: {"key": "z", "width": n + 1})
    write_features(tmp_path / "two", unit_rows(2), first=2, fields=lambda n: {"width": n - 1.5})
    build_index(tmp_path / "one", tmp_path / "index")
    add_rows(tmp_path / "index", tmp_path / "two")
    library = Library(load_index(tmp_path / "index"))
    assert library.fields() == ["key", "caption", "width"]
    sort = lambda field: [hit.id for hit in browse(library, sort=field)[0]]  # noqa: E731
    assert sort("-key") == [3, 2, 1, 0]
    assert sort("width") == [2, 0, 3, 1]  # 0.5, 1, 1.5, 2: numbers, though not all are whole


def test_a_number_stays_a_pictures_own_when_others_are_deleted(folder):
    before = Library(load_index(folder))
    kept = before.found(20)
    delete_keys(folder, [f"{number:05d}" for number in range(10)])
    assert Library(load_index(folder)).found(20) == kept
    compact_index(folder)
    library = Library(load_index(folder))
    assert library.found(20) == kept
    assert library.encoded(20) == before.encoded(20)
    for number in (9, 64, 2**40):
        with pytest.raises(Refused, match=f"has no picture {number}") as refused:
            library.found(number)
        assert refused.value.status == 404
    found, _ = browse(library, k=3)
    assert [hit.id for hit in found] == [10, 11, 12]


def test_what_is_browsed_is_filtered_sorted_and_paged(library):
    rows = [
        hit
        for start in (0, 5, 10, 15)
        for hit in browse(library, where=["colour=red"], sort="-caption", k=5, offset=start)[0]
    ]
    captions = [hit.caption for hit in rows]
    assert captions == sorted(captions, reverse=True)
    assert len(captions) == 16
    assert browse(library, where=["colour=red"], k=15)[1]
    assert not browse(library, where=["colour=red"], k=16)[1]
    with pytest.raises(UserError, match=r"no field 'color'\. Did you mean colour"):
        browse(library, sort="color")


def test_hits_are_sorted_among_the_best(library):
    query = {"terms": [{"key": "00007"}], "min_percentile": 50}
    best, _ = browse(library, k=64, **query)
    ordered, _ = browse(library, k=64, sort="key", **query)
    assert {hit.key for hit in best} == {hit.key for hit in ordered}
    keys = [hit.key for hit in ordered]
    assert keys == sorted(keys)
    assert "00007" not in keys
    assert all(hit.percentile >= 50 for hit in ordered)


def test_a_picture_whose_shard_is_gone_has_a_reason_that_names_no_folder(folder, shards):
    library = Library(load_index(folder))
    for shard in shards.glob("*.tar"):
        shard.unlink()
    with pytest.raises(
        Refused, match=r"The shard 000000.tar of 00003 is not there any more"
    ) as refused:
        library.encoded(3)
    assert str(shards) not in refused.value.reason
    assert refused.value.status == 404


def test_a_picture_whose_shard_has_changed_is_told_by_its_number(folder, shards):
    for shard in shards.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(Refused, match="Picture 3 is none any more") as refused:
        packed(Library(load_index(folder)), [3], "pictures")
    assert refused.value.status == 404


def test_a_key_that_is_not_there_has_a_reason_that_names_no_folder(library):
    for key in ("../../etc/passwd", "x" * 1000):
        with pytest.raises(Refused, match="There is no picture with the key") as refused:
            browse(library, terms=[{"key": key}])
        assert len(refused.value.reason) < 200
        assert str(library.index.folder) not in refused.value.reason
