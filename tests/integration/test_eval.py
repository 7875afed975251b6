"""`vlp eval` and `vlp compare` as they are typed, and what they leave on disk."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
from dataclasses import replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests_support import pairs
from training_support import in_ranks

from data_pipelines.shards import write_shards
from eval.benchmark import read_preset
from eval.features import Encode
from eval.open_dataset import open_dataset
from eval.run import How, evaluate
from vlp import cli
from vlp.checkpoint import load_encoder, save_encoder
from vlp.errors import UserError

CLASSES = "classes=['red', 'green', 'blue', 'black', 'white'], label='colour'"
TASKS = (
    "retrieval",
    f"zero_shot({CLASSES}, templates='imagenet_simple', group='cls')",
    "geometry",
    f"matryoshka(tasks=('retrieval', \"zero_shot({CLASSES})\"))",
)
PARTS = (
    *("retrieval/similarities", "retrieval/misses", "zero_shot/reliability", "zero_shot/recall"),
    *(
        "zero_shot/confusion",
        "zero_shot/misses",
        "zero_shot/hits",
        "zero_shot/groups",
        "geometry/map",
    ),
    *("matryoshka/prefixes", "main", "retrieval/figures", "made"),
)
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=5000"),
)


class Page(HTMLParser):
    """The ids of a page, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.ids |= {about["id"]} if "id" in about else set()
        self.fetched += [
            about[n] for n in ("src", "href") if not about.get(n, "data:").startswith("data:")
        ]


