"""Bad input: what is usable is read, the rest is counted under its reason, nothing hangs."""

import gzip
import io
import json
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image
from tests_support import pairs, picture

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards, write_shards
from vlp.errors import UserError

GOOD = 8
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'


def encoded(kind, size=(24, 16), colour="red", **options) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind, **options)
    return data.getvalue()


def giant_header() -> bytes:
    """Return a PNG whose header says 50,000 x 50,000."""
    data = bytearray(encoded("PNG"))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def giant_jpeg() -> bytes:
    """Return a JPEG whose header says 50,000 x 50,000."""
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (50_000).to_bytes(2, "big") * 2
    return bytes(data)


def animation() -> bytes:
    return encoded("GIF", save_all=True, append_images=[Image.new("RGB", (24, 16), "blue")])


def whole_tar(members, **options) -> bytes:
    """Return a tar of files as given: (name, bytes), or a header of its own kind."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", **options) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            is_file = isinstance(content, bytes)
            info.size = len(content) if is_file else 0
            tar.addfile(info, io.BytesIO(content) if is_file else None)
    return data.getvalue()


def good() -> list:
    return [
        member
        for sample in pairs(GOOD)
        for member in ((f"{sample.key}.png", sample.image), (f"{sample.key}.txt", b"a field"))
    ]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def read_epoch(folder, encoder, workers=0, count=None):
    """Return the keys and captions' rows of an epoch, and what was counted, by reason."""
    shards = open_shards(folder)
    count = count or len(shards)
    reader = Reader(
        sources=[shards],
        plan=Plan([Row(shards.counts, 0)], count),
        tokenizer=encoder.tokenizer,
        image_size=(16, 16),
        augmentation=Augmentation(),
        captions=CaptionChoice.parse("txt"),
    )
    loader = Loader(reader, workers=workers, max_bad=1.0)
    batches = loader.batches(0)
    batch = next(batches)
    batches.close()
    return batch, loader.faults().as_dict()


def reasons(faults) -> dict[str, int]:
    return {reason: fault["count"] for reason, fault in faults.items()}


def both(folder, encoder):
    """Return the keys of an epoch and its faults, after a check of ``open_shards`` alone."""
    batch, faults = read_epoch(folder, encoder)
    shards = open_shards(folder)
    readable = [sample.key for sample in shards]
    assert set(batch.keys) <= set(readable)
    for reason, count in reasons(shards.faults.as_dict()).items():
        assert reasons(faults)[reason] == count
    return set(batch.keys), faults


GOOD_KEYS = {f"{number:05d}" for number in range(GOOD)}

