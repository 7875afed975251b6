"""CLIP_benchmark 1.6.2 under the clock, as its command line is.

`eval_parity.py` runs this file in an environment of its own: 1.6.2 stops with numpy 2.4 after the
whole evaluation. The one argument is a JSON object, the last line of output another.
"""

import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

PACKAGES = (
    *("clip-benchmark==1.6.2", "numpy==2.3.5", "requests>=2.32,<3", "urllib3>=2,<3"),
    *("charset-normalizer>=3,<4", "idna>=3", "certifi", "webdataset==1.0.2", "braceexpand>=0.1.7"),
)
SCORES = {
    "tokenizer.ptbtokenizer": "PTBTokenizer",
    "bleu.bleu": "Bleu",
    "meteor.meteor": "Meteor",
    "rouge.rouge": "Rouge",
    "cider.cider": "Cider",
    "spice.spice": "Spice",
}


def main() -> None:
    options = json.loads(sys.argv[1])
    stand_in_for_caption_scores()
    from clip_benchmark import cli  # pyright: ignore[reportMissingImports]

    common = ["--model", options["model"], "--pretrained", "", "--no_amp", "--quiet"]
    common += ["--batch_size", str(options["batch_size"])]
    common += ["--num_workers", str(options["workers"])]
    found = {}
    for name, told in options["runs"].items():
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "found.json"
            sys.argv = ["clip_benchmark", "eval", *told, *common, "--output", str(output)]
            began, used = time.perf_counter(), cpu_seconds()
            cli.main()
            found[name] = {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - used}
            found[name] |= json.loads(output.read_text())["metrics"]
    print(json.dumps(found))


def cpu_seconds() -> float:
    """Return the processor time of this process and of its workers that have ended."""
    return sum(os.times()[:4])


def stand_in_for_caption_scores() -> None:
    """Let it import what it scores captions with, 101 MB of Java that no task here calls."""
    for name, score in SCORES.items():
        parent = name.partition(".")[0]
        for path in ("pycocoevalcap", f"pycocoevalcap.{parent}", f"pycocoevalcap.{name}"):
            sys.modules.setdefault(path, types.ModuleType(path))
        module: Any = sys.modules[f"pycocoevalcap.{name}"]
        setattr(module, score, None)


if __name__ == "__main__":
    main()
