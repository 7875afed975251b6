"""Reports and model cards: what they show is what the run wrote, and data is never markup."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
from huggingface_hub import ModelCard
from markupsafe import Markup
from PIL import Image
from tests_support import Seen

from training.recipes import toy
from training.run_folder.card import public_name, write_card
from training.run_folder.report import REPORT, write_report
from training.run_folder.sessions import RunStatus, end_session, read_sessions
from vlp.output import write_json, write_record
from vlp.report import (
    beside,
    folded,
    gallery,
    number,
    page,
    plot,
    section,
    table,
    tiles,
    write_page,
)

EVIL = "</td><script>alert('x')</script>\"&{0}{title}\x1b[2J"


def test_text_is_never_markup_in_any_part():
    picture = Image.new("RGB", (400, 300), "red")
    parts = [
        tiles({EVIL: EVIL, "loss": 0.5}),
        table((EVIL, "b"), [(EVIL, 1), ("x", 2)]),
        plot(EVIL, {EVIL: [(0, 1), (1, 2)], "other": [(0, 2)]}, x=EVIL),
        gallery([(picture, EVIL)]),
    ]
    document = page(EVIL, section(EVIL, *parts, note=EVIL), folded(EVIL, *parts), subtitle=EVIL)
    seen = Seen(document)
    assert "script" not in seen.tags
    assert seen.text.count(EVIL) >= 10
    assert all(source.startswith("data:image/jpeg;base64,") for source in seen.sources)


def test_a_page_asks_for_nothing_from_outside():
    document = page("run", plot("loss", {"loss": [(0, 1), (5, 2)]}, x="step"))
    assert not re.search(r"https?://|<script|<link|@import|url\(", document)
    assert "default-src 'none'" in document
    assert 'name="viewport"' in document


def test_numbers_are_aligned_and_texts_are_not():
    cells = re.findall(r"<t[dh]( class=\"number\")?>([^<]*)<", table(("a", "b"), [("x", 1234567)]))
    assert cells == [
        ("", "a"),
        (' class="number"', "b"),
        ("", "x"),
        (' class="number"', "1,234,567"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345.678, "12,345.7"),
        (0.123456, "0.1235"),
        (3e-5, "3e-05"),
        (math.nan, "nan"),
        (True, "True"),
        ("a", "a"),
        (-2.0, "-2"),
        (1e20, "100,000,000,000,000,000,000.0"),
    ],
)
def test_a_number_is_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [5.0, 5.0],
        [0.0, 0.0],
        [-3.0, -3.0],
        [1e-12, 3e-12],
        [-1e9, 1e9],
        [1e300, -1e300],
        [0.1 * n for n in range(1000)],
        [math.nan, 2.0, math.inf, 3.0],
    ],
    ids=str,
)
def test_a_plot_of_any_finite_numbers_stays_inside_its_frame(values):
    drawn = plot("t", {"t": list(enumerate(values))}, x="step")
    Seen(drawn)
    places = re.findall(r"points=\"([^\"]*)\"", drawn)
    for x, y in (pair.split(",") for line in places for pair in line.split()):
        assert 0 <= float(x) <= 360
        assert 0 <= float(y) <= 210
    assert "nan" not in drawn


def test_a_plot_of_nothing_finite_and_parts_of_nothing_are_left_out():
    nothing = plot("t", {"t": [(0, math.nan)], "u": []}, x="step")
    assert nothing == beside(nothing) == section("empty", nothing, table(("a",), [])) == Markup()


def test_the_one_spike_of_a_long_series_is_drawn():
    flat = [(step, 1.0) for step in range(100_000)]
    spiked = [*flat[:70_000], (70_000, 9.0), *flat[70_001:]]
    drawn = plot("t", {"t": spiked}, x="step")
    assert len(drawn) < 20_000
    assert re.search(r">10</text>", drawn)
    assert "<polygon" in drawn
    assert "<polygon" not in plot("t", {"t": flat}, x="step")


def test_a_page_is_written_whatever_its_text(tmp_path):
    write_page(tmp_path / "page.html", page("\ud800 é"))
    assert "é" in (tmp_path / "page.html").read_text()


@pytest.fixture
def run(tmp_path):
    """A run's folder as a run leaves it, with names that are markup."""
    folder = tmp_path / "a <run>"
    (folder / "checkpoints" / "step_0000002").mkdir(parents=True)
    config = replace(toy(), seed=77)
    told = asdict(replace(config, data=replace(config.data, shards=(EVIL, "s3://me:pw@bucket/a"))))
    write_record(folder, "train", told)
    rows = [
        {"step": 1, "samples_seen": 128, "loss": 3.21987, "learning_rate": 1e-3, "new/figure": 5},
        {"step": 2, "samples_seen": 256, "loss": math.nan, "grad_norm/image": 0.5},
        {
            "step": 2,
            "samples_seen": 256,
            "validation/loss": 2.5,
            "validation/retrieval/image_to_text/recall@1": 0.4375,
            "validation/retrieval/image_to_text/chance@1": 0.0625,
            "validation/retrieval/images": 64.0,
        },
        {"step": 3, "samples_seen": 384, "validation/loss": 1.5},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 4, "lo')
    session = {
        "started": "2026-01-01",
        "step": 0,
        "steps": 4,
        "processes": 2,
        "device": "cpu",
        "precision": "fp32",
        "hardware": {"processor": EVIL},
        "versions": {"torch": "2.6"},
        "parameters": {"image tower": 12345},
        "sources": [
            {"names": [EVIL, "s3://me:pw@bucket/a"], "samples": 5000, "shards": 5, "epochs": 1.5}
        ],
        "validation": {"names": ["/home/me/held"], "samples": 64, "shards": 1, "epochs": None},
    }
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    write_json(folder / "faults.json", {"image ends early": {"count": 3, "examples": [EVIL]}})
    return folder


def test_the_report_of_a_run_shows_what_its_files_say(run):
    (run / "skipped.jsonl").write_text(json.dumps({"step": 2, "keys": {"0": [EVIL, "k1"]}}) + "\n")
    write_report(run)
    seen = Seen((run / REPORT).read_text())
    assert "script" not in seen.tags
    text = " ".join(seen.text)
    for shown in ("a <run>", "3 of 4 steps, not finished", "0.4375", "0.0625", "5,000"):
        assert shown in text, shown
    for shown in ("new/figure", "grad_norm/image", "image ends early", "k1", "12,345", "2.6"):
        assert shown in text, shown
    assert re.search(r"seed\s+77", text)
    assert "the recipe toy" in text  # the nearest one: only the seed and the shards differ


def test_the_last_figures_of_the_report_are_those_of_the_metrics(run):
    write_report(run)
    shown = re.findall(r"<b>([^<]*)</b><span>([^<]*)<", (run / REPORT).read_text())
    told = {name: figure for figure, name in shown}
    assert told["validation loss"] == "1.5"
    assert told["retrieval image to text recall@1"] == "0.4375"


def test_a_run_that_logged_nothing_yet_has_a_report(tmp_path):
    write_report(tmp_path)
    assert "No step is logged yet" in (tmp_path / REPORT).read_text()


def test_a_report_that_cannot_be_written_ends_nothing(run, capsys):
    (run / REPORT).mkdir()
    write_report(run)
    assert "cannot be written" in capsys.readouterr().err


def test_the_report_tells_the_step_that_was_reached_and_why_the_run_ended(run):
    error = "Ended by an error: </p><script>"
    write_report(run, RunStatus(3, 400, error))
    text = " ".join(Seen((run / REPORT).read_text()).text)
    assert f"3 of 4 steps, not finished; 400 samples seen. {error}. Written 20" in text
    write_report(run, RunStatus(4, 512))
    assert "4 of 4 steps, finished; 512 samples seen. Written" in (run / REPORT).read_text()


def test_the_report_of_a_run_that_is_over_tells_from_its_files_why(run):
    for why in ("Stopped by SIGTERM", "a second end of the same session"):
        end_session(run, RunStatus(3, 400, why))
    (session,) = read_sessions(run)
    assert session["why"] == "Stopped by SIGTERM"
    write_report(run)
    text = " ".join(Seen((run / REPORT).read_text()).text)
    assert "3 of 4 steps, not finished; 400 samples seen. Stopped by SIGTERM. Written" in text


def test_figures_of_speed_and_the_guard_have_their_places(run):
    speeds = ("speed/samples_per_second_per_device", "speed/tflops_per_device", "speed/mfu")
    row = {"step": 1, "samples_seen": 128, "guard/skipped": 0, "guard/spikes": 0}
    (run / "metrics.jsonl").write_text(json.dumps(row | dict.fromkeys(speeds, 2)) + "\n")
    write_report(run)
    document = (run / REPORT).read_text()
    assert document.count("of a device</figcaption>") == 2
    assert not re.search("More figures|<h2>Guard", document)
    (run / "metrics.jsonl").write_text(json.dumps(row | {"guard/spikes": 1}) + "\n")
    write_report(run)
    document = (run / REPORT).read_text()
    assert "<h2>Guard" in document
    assert "spikes, in all" in document
    assert "steps left out, in all" not in document


def test_the_card_of_a_checkpoint_is_hugging_faces_and_tells_its_own_step(run):
    write_card(run, step=2, samples_seen=300)
    card = ModelCard.load(run / "checkpoints" / "step_0000002" / "README.md")
    assert card.data.library_name == "open_clip"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value) == ("recall", 0.4375)
    assert "Validated at step 2. On 64 held-out pairs" in card.text
    assert "| loss | 2.5 |" in card.text  # and not that of step 3
    assert "after 300 image-text pairs" in card.text  # and not those of the last row
    assert "<script>" not in card.text
    for secret in ("pw@", "/home/me"):
        assert secret not in card.content