SAMPLES = {
    "truncated JPEG": (encoded("JPEG", (64, 64))[:-200], "image ends early"),
    "SVG": (SVG, "image format is not known"),
    "zero-byte image": (b"", "image is empty"),
    "a header of 50,000 x 50,000": (giant_header(), "image has too many pixels"),
    "a JPEG header of 50,000 x 50,000": (giant_jpeg(), "image has too many pixels"),
    "text": (b"404 not found", "image format is not known"),
    "a JPEG of nothing but its first bytes": (b"\xff\xd8\xff", "image format is not known"),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_counted_with_shard_and_key(
    name, workers, tmp_path, encoder
):
    image, reason = SAMPLES[name]
    members = [*good(), ("bad.jpg", image), ("bad.txt", b"words")]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    batch, faults = read_epoch(tmp_path, encoder, workers)
    assert set(batch.keys) == GOOD_KEYS
    assert len(batch.keys) == GOOD + 1  # its place is filled
    assert faults == {reason: {"count": 1, "examples": ["x.tar: bad"]}}


IMAGES = {
    "a JPEG that is a PNG": picture(),
    "1 x 1": encoded("JPEG", (1, 1)),
    "GIF": animation(),
    "WebP": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16))]),
    "TIFF": encoded("TIFF"),
    "1 x 500": encoded("JPEG", (1, 500)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_an_odd_kind_is_read_whatever_its_name_says(name, tmp_path, encoder):
    members = [("odd.jpg", IMAGES[name]), ("odd.txt", b"words")]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    keys, faults = both(tmp_path, encoder)
    assert (keys, faults) == ({"odd"}, {})


CAPTIONS = {
    "empty": (b"", "caption is empty"),
    "white space": (b" \n\t \xc2\xa0", "caption is empty"),
    "no UTF-8": ("café".encode("latin-1"), "caption or metadata is no UTF-8"),
    "1 MB": (b"word " * 200_000, None),
    "1 MB without a space": (b"x" * 1_000_000, None),
    "emoji": ("🐈‍⬛ and 🎉".encode(), None),
    "Arabic": ("قطة سوداء على السطح".encode(), None),
    "NUL": (b"a \x00 b", None),
    "only NUL": (b"\x00", None),
    "byte order mark": (b"\xef\xbb\xbfa cat", None),
    "HTML": (b"<b>a</b> &amp; &lt;", None),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_an_odd_caption_is_read_or_counted(name, tmp_path, encoder):
    caption, reason = CAPTIONS[name]
    members = [*good(), ("odd.png", picture()), ("odd.txt", caption)]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    keys, faults = both(tmp_path, encoder)
    if reason:
        assert keys == GOOD_KEYS
        assert faults == {reason: {"count": 1, "examples": ["x.tar: odd"]}}
    else:
        assert (keys, faults) == ({*GOOD_KEYS, "odd"}, {})
        (sample,) = [s for s in open_shards(tmp_path) if s.key == "odd"]
        assert sample.text == caption.decode().strip()


def test_a_json_with_odd_values_is_counted_or_read(tmp_path, encoder):
    told = {
        "nested": b"[" * 100_000,
        "digits": b'{"caption": "x", "n": ' + b"9" * 5000 + b"}",
        "null": b'{"caption": null}',
        "torn": b'{"caption": "x',
        "utf16": '{"caption": "x"}'.encode("utf-16"),
        "nan": b'{"caption": "fine", "n": NaN}',
    }
    members = good()
    for name, data in told.items():
        members += [(f"{name}.png", picture()), (f"{name}.json", data)]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    keys, faults = both(tmp_path, encoder)
    assert keys == {*GOOD_KEYS, "nan", "utf16"}
    assert reasons(faults) == {"metadata is no JSON object": 3, "no caption": 1}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("bad.txt", b"words")], "no image"),
        ([("bad.png", picture())], "no caption"),
        ([("bad.png", picture()), ("bad.txt", b"a"), ("bad.txt", b"b")], "key stands twice"),
        ([("bad", b"no extension")], "no image"),
    ],
    ids=["key without image", "key without caption", "duplicate key", "no extension"],
)
def test_a_sample_that_is_not_whole_is_counted_from_the_headers(members, reason, tmp_path, encoder):
    (tmp_path / "x.tar").write_bytes(whole_tar([*good(), *members]))
    keys, faults = both(tmp_path, encoder)
    assert keys == GOOD_KEYS | ({"bad"} if reason == "key stands twice" else set())
    assert faults == {reason: {"count": 1, "examples": ["x.tar: bad"]}}


def test_the_same_key_in_two_sources_is_two_samples(tmp_path, encoder):
    write_shards(pairs(6), tmp_path / "one")
    write_shards(pairs(6), tmp_path / "two")
    opened = [open_shards(tmp_path / name) for name in ("one", "two")]
    rows = [Row(shards.counts, number) for number, shards in enumerate(opened)]
    reader = Reader(
        sources=opened,
        plan=Plan(rows, 12, weights=(1.0, 1.0)),
        tokenizer=encoder.tokenizer,
        image_size=(16, 16),
        augmentation=Augmentation(scale=(0.3, 1.0)),
        captions=CaptionChoice.parse("txt"),
        group="none",
    )
    places = {(p.source, p.shard, p.index, p.epoch) for p in reader.plan.batch(0)}
    batch = next(Loader(reader, workers=0).batches(0))
    assert len(places) == len(set(batch.seed.tolist())) == 12


