"""Evaluate a model: encode a dataset once, run every evaluator on the features."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_pipelines.dataset import Dataset
from data_pipelines.encoded import EncodedSet
from eval.bootstrap import DRAWS, SEED, replicate
from eval.features import EVALUATED, OF_CAPTIONS, Encode
from eval.open_dataset import open_dataset
from eval.record import Evaluation, summarise, write_evaluation
from eval.report import rows_of
from eval.result import Result
from vlp import spec
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.console import say, show_table
from vlp.encode import to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.output import check_output
from vlp.processes import Processes, joined
from vlp.report import number


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

    def __call__(self, encode: Encode, encoded: EncodedSet) -> Result:
        """Return figures by name, such as ``retrieval/image_to_text/recall@1``.

        Args:
            encode: Gives the features of captions and of other datasets; all processes call it.
            encoded: The evaluated dataset.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class How:
    """How an evaluation is run; none of it is part of what is asked."""

    features: Path | None = None
    """Folder that keeps the features for the next evaluation."""
    draws: int = DRAWS
    """Of the images, for the intervals."""
    seed: int = SEED
    batch_size: int = 256
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"The batch size is {self.batch_size}. Give at least 1.")
        if self.draws < 0:
            raise UserError(f"draws is {self.draws}. Give 1000, or 0 for no intervals.")


def evaluate(
    model: str,
    source: str,
    *,
    tasks: Sequence[str],
    out: Path | None = None,
    how: How | None = None,
) -> dict[str, Any]:
    """Run the tasks on a model and a dataset, print a table, and write the evaluation to ``out``.

    Whatever can be wrong with the tasks is found before anything is encoded. Processes that
    ``torchrun`` started encode a part each, and all run the evaluators; the first one writes.

    Raises:
        UserError: A task, the model, the dataset or an output folder cannot be used.
    """
    how = how or How()
    with joined() as processes:
        evaluators = build_evaluators(tasks)
        dataset = open_dataset(source)
        check_evaluators(evaluators, dataset)
        encoder = to_best_device(load_encoder(model))
        config = {"model": model, "model_hash": encoder_hash(encoder), "dataset": source}
        config |= {"tasks": list(tasks), "draws": how.draws, "seed": how.seed}
        inputs = [*dataset.files, *paths_of(model)]
        if out:
            check_output(out, "eval", config, inputs=inputs, overwrite=how.overwrite)
        found = run_tasks(encoder, dataset, evaluators, how, processes)
        if found is None:
            return {}
        summary = summarise(found, config)
        show_evaluation(summary)
        if out:
            write_evaluation(out, found, summary, config, inputs=inputs, overwrite=how.overwrite)
        return summary


def run_tasks(
    encoder: DualEncoder,
    dataset: Dataset,
    evaluators: Sequence[Evaluator],
    how: How,
    processes: Processes,
) -> Evaluation | None:
    """Return what the evaluators find on a dataset; None on every process but the first."""
    start = time.perf_counter()
    encode = Encode(
        encoder,
        processes=processes,
        batch_size=how.batch_size,
        folder=how.features,
        overwrite=how.overwrite,
    )
    encoded = encode.dataset(dataset, pooled=needs_pooled(evaluators))
    seconds = {"encode": time.perf_counter() - start}
    results = {}
    for evaluator in evaluators:
        start = time.perf_counter()
        results[evaluator.name] = evaluator(encode, encoded)
        seconds[evaluator.name] = time.perf_counter() - start
    encode.keep_texts()
    if not processes.is_first:
        return None
    start, replicates = time.perf_counter(), {}
    for result in results.values():
        replicates |= replicate(result, len(encoded.samples), draws=how.draws, seed=how.seed)
    seconds["intervals"] = time.perf_counter() - start
    about = encode.about(dataset) | {"tasks_ask": {e.name: _first_line(e) for e in evaluators}}
    return Evaluation(encoded, results, seconds, about, replicates)


def build_evaluators(tasks: Sequence[str]) -> list[Evaluator]:
    """Return the evaluators that tasks such as ``"zero_shot(classes='classes.json')"`` name.

    Raises:
        UserError: There is no task, no such evaluator, or a name is taken.
    """
    if not tasks:
        raise UserError(f"There is no task. Known: {', '.join(spec.names('eval.evaluators'))}.")
    evaluators = [spec.build("eval.evaluators", task) for task in tasks]
    # Features of other datasets are kept in folders of these names, beside those two.
    seen = dict.fromkeys((EVALUATED, OF_CAPTIONS), "--features")
    for task, evaluator in zip(tasks, evaluators, strict=True):
        if evaluator.name in seen:
            raise UserError(
                f"{seen[evaluator.name]!r} and the task {task!r} are both called "
                f"{evaluator.name!r}. Give the task another name=."
            )
        seen[evaluator.name] = task
    return evaluators


def check_evaluators(evaluators: Sequence[Evaluator], dataset: Dataset) -> None:
    """Raise UserError where an evaluator sees that it cannot run on a dataset."""
    for evaluator in evaluators:
        getattr(evaluator, "check", lambda _: None)(dataset)


def run_evaluators(
    encode: Encode, encoded: EncodedSet, evaluators: Sequence[Evaluator]
) -> dict[str, float]:
    """Return the figures of all evaluators, in their order.

    Raises:
        UserError: An evaluator lacks something.
    """
    figures: dict[str, float] = {}
    for evaluator in evaluators:
        figures |= evaluator(encode, encoded).figures
    return figures


def needs_pooled(evaluators: Sequence[Evaluator]) -> bool:
    """Return whether one of them wants the rows before the projections."""
    return any(getattr(evaluator, "needs_pooled", False) for evaluator in evaluators)


def show_evaluation(summary: Mapping[str, Any]) -> None:
    """Print each figure beside its interval and what a guess would get."""
    rows = [(of.figure, number(of.value), of.between, number(of.chance)) for of in rows_of(summary)]
    show_table(("metric", "value", "95 % interval", "chance"), rows)
    total = sum(summary["seconds"].values())
    say(f"{summary['samples']} samples of {summary['dataset']} in {total:.1f} s.")
    for reason, found in summary["faults"].items():
        say(f"Left out {found['count']}: {reason}, such as {found['examples'][0]}.")


def _first_line(evaluator: Evaluator) -> str:
    """Return what an evaluator asks."""
    return (type(evaluator).__doc__ or "").partition("\n")[0]