def test_figures_of_an_earlier_step_say_so_and_are_no_results_of_the_weights(run):
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "validation/retrieval/recall@1": 0.25, "validation/loss": 3.5})
        + "\n"
        + json.dumps({"step": 2, "loss": 1.0})
    )
    write_card(run, step=2, samples_seen=256)
    card = ModelCard.load(run / "checkpoints" / "step_0000002" / "README.md")
    assert card.data.eval_results is None
    assert "Validated at step 1, before these weights of step 2" in card.text
    assert "| retrieval/recall@1 | 0.25 |" in card.text


def test_the_figures_of_a_moving_average_are_in_its_card_alone(run):
    folder = run / "checkpoints" / "step_0000002"
    (folder / "ema").mkdir()
    config = replace(
        toy(),
        ema=0.999,
        teacher="/home/me/big",
        loss=("softmax", "distill"),
        stages=("50%: freeze=visual", "rest"),
        memory=4096,
        memory_momentum=0.99,
    )
    write_record(run, "train", asdict(config))
    write_card(run, step=2, samples_seen=256)
    raw, averaged = (ModelCard.load(path / "README.md") for path in (folder, folder / "ema"))
    assert raw.data.eval_results is None
    assert "raw weights" in raw.text
    assert "0.4375" not in raw.content
    assert "[`ema/`](ema/README.md)" in raw.text
    assert "moving average (EMA)" in averaged.text
    assert averaged.data.eval_results[0].metric_value == 0.4375
    for told in (
        "| teacher | big |",
        "| moving average | keeps 0.999 of its own weights in a step |",
        "| stage 1 of 2 | 50%: freeze=visual |",
        "| memory | 4,096 past pairs as more negatives, momentum 0.99 |",
    ):
        assert told in raw.text
        assert told in averaged.text
    write_report(run)
    assert "Of the moving average of the weights" in (run / REPORT).read_text()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/me/clean/", "clean"),
        ("s3://key:secret@bucket/{00..99}.tar", "s3://bucket/{00..99}.tar"),
        ("https://host/a.tar?token=1", "https://host/a.tar"),
        ("pipe:curl -H 'Authorization: x' https://host", "output of a command"),
    ],
)
def test_a_card_names_data_without_what_is_private(source, name):
    assert public_name(source) == name