def tars():
    whole = whole_tar(good())
    third = tarfile.TarFile(fileobj=io.BytesIO(whole)).getmembers()[4]
    html = b"<!DOCTYPE html><html><body>Not found</body></html>" * 40
    return {
        "truncated": (whole[: third.offset_data + 10], "shard is cut off or damaged", 2),
        "zero bytes": (b"", "shard is no tar file", 0),
        "HTML": (html, "shard is no tar file", 0),
        "gzip": (gzip.compress(whole), "shard is compressed, not a plain tar", 0),
        "a picture": (picture(), "shard is no tar file", 0),
        "zeros cut short": (bytes(300), "shard is no tar file", 0),
    }


TARS = tars()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", TARS)
def test_a_broken_shard_beside_good_ones_is_counted_and_named(name, workers, tmp_path, encoder):
    data, reason, readable = TARS[name]
    (tmp_path / "bad.tar").write_bytes(data)
    write_shards(pairs(20)[8:], tmp_path / "good")
    batch, faults = read_epoch(tmp_path, encoder, workers)
    assert len(set(batch.keys)) == len(batch.keys) == 12 + readable
    assert reasons(faults) == {reason: 1}
    assert faults[reason]["examples"][0].startswith("bad.tar: ")


@pytest.mark.parametrize("name", ["zero bytes", "HTML", "gzip"])
def test_a_broken_shard_alone_is_refused_in_one_line_that_says_why(name, tmp_path):
    data, reason, _ = TARS[name]
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(UserError, match=reason) as error:
        open_shards(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["zero bytes", "HTML", "gzip", "truncated"])
def test_a_broken_shard_with_a_stated_count_is_filled_from_others_and_counted(
    name, tmp_path, encoder
):
    data, reason, readable = TARS[name]
    write_shards(pairs(40)[8:], tmp_path, samples_per_shard=16)
    (tmp_path / "bad.tar").write_bytes(data)
    sizes = {"bad.tar": GOOD, "000000.tar": 16, "000001.tar": 16}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    batch, faults = read_epoch(tmp_path, encoder)
    assert len(batch.keys) == GOOD + 32
    assert reasons(faults) == {
        reason: 1,
        "shard holds fewer samples than stated": GOOD - readable,
    }
    for fault in faults.values():
        assert all(example.startswith("bad.tar: ") for example in fault["examples"])


def test_a_broken_shard_with_a_stated_count_is_counted_where_all_samples_are_read(tmp_path):
    write_shards(pairs(4), tmp_path)
    (tmp_path / "bad.tar").write_bytes(b"<html>" * 200)
    (tmp_path / "sizes.json").write_text('{"bad.tar": 8, "000000.tar": 4}')
    shards = open_shards(tmp_path)
    assert not shards.faults
    assert len(list(shards)) == len(list(shards)) == 4
    assert reasons(shards.faults.as_dict()) == {"shard is no tar file": 1}


def test_a_missing_shard_is_named(tmp_path):
    write_shards(pairs(4), tmp_path)
    with pytest.raises(UserError, match=r"There are no shards at .*000001.tar"):
        open_shards(f"{tmp_path}/{{000000..000001}}.tar")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_goes_missing_while_it_is_read_ends_the_run_with_its_name(
    workers, tmp_path, encoder
):
    write_shards(pairs(20), tmp_path, samples_per_shard=10)
    open_shards(tmp_path)
    (tmp_path / "sizes.json").write_text('{"000000.tar": 10, "000001.tar": 10}')
    (tmp_path / "000001.tar").rename(tmp_path / "moved")
    (tmp_path / "000001.tar").symlink_to(tmp_path / "moved")
    shards = open_shards(tmp_path)
    (tmp_path / "moved").unlink()
    reader = Reader(
        sources=[shards],
        plan=Plan([Row(shards.counts, 0)], 10),
        tokenizer=encoder.tokenizer,
        image_size=(16, 16),
        augmentation=Augmentation(),
        captions=CaptionChoice.parse("txt"),
    )
    with pytest.raises(UserError, match=r"000001.tar is gone. Put it back"):
        next(Loader(reader, workers=workers).batches(0))


