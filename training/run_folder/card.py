"""The model card of a checkpoint: ``README.md`` in Hugging Face's form, beside its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from eval.report import CHANCE
from training.run_folder.log import METRICS
from training.run_folder.sessions import read_sessions
from vlp.card import CARD, markdown_table, plain, public_name
from vlp.checkpoint import AVERAGED, list_checkpoints, step_of
from vlp.console import warn
from vlp.errors import first_line
from vlp.output import read_lines, read_record, write_bytes
from vlp.report import number


def write_card(run: Path, *, step: int, samples_seen: int) -> None:
    """Write the card of a run's checkpoint, and one of the moving average that lies in it.

    Validation is of the average where there is one: its card alone has the figures. The checkpoint
    is sealed before: its manifest names no card, which may be edited. A disk without room for one
    ends no run.

    Args:
        run: The run's folder, whose files the cards are made of.
        step: Of the checkpoint.
        samples_seen: As the checkpoint has it; the last row of figures may be older.
    """
    for checkpoint in list_checkpoints(run):
        if step_of(checkpoint) != step:
            continue
        facts, averaged = _facts(run, step, samples_seen), checkpoint / AVERAGED
        if averaged.is_dir():
            _write(averaged, _card(facts, _of_average(facts), _figures(facts)))
            _write(checkpoint, _card(facts._replace(figures={}), _RAW, _RAW_FIGURES))
        else:
            _write(checkpoint, _card(facts, "", _figures(facts)))


class _Facts(NamedTuple):
    """What the cards of a checkpoint tell."""

    name: str
    step: int
    samples_seen: int
    config: dict[str, Any]
    session: dict[str, Any]
    """The last one of the run."""
    figures: dict[str, float]
    """Of the newest validation up to the checkpoint, all of one step."""
    validated_at: int
    """The step of that validation; 0: there was none."""


def _facts(run: Path, step: int, samples_seen: int) -> _Facts:
    rows = [
        (row["step"], name.removeprefix("validation/"), value)
        for row in read_lines(run / METRICS)
        for name, value in row.items()
        if name.startswith("validation/") and row["step"] <= step
    ]
    validated_at = max((at for at, *_ in rows), default=0)
    sessions = read_sessions(run)
    return _Facts(
        name=run.resolve().name,
        step=step,
        samples_seen=samples_seen,
        config=(read_record(run) or {"config": {}})["config"],
        session=sessions[-1] if sessions else {},
        figures={name: value for at, name, value in rows if at == validated_at},
        validated_at=validated_at,
    )


def _write(folder: Path, card: str) -> None:
    try:
        write_bytes(folder / CARD, card.encode(errors="replace"))
    except OSError as error:
        warn(f"The model card of {folder} cannot be written ({first_line(error)}).")


def _card(facts: _Facts, which: str, figures: str) -> str:
    """Return a card.

    Args:
        facts: With those figures alone that are of the weights beside the card.
        which: Which of a checkpoint's weights these are; empty where there are no others.
        figures: The section about them.
    """
    parts = [
        f"# {plain(facts.name)}",
        f"A CLIP-style dual encoder ({plain(_model(facts.config['model']['name']))}), as it was "
        f"at step {facts.step} of its run, after {number(facts.samples_seen)} image-text pairs.",
        which,
        "## How to load it",
        _LOADING,
        "## What it was trained on",
        _data(facts.session),
        "## How it was trained",
        _training(facts),
        "## Figures",
        figures,
        "## Limits",
        _LIMITS,
    ]
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


_RAW = f"""\
These are the **raw weights**, which the run goes on with. Their moving average, which is evaluated
and used later, lies in [`{AVERAGED}/`]({AVERAGED}/{CARD})."""

_RAW_FIGURES = f"""\
None are of these weights: validation is of their moving average, whose figures are in the card of
[`{AVERAGED}/`]({AVERAGED}/{CARD})."""


def _of_average(facts: _Facts) -> str:
    return (
        f"These are the **moving average (EMA)** of the run's weights, which keeps "
        f"{facts.config['ema']:g} of its own in a step. The raw ones lie in the folder above."
    )


_LOADING = """\
```python
import open_clip

folder = "local-dir:."  # this folder, or hf-hub:org/name once it is uploaded
model, _, preprocess = open_clip.create_model_and_transforms(folder)
tokenizer = open_clip.get_tokenizer(folder)
```

```sh
vlp classify . photo.jpg --classes cat dog
vlp eval . shards/ --tasks retrieval
```"""

_LIMITS = """\
- The figures are of the run's own held-out shards, and compare with others only on the same ones.
- It has not been examined for bias, safety or fairness. It knows what its data shows, with the
  data's errors and leanings, and only the languages of its captions.