@pytest.fixture(scope="module")
def evaluated(model, tmp_path_factory):
    """Return a folder with shards, and one evaluation of them with its features."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_shards(pairs(48), folder / "shards", samples_per_shard=20)
    argv = ["eval", str(model), str(folder / "shards"), "--tasks", *TASKS, "--draws", "40"]
    argv += ["--out", str(folder / "out"), "--features", str(folder / "features"), "--quiet"]
    cli.run(argv)
    return folder


@pytest.fixture(scope="module")
def other(model, tmp_path_factory):
    """Return a model with other weights."""
    folder = tmp_path_factory.mktemp("other")
    encoder = load_encoder(model)
    encoder.visual.head.proj.weight.data.mul_(-1)
    save_encoder(encoder, folder)
    return folder


def test_an_evaluation_holds_figures_intervals_and_all_that_they_may_depend_on(evaluated, model):
    told = json.loads((evaluated / "out" / "metrics.json").read_text())
    figures, draws = told["metrics"], np.load(evaluated / "out" / "replicates.npz")
    assert told["samples"] == figures["zero_shot/samples"] == 48
    for name, (low, high) in told["intervals"].items():
        assert low <= figures[name] <= high
        assert len(draws[name]) == 40
    assert {"retrieval/image_to_text/recall@1", "zero_shot/acc@1", "zero_shot/ece"} <= set(
        draws.files
    )
    assert set(told["seconds"]) == {
        "encode",
        "retrieval",
        "zero_shot",
        "geometry",
        "matryoshka",
        "intervals",
    }
    assert told["dtype"] == "float32"
    assert told["preprocessing"]["size"] == [*load_encoder(model).image_size]
    for name in ("model_hash", "dataset_identity", "sample_ids", "versions", "hardware", "faults"):
        assert name in told
    images = pq.read_table(evaluated / "out" / "images.parquet").to_pydict()
    assert images["key"] == [sample.key for sample in pairs(48)]
    assert np.mean(images["zero_shot/acc@1"]) == pytest.approx(figures["zero_shot/acc@1"])
    table = (evaluated / "out" / "table.md").read_text()
    assert f"| zero_shot/acc@1 | {figures['zero_shot/acc@1']:.4g} |" in table


def test_every_figure_has_an_interval_inside_its_range_or_the_docs_say_why_not(
    evaluated, model, tmp_path
):
    samples = []
    for number, sample in enumerate(pairs(48)):
        said = {"en": sample.text, "de": f"ein {sample.text}", "fr": f"un {sample.text} {number}"}
        samples.append(replace(sample, metadata={**sample.metadata, "captions": said}))
    write_shards(samples, tmp_path / "shards", samples_per_shard=20)
    few = "zero_shot(classes=['red', 'green'], label='colour', name='few')"
    tasks = [*TASKS, *every_kind_of_task(evaluated)[2:], "multilingual", few]
    tasks[0] = "retrieval(fold=20)"
    summary = evaluate(str(model), str(tmp_path / "shards"), tasks=tasks, how=How(draws=25))
    table = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    table = table.partition("| without an interval |")[2].partition("\n\n")[0]
    patterns = re.findall(
        r"`([^`]+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:])
    )
    for name, value in summary["metrics"].items():
        excused = [pattern for pattern in patterns if fnmatch(name, pattern)]
        assert (name in summary["intervals"]) != bool(excused), (name, excused)
        low, high = summary["intervals"].get(name, (value, value))
        assert low <= value <= high, name
    for pattern in patterns:
        assert any(fnmatch(name, pattern) for name in summary["metrics"]), pattern


def test_the_report_has_its_named_parts_and_fetches_nothing(evaluated):
    text = (evaluated / "out" / "report.html").read_text()
    page = Page(text)
    assert set(PARTS) <= page.ids
    assert not page.fetched
    assert text.count("<img ") >= 24  # of the galleries


def test_the_next_evaluation_encodes_nothing_and_finds_the_same(
    evaluated, model, monkeypatch, tmp_path
):
    """Not the set, nor training images, pictures of benchmarks, or captions."""
    tasks, how = every_kind_of_task(evaluated), How(features=tmp_path, draws=0)
    told = evaluate(str(model), str(evaluated / "shards"), tasks=tasks, how=how)
    monkeypatch.setattr("vlp.encode._encode_tokens", None)
    monkeypatch.setattr("data_pipelines.encoded.encode_pixels", None)
    found = evaluate(str(model), str(evaluated / "shards"), tasks=tasks, how=how)
    assert found["metrics"] == told["metrics"]
    write_shards(pairs(90)[50:], tmp_path / "other", samples_per_shard=20)
    tasks = [tasks[2].replace(f"{evaluated / 'train'}", f"{tmp_path / 'other'}")]
    with pytest.raises(UserError, match="linear_probe was written with another config: dataset_id"):
        evaluate(str(model), str(evaluated / "shards"), tasks=tasks, how=how)


def test_rows_before_the_projection_are_encoded_when_they_are_asked_for(evaluated, model, tmp_path):
    shutil.copytree(evaluated / "features", tmp_path / "features")
    encoder, dataset = load_encoder(model), open_dataset(str(evaluated / "shards"))
    for _ in range(2):
        encode = Encode(encoder, folder=tmp_path / "features")
        assert encode.dataset(dataset, pooled=True).image_pooled is not None
    assert (tmp_path / "features" / "evaluated" / "text_pooled.npy").is_file()


def test_features_of_another_model_or_dataset_and_damaged_ones_are_refused(
    evaluated, model, other, tmp_path
):
    how = How(features=tmp_path / "features", draws=0)
    shutil.copytree(evaluated / "features", tmp_path / "features")
    shards = str(evaluated / "shards")
    with pytest.raises(UserError, match="written with another config: model_hash was"):
        evaluate(str(other), shards, tasks=["retrieval"], how=how)
    write_shards(pairs(5), tmp_path / "few")
    with pytest.raises(UserError, match="dataset_identity was"):
        evaluate(str(model), str(tmp_path / "few"), tasks=["retrieval"], how=how)
    shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(UserError, match="has_lines was False, is True"):
        evaluate(str(model), str(tmp_path / "shards"), tasks=["retrieval"], how=how)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("of a person")
    with pytest.raises(UserError, match="holds files that no vlp command wrote"):
        evaluate(str(model), shards, tasks=["retrieval"], how=How(features=tmp_path / "mine"))
    path = tmp_path / "features" / "evaluated" / "image.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match=r"damaged: image\.npy is not as it was written"):
        evaluate(str(model), shards, tasks=["retrieval"], how=how)
    anew = replace(how, overwrite=True)
    assert evaluate(str(other), shards, tasks=["retrieval"], how=anew)
    assert evaluate(str(other), shards, tasks=["retrieval"], how=how)


def test_features_that_are_nan_end_in_one_line(model, evaluated, tmp_path, capsys):
    encoder = load_encoder(model)
    encoder.visual.head.proj.weight.data.fill_(float("nan"))
    save_encoder(encoder, tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(tmp_path), str(evaluated / "shards"), "--quiet"])
    assert stop.value.code == 2
    assert "image features that are NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["zero_shot(classes=['violet'], label='colour')"], "No label is a class"),
        (
            ["zero_shot(classes=['red', 'blue'], label='nothing')"],
            "No sample has the label 'nothing'",
        ),
        (["zero_shot(classes=['red'], templates=('a photo',))"], "has no place for the class name"),
        (["zero_shot(classes=['red', ' '])"], "Class 2 of 2 is ' '"),
        (["zero_shot(classes=['red'], label='colour', group='x')"], "No sample has the group 'x'"),
    ],
)
def test_a_wrong_task_ends_in_one_line_before_anything_is_encoded(
    tasks, message, evaluated, model, capsys, monkeypatch
):
    monkeypatch.setattr("data_pipelines.encoded.encode_pixels", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(model), str(evaluated / "shards"), "--tasks", *tasks])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("task", ["retrieval", "geometry", "matryoshka", "multilingual"])
def test_missing_captions_are_noticed_before_anything_is_encoded(
    task, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("data_pipelines.encoded.encode_pixels", None)
    pictures = {f"{n}.png": pairs(2)[n].image for n in range(2)}
    write_tar(tmp_path / "0.tar", pictures | {"0.cls": b"0", "1.cls": b"1"})
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(model), str(tmp_path), "--tasks", task])
    assert stop.value.code == 2
    assert "caption" in capsys.readouterr().err


def every_kind_of_task(folder: Path) -> list[str]:
    """Return tasks that read captions, another dataset and pictures of their own."""
    items, cues = folder / "items.json", folder / "cues.jsonl"
    if not items.exists():
        for number, sample in enumerate(pairs(6)):
            (folder / f"{number}.png").write_bytes(sample.image)
        entries = [{"image": f"{i}.png", "caption_options": ["a b", "b a"]} for i in range(6)]
        items.write_text(json.dumps(entries))
        names = [f"{i}.png" for i in range(5)]
        cues.write_text(json.dumps({"cue": "sea", "candidates": names, "associations": names[:2]}))
        write_shards(pairs(90)[48:], folder / "train", samples_per_shard=20)
    return [
        "retrieval",
        f"zero_shot({CLASSES}, templates='imagenet_simple')",
        f"linear_probe({CLASSES}, train='{folder / 'train'}', shots=(1,), seeds=1)",
        f"compositional(benchmark='order', files='{items}', images='{folder}')",
        f"associations(files='{cues}', images='{folder}')",
    ]


def arrays_in(folder: Path, count: int) -> list[Path]:
    """Return the files of features that an evaluation by so many processes kept."""
    return list((folder / f"features{count}").rglob("*.npy"))


def one_rank(rank: int, processes: int, port: int, model: str, shards: str, out: str) -> None:
    """Evaluate as one of several processes."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    how = How(batch_size=7, draws=20, features=Path(out) / f"features{processes}")
    tasks = every_kind_of_task(Path(shards).parent)
    found = evaluate(model, shards, tasks=tasks, out=Path(out) / f"out{processes}", how=how)
    assert bool(found) == (rank == 0)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_features_and_figures(evaluated, model, tmp_path):
    how, shards = How(batch_size=7, draws=20, features=tmp_path / "features1"), evaluated / "shards"
    tasks = every_kind_of_task(evaluated)
    evaluate(str(model), str(shards), tasks=tasks, out=tmp_path / "out1", how=how)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_ranks(__file__, one_rank, 2, port, str(model), str(shards), str(tmp_path))
    kept = sorted(path.relative_to(tmp_path / "features1") for path in arrays_in(tmp_path, 1))
    assert {path.parts[0] for path in kept} == {
        *("evaluated", "linear_probe", "compositional", "associations", "captions")
    }
    for name in kept:
        one, two = (tmp_path / f"features{count}" / name for count in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    one, two = (json.loads((tmp_path / f"out{n}" / "metrics.json").read_text()) for n in (1, 2))
    assert one["metrics"] == two["metrics"]
    assert one["intervals"] == two["intervals"]
    assert two["processes"] == 2


def test_compare_reads_what_eval_wrote(evaluated, model, other, tmp_path, capsys):
    for name in ("a", "b"):
        task = f"zero_shot({CLASSES})"
        how = How(draws=40)
        which = str(model if name == "a" else other)
        evaluate(which, str(evaluated / "shards"), tasks=[task], out=tmp_path / name, how=how)
    capsys.readouterr()
    found = cli.run(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert [row["figure"] for row in found["differences"]] == ["zero_shot/acc@1"]
    assert "They cover the choice of the images; not the seed" in capsys.readouterr().out


def test_datacomp38_computes_what_is_there_and_says_what_is_missing(model, tmp_path, capsys):
    for place in ("wds_cifar10_test/test", "dollar_street/test", "wds_flickr30k_test/test"):
        folder = tmp_path / "sets" / place
        folder.mkdir(parents=True)
        (folder.parent / "classnames.txt").write_text("red\ngreen\nblue\nblack\nwhite\ngrey\n")
        samples = {
            f"{i}.{end}": data for i, s in enumerate(pairs(8)) for end, data in members(s, i)
        }
        write_tar(folder / "0.tar", samples)
    (tmp_path / "sets" / "wds_flickr30k_test" / "dataset_type.txt").write_text("retrieval")
    argv = ["eval", str(model), str(tmp_path / "sets"), "--preset", "datacomp38", "--draws", "10"]
    found = cli.run([*argv, "--out", str(tmp_path / "out")])
    names = {"cifar10/main", "fairness/dollar_street/main", "retrieval/flickr30k/main", "main"}
    assert set(found["metrics"]) == names
    alone = json.loads((tmp_path / "out" / "cifar10" / "metrics.json").read_text())["metrics"]
    assert found["metrics"]["cifar10/main"] == alone["zero_shot/acc@1"]
    street = json.loads((tmp_path / "out" / "fairness-dollar_street" / "metrics.json").read_text())
    worst = street["metrics"]["zero_shot/worst_group_acc@5"]
    assert found["metrics"]["fairness/dollar_street/main"] == worst
    assert len(found["missing"]) == 35
    said = capsys.readouterr().out
    assert "main is the mean of 3 of 38 datasets." in said
    assert "Missing: vtab/caltech101, " in said
    with pytest.raises(UserError, match="holds no dataset of datacomp38"):
        cli.run(["eval", str(model), str(tmp_path / "out" / "cifar10"), "--preset", "datacomp38"])


def test_datacomp38_has_38_datasets():
    members = read_preset("datacomp38")
    assert len(members) == len({member.key for member in members}) == 38
    with pytest.raises(UserError, match="Did you mean datacomp38"):
        read_preset("datacomp")


def members(sample, row: int) -> list[tuple[str, bytes]]:
    facts = io.BytesIO()
    np.save(facts, np.array([row % 2, 3]))
    label = str(sample.metadata["cls"]).encode()
    return [
        *(("png", sample.image), ("txt", sample.text.encode()), ("cls", label)),
        ("npy", facts.getvalue()),
    ]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def chromium():
    """Return Chromium, installed from Debian's packages where it is missing."""
    if not shutil.which("chromium"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=True)
    return shutil.which("chromium")


@pytest.mark.slow
def test_a_browser_shows_every_part_of_the_report_and_no_error(evaluated, chromium, tmp_path):
    report = (evaluated / "out" / "report.html").as_uri()
    command = [chromium, *CHROMIUM, f"--user-data-dir={tmp_path}/user", "--window-size=900,4000"]
    dumped = subprocess.run(
        [*command, "--dump-dom", report], capture_output=True, text=True, timeout=120
    )
    assert set(PARTS) <= Page(dumped.stdout).ids
    assert "CONSOLE" not in dumped.stderr
    assert not re.search(r"net::ERR|Refused to", dumped.stderr)
    shot = tmp_path / "report.png"
    subprocess.run([*command, f"--screenshot={shot}", report], capture_output=True, timeout=120)
    from PIL import Image

    colours = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 200  # pictures and plots, not a blank page