def test_a_member_that_leads_out_of_the_folder_is_a_sample_like_others(tmp_path, encoder):
    members = [*good(), ("../../x.png", picture()), ("../../x.txt", b"words")]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.tar").write_bytes(whole_tar(members))
    before = {path for path in tmp_path.rglob("*") if ".index" not in path.parts}
    keys, faults = both(raw, encoder)
    assert (keys, faults) == ({*GOOD_KEYS, "../../x"}, {})
    assert {path for path in tmp_path.rglob("*") if ".index" not in path.parts} == before
    write_shards(open_shards(raw), tmp_path / "clean")
    assert {sample.key for sample in open_shards(tmp_path / "clean")} == {*GOOD_KEYS, "x"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_a_link_is_never_followed(kind, tmp_path, encoder):
    (tmp_path / "secret.png").write_bytes(picture())
    members = [*good(), link("bad.png", str(tmp_path / "secret.png"), kind), ("bad.txt", b"words")]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    keys, faults = both(tmp_path, encoder)
    assert keys == GOOD_KEYS
    assert faults == {
        "file is a link or no file": {"count": 1, "examples": ["x.tar: bad.png"]},
        "no image": {"count": 1, "examples": ["x.tar: bad"]},
    }


def test_folders_inside_a_tar_are_no_faults(tmp_path, encoder):
    members = [link("sub", "", tarfile.DIRTYPE), *((f"sub/{n}", data) for n, data in good())]
    (tmp_path / "x.tar").write_bytes(whole_tar(members))
    keys, faults = both(tmp_path, encoder)
    assert (keys, faults) == ({f"sub/{key}" for key in GOOD_KEYS}, {})


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["PAX headers", "GNU headers"]
)
def test_long_and_odd_names_in_extended_headers_are_read(form, tmp_path, encoder):
    deep = "folder ☃/" * 30 + "k" * 120
    members = [*good(), (f"{deep}.png", picture()), (f"{deep}.txt", b"words")]
    options = {"format": form}
    if form == tarfile.PAX_FORMAT:
        options["pax_headers"] = {"comment": "of the whole tar", "mtime": "1.5"}
    (tmp_path / "x.tar").write_bytes(whole_tar(members, **options))
    keys, faults = both(tmp_path, encoder)
    assert (keys, faults) == ({*GOOD_KEYS, deep}, {})


def test_a_name_that_is_no_utf_8_is_read_and_spelled_out(tmp_path, encoder):
    members = [*good(), ("\udcff.png", picture()), ("\udcff.txt", b"words")]
    (tmp_path / "x.tar").write_bytes(whole_tar(members, format=tarfile.GNU_FORMAT))
    keys, faults = both(tmp_path, encoder)
    assert (keys, faults) == ({*GOOD_KEYS, r"\xff"}, {})


def test_damage_anywhere_in_headers_is_counted_and_never_raises(tmp_path):
    deep = "folder ☃/" * 15 + "k"
    members = [(f"{deep}{n}.{e}", b"x") for n in range(4) for e in ("png", "txt")]
    whole = whole_tar(members, format=tarfile.PAX_FORMAT)
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole) // 2, 4):
            damaged[place] = rng.integers(256)
        start = int(rng.integers(8)) * 512  # a size that is nonsense, in a header that adds up
        header = damaged[start : start + 512]
        header[124:136] = rng.integers(0, 256, 12, np.uint8).tobytes()
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        damaged[start : start + 512] = header
        path = tmp_path / f"{number}.tar"
        path.write_bytes(damaged)
    (tmp_path / "good.tar").write_bytes(whole)
    shards = open_shards(tmp_path)
    assert len(shards) >= 4
    assert set(reasons(shards.faults.as_dict())) <= {
        "shard is cut off or damaged",
        "shard is no tar file",
        "no image",
        "no caption",
        "key stands twice",
        "file is a link or no file",
    }
