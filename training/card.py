"""The model card of a checkpoint: ``README.md`` in Hugging Face's form, beside its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from eval.run import CHANCE
from training.log import METRICS
from training.sessions import read_sessions
from vlp.checkpoint import step_of
from vlp.console import one_line, warn
from vlp.errors import first_line
from vlp.output import read_lines, read_record, write_bytes
from vlp.report import number

CARD = "README.md"


def write_card(checkpoint: Path, run: Path) -> None:
    """Write the card of a run's checkpoint, of what the run's folder holds.

    The checkpoint is sealed before: its manifest does not name the card, which may be edited. A
    disk without room for it ends no run.
    """
    try:
        write_bytes(checkpoint / CARD, _card(checkpoint, run).encode(errors="replace"))
    except OSError as error:
        warn(f"The model card of {checkpoint} cannot be written ({first_line(error)}).")


def public_name(source: str) -> str:
    """Return the name of data as it may be published: no folders, logins, keys or commands."""
    if source.startswith("pipe:"):
        return "output of a command"
    place = re.sub(r"^(\w+://)[^/@]*@", r"\1", source).partition("?")[0]
    return place if "://" in place else Path(place.rstrip("/")).name or "shards"


def _card(checkpoint: Path, run: Path) -> str:
    name, step = run.resolve().name, step_of(checkpoint)
    rows = [row for row in read_lines(run / METRICS) if row["step"] <= step]
    newest = {figure: value for row in rows for figure, value in row.items()}
    figures = {
        figure.removeprefix("validation/"): value
        for figure, value in newest.items()
        if figure.startswith("validation/")
    }
    config, sessions = (read_record(run) or {"config": {}})["config"], read_sessions(run)
    last = sessions[-1] if sessions else {}
    front = _front_matter(name, last, figures)
    seen = newest.get("samples_seen", 0)
    parts = [
        f"# {_plain(name)}",
        f"A CLIP-style dual encoder ({_plain(config['model']['name'])}), as it was at step {step} "
        f"of its run, after {number(seen)} image-text pairs.",
        "## How to load it",
        _LOADING,
        "## What it was trained on",
        _data(last),
        "## How it was trained",
        _training(config, last, step),
        "## Figures",
        _figures(figures, last),
        "## Limits",
        _LIMITS,
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n"


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


def _front_matter(name: str, session: Mapping[str, Any], figures: Mapping[str, float]) -> str:
    held_out = session.get("validation") or {}
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
        model_name=_plain(name) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _data(session: Mapping[str, Any]) -> str:
    rows = []
    for source in session.get("sources", ()):
        epochs = "" if source["epochs"] is None else number(round(source["epochs"], 3))
        samples = "not counted" if source["samples"] is None else number(source["samples"])
        names = ", ".join(map(public_name, source["names"]))
        rows.append((names, samples, number(source["shards"]), epochs))
    return _table(("source", "samples", "shards", "passes in the whole run"), rows)


def _training(config: Mapping[str, Any], session: Mapping[str, Any], step: int) -> str:
    optimizer, data = config["optimizer"], config["data"]
    rows = [
        ("steps", f"{step} of {session.get('steps', step)}"),
        ("batch", f"{data['batch_size']} pairs"),
        ("loss", " + ".join(config["loss"])),
        ("optimizer", f"{optimizer['name']}, weight decay {optimizer['weight_decay']:g}"),
        (
            "learning rate",
            f"{optimizer['learning_rate']:g}, {optimizer['schedule']}, "
            f"warm-up {optimizer['warmup']}",
        ),
        ("precision", session.get("precision", "")),
        ("seed", config["seed"]),
        ("processes", session.get("processes", "")),
    ]
    rows += session.get("versions", {}).items()
    return _table(("", ""), rows)


def _figures(figures: Mapping[str, float], session: Mapping[str, Any]) -> str:
    if not figures:
        return "The run had no held-out shards, so there are none."
    held_out = session.get("validation") or {}
    rows = []
    for figure, value in figures.items():
        folder, _, kind = figure.rpartition("/")
        if kind not in CHANCE.values():
            chance = figures.get(f"{folder}/{CHANCE.get(kind)}")
            rows.append((figure, number(value), "" if chance is None else number(chance)))
    about = f"On {number(held_out.get('samples', 0))} held-out pairs; shares are in [0, 1].\n\n"
    return about + _table(("figure", "value", "chance"), rows)


def _table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: object) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(str(text), 200))
