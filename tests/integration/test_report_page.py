"""The report of a curation in a browser, as a person opens it: whole, and without an error."""

import re
import shutil
import subprocess

import pytest

from data_pipelines import toy
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.shards import write_shards

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
    *("--enable-logging=stderr", "--dump-dom"),
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium, Debian's package"),
]


def opened(page, tmp_path):
    """Return the document after the browser has laid it out, and what its console says."""
    assert CHROMIUM
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def test_a_page_that_breaks_its_policy_is_found_out(tmp_path):
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    (tmp_path / "bad.html").write_text(f"{policy}<script>alert(1)</script>")
    _, said = opened(tmp_path / "bad.html", tmp_path)
    assert any("violates" in line for line in said)


def test_the_report_opens_without_an_error_and_shows_its_parts(tmp_path):
    write_shards(toy.draw_training(300, 0), tmp_path / "raw", samples_per_shard=100)
    keep = ("caption_words(min=3)", "image_side(min=32)", "exact_duplicate")
    clean = tmp_path / "clean"
    filter_shards(str(tmp_path / "raw"), clean, keep=keep, engine=Engine(kind="inline"))
    document, said = opened(clean / "report.html", tmp_path)
    assert said == []
    titles = re.findall(r"<h2>(.*?)</h2>", document)
    assert titles == [
        "What each rule did",
        "Rules that drop the same samples",
        "Scores",
        "What share is kept",
        "Samples",
        "What could not be scored",
        "Speed",
        "How to do it again",
    ]
    assert document.count("<details>") == len(keep)
    assert document.count("data:image/jpeg;base64,") > 20
    assert document.rstrip().endswith("</html>")