- Similarities and zero-shot probabilities are not calibrated: a class that is missing from the list
  cannot win, and one of those on the list always does.
- The licence of the weights, which depends on the data, is for whoever publishes them to state."""


def _front_matter(facts: _Facts) -> str:
    """Return what the hub reads; results only where they are of the very weights beside it."""
    held_out = facts.session.get("validation") or {}
    figures = facts.figures if facts.validated_at == facts.step else {}
    source = ", ".join(map(public_name, held_out.get("names", ["held-out shards"])))
    results = [
        EvalResult(
            task_type="zero-shot-image-classification"
            if kind == "acc@1"
            else "image-text-retrieval",
            dataset_type=source,
            dataset_name=source,
            metric_type="accuracy" if kind == "acc@1" else "recall",
            metric_name=figure,
            metric_value=value,
        )
        for figure, value in figures.items()
        if (kind := figure.rpartition("/")[2]) in ("recall@1", "acc@1")
    ]
    return ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "image-text-retrieval", "vlp"],
        model_name=plain(facts.name) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _data(session: Mapping[str, Any]) -> str:
    rows = []
    for source in session.get("sources", ()):
        epochs = "" if source["epochs"] is None else number(round(source["epochs"], 3))
        samples = "not counted" if source["samples"] is None else number(source["samples"])
        names = ", ".join(map(public_name, source["names"]))
        rows.append((names, samples, number(source["shards"]), epochs))
    return markdown_table(("source", "samples", "shards", "passes in the whole run"), rows)


def _training(facts: _Facts) -> str:
    config, session = facts.config, facts.session
    optimizer, data = config["optimizer"], config["data"]
    rows = [
        ("steps", f"{facts.step} of {session.get('steps', facts.step)}"),
        ("batch", f"{data['batch_size']} pairs"),
        ("loss", " + ".join(config["loss"])),
        ("optimizer", f"{optimizer['name']}, weight decay {optimizer['weight_decay']:g}"),
        (
            "learning rate",
            f"{optimizer['learning_rate']:g}, {optimizer['schedule']}, "
            f"warm-up {optimizer['warmup']}",
        ),
        *_extras(config),
        ("precision", session.get("precision", "")),
        ("seed", config["seed"]),
        ("processes", session.get("processes", "")),
    ]
    rows += session.get("versions", {}).items()
    return markdown_table(("", ""), rows)


def _extras(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a run may have or not: first weights, a teacher, an average, stages, a memory."""
    model = config["model"]
    kinds = {"": "weights", "image tower's ": "image_weights", "text tower's ": "text_weights"}
    rows = [
        (f"{tower}first weights", _model(model[kind]))
        for tower, kind in kinds.items()
        if model.get(kind)
    ]
    if config.get("teacher"):
        rows.append(("teacher", _model(config["teacher"])))
    if config.get("ema"):
        rows.append(("moving average", f"keeps {config['ema']:g} of its own weights in a step"))
    stages = config.get("stages") or ()
    rows += [(f"stage {place} of {len(stages)}", told) for place, told in enumerate(stages, 1)]
    if config.get("memory"):
        told = [f"{number(config['memory'])} past pairs as more negatives"]
        options = ("memory_top", "memory_ceiling", "memory_momentum")
        told += [f"{o.removeprefix('memory_')} {config[o]:g}" for o in options if config.get(o)]
        rows.append(("memory", ", ".join(told)))
    return rows


def _model(source: str) -> str:
    """Return the name of a model or of weights as it may be published."""
    return source if source.startswith("hf-hub:") else public_name(source)


def _figures(facts: _Facts) -> str:
    held_out, figures = facts.session.get("validation"), facts.figures
    if not figures:
        return (
            "The run was not validated up to this step, so there are none."
            if held_out
            else "The run had no held-out shards, so there are none."
        )
    rows = []
    for figure, value in figures.items():
        folder, _, kind = figure.rpartition("/")
        if kind not in CHANCE.values():
            chance = figures.get(f"{folder}/{CHANCE.get(kind)}")
            rows.append((figure, number(value), "" if chance is None else number(chance)))
    is_older = facts.validated_at < facts.step
    older = f", before these weights of step {facts.step}, which have none" if is_older else ""
    about = (
        f"Validated at step {facts.validated_at}{older}. On "
        f"{number((held_out or {}).get('samples', 0))} held-out pairs; shares are in [0, 1].\n\n"
    )
    return about + markdown_table(("figure", "value", "chance"), rows)
