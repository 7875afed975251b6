"""Every benchmark runs: on drawn data, for a moment, as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import COLOURS, pairs
from training_support import one_thread

from data_pipelines.shards import write_shards
from vlp.types import Sample

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHORT = ["--options", "--steps", "3", "--data.batch-size", "8", "--data.workers", "1"]
PARTS = {"kills"}
"""Files that are a part of others."""
RUNS = {
    path.stem: [path.stem, "--quick"]
    for path in sorted(FOLDER.glob("*.py"))
    if path.stem not in PARTS
}
RUNS |= {
    # Its other parts take minutes: they train, or read many pictures.
    "filters": ["filters", "--quick", "--only", "planted"],
    "filters, memory": ["filters", "--quick", "--only", "reduced"],
    "filters, speed": ["filters", "--quick", "--only", "speed"],
    "hard_negatives": ["hard_negatives", "OUT", "--quick", "--seeds", "0", "1"],
    "loader": ["loader", "PHOTOGRAPHS", "--quick"],
    "embed": ["embed", "PHOTOGRAPHS", "--quick"],
    "emoji": ["emoji", "EMOJI", "OUT", *SHORT],
    "emoji, selection": ["emoji", "EMOJI", "OUT", "--select", *SHORT],
    "emoji, kills": ["emoji", "EMOJI", "OUT", "--kill-every", "600", *SHORT],  # kills none
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(name, tmp_path):
    drawn = {"EMOJI": emoji, "PHOTOGRAPHS": photographs}
    script, *words = RUNS[name]
    argv = [drawn[word](tmp_path / word) if word in drawn else word for word in words]
    argv = [str(tmp_path / "out") if word == "OUT" else str(word) for word in argv]
    command = [sys.executable, str(FOLDER / f"{script}.py"), *argv]
    ran = subprocess.run(command, capture_output=True, text=True, env=one_thread())
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(ran.stdout.splitlines()) > 3


def emoji(folder: Path) -> Path:
    """Draw sets as the emoji benchmark reads them: a new style, and new concepts."""
    drawn = pairs(96)
    sets = {
        "train": [thing(drawn[i], i // 2, ("google", "twitter")[i % 2]) for i in range(64)],
        "test_style": [thing(drawn[i], i - 64, "openmoji") for i in range(64, 80)],
        "test_concepts": [thing(drawn[i], i, "google") for i in range(80, 96)],
    }
    for name, samples in sets.items():
        write_shards(samples, folder / name)
    concepts = {
        part: {"classnames": list(named.values()), "ids": list(named)}
        for part in ("train", "test_concepts")
        for named in [{s.metadata["concept_id"]: s.text for s in sets[part]}]
    }
    classes = {
        "templates": ["{}"],
        "subgroup": {"classnames": list(COLOURS), "label_key": "subgroup"},
        "concept": {"label_key": "concept_id", **concepts},
    }
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def thing(sample: Sample, concept: int, vendor: str) -> Sample:
    colour = list(COLOURS)[concept % 4]
    about = {"keywords": [colour], "vendor": vendor, "concept_id": concept, "subgroup": colour}
    return Sample(sample.key, sample.image, f"a {colour} thing {concept}", about)


def photographs(folder: Path) -> Path:
    """Draw a few of the photographs that the benchmark draws where it is given none."""
    code = "import sys; from pathlib import Path; from drawn import photographs as p; "
    code += "p.NUM_PHOTOGRAPHS = 70; p.drawn_photographs(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=FOLDER)
    return folder
