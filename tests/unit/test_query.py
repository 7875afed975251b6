"""What a person asks, against the whole similarity matrix."""

import concurrent.futures

import numpy as np
import pytest
from index_support import unit_rows, write_features
from tests_support import picture

from vlp.encode import encode_images, encode_texts
from vlp.errors import UserError
from vlp.image import decode
from vlp.index import build_index, load_index
from vlp.query import Query, combine, find, find_encoded

ROWS = 200


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Return an index of 200 rows as long as the tiny encoder's."""
    folder = tmp_path_factory.mktemp("query")
    write_features(folder / "features", unit_rows(ROWS, dim=64))
    build_index(folder / "features", folder / "index")
    return load_index(folder / "index")


def ask(index, vector, **options):
    return find_encoded(index, vector, Query(texts=(("x", 1.0),), **options))


def test_a_query_is_the_weighted_sum_of_its_parts(index, encoder):
    rows = unit_rows(ROWS, dim=64)
    texts = encode_texts(encoder, ["a dog", "snow"]).numpy()
    images = encode_images(encoder, [decode(picture())]).numpy()
    query = Query(
        texts=(("a dog", 1.0), ("snow", -0.5)),
        images=((picture(), 2.0),),
        keys=(("00003", 0.25),),
        k=7,
    )
    total = texts[0] - 0.5 * texts[1] + 2 * images[0] + 0.25 * rows[3]
    vector = total / np.linalg.norm(total)
    np.testing.assert_allclose(combine(index, query, texts, images), vector, atol=1e-5)
    cosines = rows @ vector
    cosines[3] = -1  # more like this, and not this
    best = np.argsort(-cosines)[:7]
    hits = find(index, encoder, query)
    assert [hit.key for hit in hits] == [f"{row:05d}" for row in best]
    np.testing.assert_allclose([hit.score for hit in hits], cosines[best], atol=1e-5)


def test_percentiles_are_the_share_of_the_index_that_scores_below(index):
    vector = unit_rows(1, dim=64, seed=5)[0]
    cosines = unit_rows(ROWS, dim=64) @ vector  # so few rows are the background, all of them
    hits = ask(index, vector, k=ROWS)
    for hit in hits:
        assert hit.percentile == pytest.approx(100 * (cosines < hit.score - 1e-7).mean(), abs=0.51)
    some = ask(index, vector, k=ROWS, min_percentile=90)
    assert some == [hit for hit in hits if hit.percentile >= 90]
    assert 18 <= len(some) <= 21


def test_conditions_and_pages_leave_the_order_as_it_is(index):
    vector = unit_rows(1, dim=64, seed=6)[0]
    every = ask(index, vector, k=1000)
    assert len(every) == ROWS
    pages = [hit for page in range(10) for hit in ask(index, vector, k=20, offset=20 * page)]
    assert pages == every
    some = ask(index, vector, k=1000, where=("width>=50", "language=en"))
    assert [hit.key for hit in some] == [
        hit.key
        for hit in every
        if hit.metadata["fields"]["width"] >= 50 and hit.metadata["fields"]["language"] == "en"
    ]
    assert ask(index, vector, where=("width>1000",)) == []
    assert ask(index, vector, offset=ROWS) == []


def test_threads_find_what_one_finds(index):
    vectors = unit_rows(40, dim=64, seed=7)
    options = {"k": 9, "where": ("width>=20",), "fold": 0.5, "min_percentile": 10}
    expected = [ask(index, vector, **options) for vector in vectors]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda vector: ask(index, vector, **options), vectors)]
    assert found == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "The query is empty"),
        ({"texts": ((" ", 1.0),)}, "The query is empty"),
        ({"texts": (("x", 0.0),)}, "One at least must be other than 0"),
        ({"texts": (("x", 1.0),), "k": 0}, "k is 0"),
        ({"texts": (("x", 1.0),), "offset": -1}, "The offset is -1"),
        ({"texts": (("x", 1.0),), "min_percentile": 101.0}, "The percentile is 101"),
        ({"texts": (("x", 1.0),), "fold": 2.0}, "folded from a cosine of 2"),
    ],
)
def test_a_query_that_cannot_be_is_refused_when_it_is_made(options, told):
    with pytest.raises(UserError, match=told):
        Query(**options)


def test_what_a_query_names_must_be_there(index, encoder):
    with pytest.raises(UserError, match="no sample with the key 'nobody'"):
        find(index, encoder, Query(keys=(("nobody", 1.0),)))
    with pytest.raises(UserError, match="Cannot read a picture of the query"):
        find(index, encoder, Query(images=((b"nothing", 1.0),)))
    with pytest.raises(UserError, match="has a field 'wide'"):
        find(index, encoder, Query(texts=(("x", 1.0),), where=("wide>3",)))
    with pytest.raises(UserError, match="cancel out"):
        find(index, encoder, Query(texts=(("x", 1.0), ("x", -1.0))))
