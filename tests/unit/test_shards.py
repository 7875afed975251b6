"""Shards: what is written comes back, and what is broken is counted, never fatal, never silent."""

import io
import json
import tarfile

import pytest
from PIL import Image

from data_pipelines.faults import SampleFault
from data_pipelines.shards import image_extension, open_shards, read, write_shards
from data_pipelines.sources import find_shards
from vlp.errors import UserError
from vlp.types import Sample


def picture(colour="red", kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(data, kind)
    return data.getvalue()


def write_tar(path, members):
    """Write files as given: a list of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def reasons(shards):
    return {reason: fault["count"] for reason, fault in shards.faults.as_dict().items()}


def pair(key, caption=b"a red square"):
    return [(f"{key}.png", picture()), (f"{key}.txt", caption)]


def test_samples_come_back_as_they_were_written(tmp_path):
    written = [
        Sample(f"folder/{n}", picture(kind=kind), f"caption {n} ☃", {"n": n, "tags": ["a"]})
        for n, kind in enumerate(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    ]
    assert write_shards(written, tmp_path, samples_per_shard=4) == (6, 2)
    assert [path.name for path in find_shards(tmp_path)] == ["000000.tar", "000001.tar"]
    assert list(open_shards(tmp_path)) == written


def test_the_same_samples_give_the_same_bytes(tmp_path):
    samples = [Sample("a", picture(), "a red square", {"b": 1})]
    for name in ("one", "two"):
        write_shards(samples, tmp_path / name)
    one, two = ((tmp_path / name / "000000.tar").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_extension_follows_from_the_first_bytes(kind):
    extension = image_extension(picture(kind=kind))
    assert extension == {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


def test_written_keys_are_unique_and_hold_no_dot(tmp_path):
    keys = ["a.b", "a_b", "v1.0/a.b", "/a_b", "k" * 150]
    write_shards([Sample(key, picture(), "x") for key in keys], tmp_path)
    found = [sample.key for sample in open_shards(tmp_path)]
    assert found == ["a_b", "a_b-2", "v1.0/a_b", "a_b-3", "k" * 150]


def test_members_may_stand_in_any_order_and_apart(tmp_path):
    members = [*pair("a", b"first"), *pair("b", b"second")]
    write_tar(tmp_path / "x.tar", [members[3], members[0], members[2], members[1]])
    assert {s.key: s.text for s in open_shards(tmp_path)} == {"a": "first", "b": "second"}


def test_folders_are_part_of_a_key(tmp_path):
    write_tar(tmp_path / "x.tar", [*pair("one/000"), *pair("v1.0/000"), *pair("./000")])
    assert [s.key for s in open_shards(tmp_path)] == ["one/000", "v1.0/000", "000"]


def test_hidden_files_are_no_samples(tmp_path):
    write_tar(tmp_path / "x.tar", [*pair("a"), ("._a.png", b"litter"), ("sub/.DS_Store", b"")])
    shards = open_shards(tmp_path)
    assert len(shards) == 1
    assert not shards.faults


def test_unfinished_output_beside_shards_is_not_read(tmp_path):
    write_tar(tmp_path / "x.tar", pair("a"))
    (tmp_path / ".clean.part").mkdir()
    write_tar(tmp_path / ".clean.part" / "000000.tar", pair("a"))
    assert find_shards(tmp_path) == [tmp_path / "x.tar"]


def test_the_caption_is_txt_and_else_the_json_field(tmp_path):
    told = json.dumps({"caption": "from json", "width": 8}).encode()
    members = [*pair("a", b"from txt"), ("a.json", told), ("b.PNG", picture()), ("b.JSON", told)]
    first, second = open_shards(write_tar(tmp_path / "x.tar", members))
    assert (first.text, first.metadata["width"]) == ("from txt", 8)
    assert second.text == "from json"


def test_a_class_stands_in_for_a_caption(tmp_path):
    members = [("a.png", picture()), ("a.cls", b"7\n"), *pair("b"), ("b.cls", b"cat")]
    shards = open_shards(write_tar(tmp_path / "x.tar", members))
    (only,) = shards
    assert (only.text, only.metadata) == ("", {"cls": 7})
    assert reasons(shards) == {"class is no whole number": 1}


def test_several_captions_stay_several_lines(tmp_path):
    (sample,) = open_shards(write_tar(tmp_path / "x.tar", pair("a", b"one\ntwo\n")))
    assert sample.text == "one\ntwo"


def test_every_broken_sample_is_counted_under_its_reason(tmp_path):
    members = [
        *pair("good"),
        ("no_caption.png", picture()),
        ("no_image.txt", b"words"),
        *pair("empty", b" \n"),
        *pair("latin", "é".encode("latin-1")),
        *pair("list"),
        ("list.json", b"[1]"),
        *pair("torn"),
        ("torn.json", b'{"a":'),
        ("no_field.png", picture()),
        ("no_field.json", b"{}"),
    ]
    shards = open_shards(write_tar(tmp_path / "x.tar", members))
    assert [sample.key for sample in shards] == ["good"]
    assert reasons(shards) == {
        "no caption": 2,
        "no image": 1,
        "caption is empty": 1,
        "caption or metadata is no UTF-8": 1,
        "metadata is no JSON object": 2,
    }


def test_reading_a_broken_sample_raises_its_reason(tmp_path):
    (entry,) = open_shards(write_tar(tmp_path / "x.tar", pair("a", b""))).entries
    with pytest.raises(SampleFault, match="caption is empty"):
        read(entry)


def test_of_two_samples_with_one_key_the_first_stays_and_one_is_counted(tmp_path):
    members = [*pair("a", b"first"), *pair("a", b"second")]
    shards = open_shards(write_tar(tmp_path / "x.tar", members))
    assert [sample.text for sample in shards] == ["first"]
    assert reasons(shards) == {"key stands twice": 1}


def damages(data):
    """Return ways to damage a tar of three samples so that only the first two can be read."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        third = tar.getmembers()[4]
    return {
        "cut inside the data": data[: third.offset_data + 10],
        "cut inside a header": data[: third.offset + 200],
        "cut between two files": data[: third.offset],
        "header overwritten": data[: third.offset] + b"x" * 512 + data[third.offset_data :],
    }


@pytest.mark.parametrize(
    "damage",
    ["cut inside the data", "cut inside a header", "cut between two files", "header overwritten"],
)
def test_a_damaged_tar_gives_what_is_readable_and_a_counted_fault(tmp_path, damage):
    whole = write_tar(tmp_path / "x.tar", [*pair("a"), *pair("b"), *pair("c")])
    whole.write_bytes(damages(whole.read_bytes())[damage])
    shards = open_shards(tmp_path)
    assert [sample.key for sample in shards] == ["a", "b"]
    assert reasons(shards)["shard is cut off or damaged"] == 1


@pytest.mark.parametrize("data", [b"", b"hello " * 300, b"abc"], ids=["empty", "text", "short"])
def test_a_file_that_is_no_tar_is_counted_beside_good_shards(tmp_path, data):
    write_tar(tmp_path / "good.tar", pair("a"))
    (tmp_path / "bad.tar").write_bytes(data)
    shards = open_shards(tmp_path)
    assert len(shards) == 1
    assert reasons(shards) == {"shard is no tar file": 1}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.png", b"x"), ("b.png", b"x")], "2 no caption"),
        ([("a.txt", b"x")], "1 no image"),
        ([], "holds no sample"),
    ],
)
def test_shards_without_a_single_pair_are_refused_in_one_line(tmp_path, members, reason):
    with pytest.raises(UserError, match=reason) as error:
        open_shards(write_tar(tmp_path / "x.tar", members))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "holds no tar files"),
        ("missing", "There are no shards at"),
        ("{0..3}.tar", "There are no shards at .*1.tar"),
        ("{0.tar", "brace has no partner"),
        ("*.tgz", "There are no shards at"),
    ],
)
def test_a_source_that_names_no_shards_says_what_to_give(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "0.tar", pair("a"))
    with pytest.raises(UserError, match=message):
        find_shards(f"{tmp_path}/{source}")


