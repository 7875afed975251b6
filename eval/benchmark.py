"""A benchmark of several datasets: each one's main figure, their mean, and what is missing."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from eval.bootstrap import interval
from eval.open_dataset import open_dataset
from eval.record import (
    METRICS,
    Evaluation,
    hash_of,
    summarise,
    training_of,
    write_draws,
    write_evaluation,
)
from eval.run import How, build_evaluators, check_evaluators, run_tasks
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import say, show, show_table
from vlp.encode import to_best_device
from vlp.encoder import DualEncoder
from vlp.environment import versions
from vlp.errors import UserError, nearest
from vlp.output import check_output, output_folder, write_json
from vlp.processes import Processes, joined

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Member:
    """One dataset of a benchmark."""

    key: str
    """As the benchmark's authors call it."""
    task: str
    """What is run on it, with ``{place}`` for where it lies if that is no dataset."""
    figure: str
    """The main figure, by its name in that task."""
    folders: Sequence[str]
    """What it may be called inside the user's folder, or a pattern; the first that is there."""

    def find(self, folder: Path) -> Path | None:
        """Return where the dataset lies in a folder, its test split where it has splits."""
        places = (place for own in self.folders for place in sorted(folder.glob(own)))
        found = next(places, None)
        return found / "test" if found is not None and (found / "test").is_dir() else found


class Scored(NamedTuple):
    """What a dataset's main figure is."""

    value: float
    draws: Float64[Tensor, "draws"] | None
    sample_ids: str
    num_images: int


def read_preset(name: str) -> list[Member]:
    """Return the datasets of a benchmark.

    Raises:
        UserError: There is no such benchmark.
    """
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = [p.stem for p in PRESETS.glob("*.json")]
        raise UserError(f"There is no benchmark {name!r}. {nearest(name, known)}")
    told = json.loads(path.read_text())
    return [
        Member(key, about["task"], about["figure"], about["folders"]) for key, about in told.items()
    ]


def evaluate_preset(
    model: str, folder: Path, preset: str, *, out: Path | None = None, how: How | None = None
) -> dict[str, Any]:
    """Run a benchmark on those of its datasets that a folder holds, and say what is missing.

    Figures are ``DATASET/main``, and ``main`` is their mean. Below ``out`` each dataset has a
    folder of its own, with a report.

    Raises:
        UserError: The folder holds none of them, or one cannot be used.
    """
    how = how or How()
    members = read_preset(preset)
    places = {member.key: member.find(folder) for member in members}
    present = [member for member in members if places[member.key]]
    if not present:
        raise UserError(
            f"{folder} holds no dataset of {preset}. It looks for folders such as "
            f"{members[0].folders[0]}, in CLIP_benchmark's layout."
        )
    with joined() as processes:
        encoder = to_best_device(load_encoder(model))
        config = {"model": model, "model_hash": encoder_hash(encoder), "dataset": str(folder)}
        config |= {"preset": preset, "draws": how.draws, "seed": how.seed}
        if out:
            inputs = [folder, *paths_of(model)]
            check_output(out, "eval", config, inputs=inputs, overwrite=how.overwrite)
        scored: dict[str, Scored] = {}
        parts: dict[str, tuple[Evaluation, dict[str, Any]]] = {}
        for member in present:
            say(f"{member.key}:")
            found = _evaluate_one(encoder, member, places[member.key], how, processes)
            if found is None:
                continue
            told = {**config, "dataset": str(places[member.key]), "tasks": [member.task]}
            summary = summarise(found, told)
            figure = member.figure
            value = summary["metrics"][figure]
            (num_images,) = summary["images"].values()
            draws = found.replicates.get(figure)
            scored[member.key] = Scored(value, draws, summary["sample_ids"], num_images)
            parts[member.key] = found, summary
        if not processes.is_first:
            return {}
        return _finish(members, scored, parts, config, out, how)


def _evaluate_one(
    encoder: DualEncoder, member: Member, place: Path | None, how: How, processes: Processes
) -> Evaluation | None:
    """Return what the task of one dataset finds; every dataset draws its images by its name."""
    (evaluator,) = evaluators = build_evaluators([member.task.replace("{place}", str(place))])
    # Some benchmarks are files about pictures of their own.
    own_set = getattr(evaluator, "dataset", None)
    dataset = own_set() if own_set else open_dataset(str(place))
    check_evaluators(evaluators, dataset)
    features = how.features / _slug(member.key) if how.features else None
    own = replace(how, features=features, seed=how.seed + zlib.crc32(member.key.encode()))
    return run_tasks(encoder, dataset, evaluators, own, processes)


def _finish(
    members: Sequence[Member],
    scored: dict[str, Scored],
    parts: dict[str, tuple[Evaluation, dict[str, Any]]],
    config: dict[str, Any],
    out: Path | None,
    how: How,
) -> dict[str, Any]:
    """Print and write the main figures, their mean, and what is missing."""
    figures = {f"{key}/main": one.value for key, one in scored.items()}
    figures["main"] = sum(figures.values()) / len(figures)
    draws = {f"{key}/main": one.draws for key, one in scored.items() if one.draws is not None}
    if draws and len(draws) == len(scored):
        draws["main"] = torch.stack(list(draws.values())).mean(0)
    num_images = {f"{key}/main": one.num_images for key, one in scored.items()}
    num_images["main"] = sum(num_images.values())
    intervals = {
        name: [*interval(values, figures[name], num_images=num_images[name])]
        for name, values in draws.items()
    }
    missing = [member.key for member in members if member.key not in scored]
    summary = {
        "metrics": figures,
        "intervals": intervals,
        **config,
        "sample_ids": hash_of([f"{key} {one.sample_ids}" for key, one in scored.items()]),
        "images": {key: one.num_images for key, one in scored.items()},
        "missing": missing,
        "training": training_of(str(config["model"])),
        "versions": versions(),
    }
    rows = [(name, value, *intervals.get(name, ("", ""))) for name, value in figures.items()]
    show_table(("figure", "value", "from", "to"), rows)
    show(f"main is the mean of {len(scored)} of {len(members)} datasets.")
    if missing:
        show(f"Missing: {', '.join(missing)}.")
    if out:
        with output_folder(out, "eval", config, overwrite=how.overwrite) as folder:
            for key, (found, own) in parts.items():
                told = {"dataset": own["dataset"]}
                write_evaluation(folder / _slug(key), found, own, told, inputs=[], overwrite=True)
            write_json(folder / METRICS, summary)
            write_draws(folder, draws)
        say(f"Wrote {out / METRICS} and a folder for each dataset.")
    return summary


def _slug(key: str) -> str:
    return key.replace("/", "-")
