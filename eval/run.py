"""Evaluate a model: encode the shards once, run every evaluator on the features."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from data_pipelines.encoded import EncodedSet, encode_dataset
from eval.open_dataset import open_dataset
from eval.result import Result
from vlp import spec
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import say, show_table
from vlp.encode import to_best_device
from vlp.encoder import DualEncoder
from vlp.environment import versions
from vlp.errors import UserError
from vlp.output import check_output, output_folder, write_json

METRICS = "metrics.json"
CHANCE = {"recall@1": "chance@1", "acc@1": "chance", "mean_per_class_recall": "chance"}
"""The figure beside each that says what a guess would get."""


@runtime_checkable
class Evaluator(Protocol):
    """One file of ``eval/evaluators``.

    It may also have ``check(dataset)``, run before encoding, and ``needs_pooled = True``, to find
    the rows before the projections in what is encoded.
    """

    @property
    def name(self) -> str:
        """What the names of its figures start with; unique in a run."""
        ...

    def __call__(self, encoder: DualEncoder, encoded: EncodedSet) -> Result:
        """Return figures by name, such as ``retrieval/image_to_text/recall@1``."""
        ...


def evaluate(
    model: str,
    shards: str,
    *,
    tasks: Sequence[str],
    out: Path | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the tasks on a model and shards, print a table, and write ``metrics.json`` into ``out``.

    Whatever can be wrong with the tasks is found before anything is encoded.

    Raises:
        UserError: A task, the model, the shards or the output folder cannot be used.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}. Give at least 1.")
    evaluators = build_evaluators(tasks)
    source = open_dataset(shards)
    for evaluator in evaluators:
        getattr(evaluator, "check", lambda _: None)(source)
    encoder = to_best_device(load_encoder(model))
    config = {
        "model": model,
        "model_hash": encoder_hash(encoder),
        "shards": shards,
        "tasks": list(tasks),
    }
    inputs = [*source.files, *paths_of(model, shards)]
    if out:
        check_output(out, "eval", config, inputs=inputs, overwrite=overwrite)
    start = time.perf_counter()
    pooled = needs_pooled(evaluators)
    encoded = encode_dataset(encoder, source, pooled=pooled, batch_size=batch_size)
    figures = run_evaluators(encoder, encoded, evaluators)
    seconds = round(time.perf_counter() - start, 2)
    result = {"metrics": figures, **config, "samples": len(encoded.samples), "seconds": seconds}
    result |= {"versions": versions(), "faults": encoded.faults.as_dict()}
    _show(result)
    if out:
        _write(out, result, config, inputs=inputs, overwrite=overwrite)
    return result


def build_evaluators(tasks: Sequence[str]) -> list[Evaluator]:
    """Return the evaluators that tasks such as ``"zero_shot(classes='classes.json')"`` name.

    Raises:
        UserError: There is no task, no such evaluator, or two have the same name.
    """
    if not tasks:
        raise UserError(f"There is no task. Known: {', '.join(spec.names('eval.evaluators'))}.")
    evaluators = [spec.build("eval.evaluators", task) for task in tasks]
    seen: dict[str, str] = {}
    for task, evaluator in zip(tasks, evaluators, strict=True):
        if evaluator.name in seen:
            raise UserError(
                f"The tasks {seen[evaluator.name]!r} and {task!r} are both called "
                f"{evaluator.name!r}. Give one another name=."
            )
        seen[evaluator.name] = task
    return evaluators


def run_evaluators(
    encoder: DualEncoder, encoded: EncodedSet, evaluators: Sequence[Evaluator]
) -> dict[str, float]:
    """Return the figures of all evaluators, in their order. The encoder is in eval mode.

    Raises:
        UserError: Nothing was encoded, a feature is not finite, or an evaluator lacks something.
    """
    assert not encoder.training, "dropout would blur the features"
    if not encoded.samples:
        raise UserError(
            f"There is no sample to evaluate: none could be read ({encoded.faults.summary()})."
        )
    for kind, features in (("image", encoded.image), ("text", encoded.text)):
        if not torch.isfinite(features).all():
            raise UserError(
                f"The model gives {kind} features that are NaN or infinite: its weights are "
                f"broken. Give an earlier checkpoint."
            )
    figures: dict[str, float] = {}
    for evaluator in evaluators:
        figures |= evaluator(encoder, encoded).figures
    return figures


def needs_pooled(evaluators: Sequence[Evaluator]) -> bool:
    """Return whether one of them wants the rows before the projections."""
    return any(getattr(evaluator, "needs_pooled", False) for evaluator in evaluators)


def _write(out: Path, result: dict[str, Any], config: dict[str, Any], **options: Any) -> None:
    with output_folder(out, "eval", config, **options) as folder:
        write_json(folder / METRICS, result)
    say(f"Wrote {out / METRICS}.")


def _show(result: Mapping[str, Any]) -> None:
    """Print each figure beside what a guess would get; shares are in [0, 1], ranks start at 1."""
    figures, rows = result["metrics"], []
    for name, value in figures.items():
        folder, _, last = name.rpartition("/")
        if last not in CHANCE.values():
            chance = figures.get(f"{folder}/{CHANCE.get(last)}")
            rows.append((name, _short(value), "" if chance is None else _short(chance)))
    show_table(("metric", "value", "chance"), rows)
    say(f"{result['samples']} samples of {result['shards']} in {result['seconds']} s.")
    for reason, found in result["faults"].items():
        say(f"Left out {found['count']}: {reason}, such as {found['examples'][0]}.")


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4g}"