def test_folders_files_globs_and_braces_name_shards(tmp_path):
    shards = [write_tar(tmp_path / f"{n}.tar", pair("a")) for n in range(3)]
    for source in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/{{0..2}}.tar", shards):
        assert find_shards(source) == shards
    assert find_shards(str(shards[1])) == [shards[1]]


def test_a_shard_of_no_samples_is_refused(tmp_path):
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        write_shards([], tmp_path, samples_per_shard=0)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_found_where_the_standard_library_finds_them(form, tmp_path):
    names = ["a", "folder/b", "ü/ß", "deep/" * 18 + "c", "d" * 80, "last"]
    names += [] if form == tarfile.USTAR_FORMAT else ["e" * 200, "far/" * 60 + "f"]
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for number, name in enumerate(names):
            for extension, size in (("jpg", 700 * number + 1), ("txt", number), ("json", 512)):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = size
                tar.addfile(info, io.BytesIO(b"x" * size))
    with tarfile.open(tmp_path / "x.tar") as tar:
        wanted = {info.name: (info.offset_data, info.size) for info in tar}
    found = open_shards(tmp_path / "x.tar")
    assert not found.faults
    assert wanted == {
        f"{entry.key}.{extension}": member
        for entry in found.entries
        for extension, member in entry.members.items()
    }
