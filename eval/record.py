"""What an evaluation found, and what it leaves on disk for people and for `vlp compare`.

``metrics.json`` has the figures and all that they may depend on; ``replicates.npz`` what each
figure is for each draw of the images; ``images.parquet`` what single images contribute;
``report.html`` and ``table.md`` are to be read.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64
from torch import Tensor

from data_pipelines.encoded import EncodedSet
from eval.bootstrap import LEVEL, interval
from eval.report import markdown_table, report
from eval.result import Result
from vlp.checkpoint import find_model, parse_model
from vlp.console import say
from vlp.environment import hardware, versions
from vlp.output import output_folder, read_record, write_bytes, write_json
from vlp.report import write_page

METRICS, REPLICATES, IMAGES = "metrics.json", "replicates.npz", "images.parquet"
REPORT, TABLE = "report.html", "table.md"
BY_CHANCE = ("seed", "trackers", "log_every", "save_every", "validate_every", "tasks", "keep")
"""Fields of a training run in which runs of one config may differ."""


@dataclass(frozen=True)
class Evaluation:
    """What the evaluators found on an encoded dataset."""

    encoded: EncodedSet
    results: dict[str, Result]
    """By the evaluator's name."""
    seconds: dict[str, float]
    """By the evaluator's name, and of encoding."""
    about: dict[str, Any]
    """What the features depend on."""
    replicates: dict[str, Float64[Tensor, "draws"]]
    """Of each figure that has them, its value for each draw of the images."""

    @property
    def figures(self) -> dict[str, float]:
        """All figures by name, in the order of the evaluators."""
        return {name: v for result in self.results.values() for name, v in result.figures.items()}


def summarise(found: Evaluation, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: figures, intervals, and all that they may depend on."""
    figures = found.figures
    intervals = {
        name: interval(
            found.replicates[name],
            figures[name],
            num_images=result.num_images or len(found.encoded.samples),
            within=result.range_of(name),
        )
        for result in found.results.values()
        for name in result.figures
        if name in found.replicates
    }
    return {
        "metrics": figures,
        "intervals": {name: [*of] for name, of in intervals.items() if not math.isnan(of[0])},
        "interval_level": LEVEL,
        **config,
        **found.about,
        "samples": len(found.encoded.samples),
        "images": {
            name: len(found.encoded.samples) if result.num_images is None else result.num_images
            for name, result in found.results.items()
        },
        "sample_ids": hash_of([sample.key for sample in found.encoded.samples]),
        "seconds": {name: round(seconds, 3) for name, seconds in found.seconds.items()},
        "training": training_of(str(config["model"])),
        "faults": found.encoded.faults.as_dict(),
        "versions": versions(),
        "hardware": hardware(),
        "evaluated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_evaluation(
    out: Path,
    found: Evaluation,
    summary: dict[str, Any],
    config: dict[str, Any],
    *,
    inputs: Sequence[Path],
    overwrite: bool,
) -> None:
    """Write an evaluation into a folder."""
    with output_folder(out, "eval", config, inputs=inputs, overwrite=overwrite) as folder:
        write_json(folder / METRICS, summary)
        write_draws(folder, found.replicates)
        pq.write_table(_images(found), folder / IMAGES)
        write_page(folder / REPORT, report(found.encoded, found.results, summary))
        write_bytes(folder / TABLE, markdown_table(summary).encode())
    say(f"Wrote {out / METRICS}, {REPORT} and {TABLE}.")


def training_of(model: str) -> dict[str, Any] | None:
    """Return the seed and the config, as a hash, of the run that a model is of; None of others.

    Which of the run's checkpoints it is belongs to the config: two steps are no two seeds.
    """
    checkpoint = find_model(*parse_model(model)).folder
    if checkpoint is None:
        return None
    checkpoint = checkpoint.absolute()
    for folder in checkpoint.parents[:3]:
        record = read_record(folder)
        if record is not None and record["command"] == "train":
            config = {k: v for k, v in record["config"].items() if k not in BY_CHANCE}
            config["checkpoint"] = str(checkpoint.relative_to(folder))
            text = json.dumps(config, sort_keys=True, default=str)
            return {"seed": record["config"].get("seed"), "config": hash_of([text])}
    return None


def hash_of(texts: Sequence[str]) -> str:
    """Return 16 hex digits of texts in their order."""
    joined = "\0".join(texts).encode(errors="surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16]


def write_draws(folder: Path, replicates: Mapping[str, Float64[Tensor, "draws"]]) -> None:
    """Write what figures are for each draw of the images."""
    draws = {name: values.numpy() for name, values in replicates.items()}
    np.savez_compressed(folder / REPLICATES, **draws)  # type: ignore[arg-type]


def _images(found: Evaluation) -> pa.Table:
    """Return a row for each image: its key, and what it contributes to each mean over images."""
    count = len(found.encoded.samples)
    # A file's name may be no Unicode; a table's text is.
    keys = (sample.key.encode(errors="backslashreplace") for sample in found.encoded.samples)
    columns: dict[str, Any] = {"key": [key.decode() for key in keys]}
    for result in found.results.values():
        for name, (values, weights) in result.per_image.items():
            if len(values) == count:
                columns[name] = np.where(weights > 0, values.double(), np.nan)
    return pa.table(columns)
