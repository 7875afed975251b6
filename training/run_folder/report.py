"""``report.html`` of a run, made of the files in its folder alone."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from signal import Signals
from typing import Any

from markupsafe import Markup

from eval.report import CHANCE
from training.compute.shared_errors import is_lost, reason_elsewhere
from training.config import TrainConfig
from training.recipes import RECIPES
from training.rewind import SKIPPED
from training.run import Run
from training.run_folder.checkpoints import is_cost
from training.run_folder.folder import FAULTS
from training.run_folder.log import METRICS
from training.run_folder.sessions import RunStatus, end_session, read_sessions
from vlp.console import one_line, warn
from vlp.errors import UserError, first_line
from vlp.output import flatten, read_lines, read_record
from vlp.report import (
    beside,
    fault_table,
    folded,
    number,
    page,
    plot,
    section,
    table,
    tiles,
    write_page,
)

REPORT = "report.html"
FINISHED = "Finished"
OF_AVERAGE = "Of the moving average of the weights (--ema), not of the raw ones."
SHOWN = 50
"""Rows of a table that may be long."""
CURVES: dict[str, dict[str, Sequence[str]]] = {
    "Loss": {"training loss": ("loss", "loss/*"), "validation loss": ("validation/loss",)},
    "Rates and norms": {
        "learning rate": ("learning_rate",),
        "logit scale": ("scale",),
        "logit bias": ("bias",),
        "gradient norm": ("grad_norm*", "*/grad_norm"),
        "size of the update": ("update*", "*/update*"),
    },
    "In the batch": {
        "own pair is the most similar (share)": ("batch/accuracy/*",),
        "cosine of matches": ("batch/match/*",),
        "cosine of non-matches": ("batch/non_match/*",),
        "a non-match is above the match (share)": ("batch/above_match",),
        "a hard caption is above the match (share)": ("batch/hard_above_match",),
        "pairs whose group stands twice": ("batch/duplicates",),
    },
    "Speed": {
        "samples per second": ("samples_per_second",),
        "samples per second of a device": ("speed/samples_per_second_per_device",),
        "waiting for data (share)": ("data_wait_share",),
        "TFLOP per second of a device": ("speed/tflops_per_device",),
        "of the hardware's peak (MFU, share)": ("speed/mfu",),
        "reading a sample, by stage (ms of a worker)": ("data/*_ms",),
        "reading (MB per second)": ("data/*_mb_per_second",),
        "slowest read (s)": ("data/slowest_read_s",),
    },
    "Guard": {"steps left out, in all": ("guard/skipped",), "spikes, in all": ("guard/spikes",)},
}
"""What is drawn together: by section and title, patterns of figures."""
Rows = list[dict[str, Any]]
Series = dict[str, list[tuple[float, float]]]


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Write down why the run ended when the block ends, and the report, however it ends."""
    state, requests, why = run.state, run.requests, ""
    try:
        yield
        is_stopped = requests.signal and state.step < run.steps
        why = f"Stopped by {Signals(requests.signal).name}" if is_stopped else FINISHED
    except KeyboardInterrupt:
        why = "Stopped by Ctrl-C within a step"
        raise
    except Exception as error:
        why = f"Ended by an error: {_told(error)}"
        raise
    finally:
        if run.accelerator.is_main_process:
            status = RunStatus(state.step, state.samples_seen, why)
            with suppress(OSError):  # of a full disk the error tells
                end_session(run.out, status)
            write_report(run.out, status)


def write_report(run: Path, status: RunStatus | None = None) -> None:
    """Write the report of a run as it is now; a disk without room for it ends no run."""
    try:
        write_page(run / REPORT, report_of(run, status))
    except OSError as error:
        warn(f"The report {run / REPORT} cannot be written ({first_line(error)}).")


def report_of(run: Path, status: RunStatus | None = None) -> Markup:
    """Return the report of a run by its ``config.json``, ``metrics.jsonl`` and other files.

    Without a status, the end of the last session, or else the last row of figures, says how far it
    came.
    """
    rows, sessions = read_lines(run / METRICS), read_sessions(run)
    series = _series(rows)
    record, found = read_record(run) or {"config": {}}, run / FAULTS
    faults = json.loads(found.read_text()) if found.is_file() else {}
    return page(
        run.resolve().name,
        _headline(series),
        *_curves(series),
        section(
            "Validation",
            _validation_plots(series),
            _validation_table(series),
            note=OF_AVERAGE if record["config"].get("ema") else "",
        ),
        section("Batches left out", _loose_table(read_lines(run / SKIPPED))),
        section("Data", _sources(sessions), _faults(faults)),
        section("Config", *_config(record["config"])),
        section("Where it ran", *_sessions(sessions, record["config"])),
        subtitle=_subtitle(status or _last_status(rows, sessions), sessions),
    )


def _subtitle(status: RunStatus | None, sessions: Rows) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if status is None:
        return f"No step is logged yet. Written {now}."
    step, samples_seen, why = status
    steps = sessions[-1]["steps"] if sessions else step
    is_finished = step >= steps and why in ("", FINISHED)
    told = f"{one_line(why, 500)}. " if why and not is_finished else ""
    return (
        f"{number(step)} of {number(steps)} steps, {'' if is_finished else 'not '}finished; "
        f"{number(samples_seen)} samples seen. {told}Written {now}."
    )


def _last_status(rows: Rows, sessions: Rows) -> RunStatus | None:
    if sessions and "ended" in sessions[-1]:
        last = sessions[-1]
        return RunStatus(last["ended_at_step"], last["samples_seen"], last["why"])
    return RunStatus(rows[-1]["step"], rows[-1]["samples_seen"]) if rows else None


def _told(error: Exception) -> str:
    if is_lost(error):
        return reason_elsewhere() or "another process of the run ended or does not answer"
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + first_line(error)


def _headline(series: Series) -> Markup:
    """Return the figures that are looked at first, as they were last."""
    newest = {name: points[-1][1] for name, points in series.items()}
    shown = {"training loss": "loss", "validation loss": "validation/loss"}
    for name in newest:
        if name.startswith("validation/") and name.rpartition("/")[2] in CHANCE:
            shown[name.removeprefix("validation/").replace("/", " ").replace("_", " ")] = name
    shown |= {"samples per second": "samples_per_second"}
    return tiles({title: newest[name] for title, name in shown.items() if name in newest})


def _curves(series: Series) -> list[Markup]:
    """Return a section of plots for each kind of figure; what no pattern names comes last."""
    left = [name for name in series if not name.startswith("validation/")]
    left += [name for name in series if name == "validation/loss"]
    # Of a guard that had nothing to do, there is nothing to see.
    left = [n for n in left if not n.startswith("guard/") or any(y for _, y in series[n])]
    found = []
    for title, wanted in CURVES.items():
        drawn = []
        for caption, patterns in wanted.items():
            names = [name for name in left if any(fnmatch(name, p) for p in patterns)]
            left = [name for name in left if name not in names]
            drawn.append(plot(caption, {name: series[name] for name in names}, x="step"))
        found.append(section(title, beside(*drawn)))
    more = [plot(name, {name: series[name]}, x="step") for name in left]
    return [*found, section("More figures", beside(*more))]


def _validation_plots(series: Series) -> Markup:
    """Return a plot for each evaluator and kind of figure, such as retrieval's recall at 1."""
    kinds: dict[str, Series] = {}
    for name, points in series.items():
        room, *path = name.split("/")
        if room == "validation" and len(path) > 1 and not _is_fixed(name):
            evaluator, *way, kind = path
            kinds.setdefault(f"{evaluator}: {kind}", {})["/".join(way) or kind] = points
    return beside(*(plot(title, lines, x="step") for title, lines in kinds.items()))


def _validation_table(series: Series) -> Markup:
    lines = []
    for name, points in series.items():
        if not name.startswith("validation/") or _is_fixed(name):
            continue
        folder, _, kind = name.rpartition("/")
        chance = series.get(f"{folder}/{CHANCE.get(kind)}", [(0, "")])[-1][1]
        best = (min if is_cost(name) else max)(points, key=lambda point: point[1])
        line = (points[-1][1], chance, best[1], best[0], points[0][1])
        lines.append((name.removeprefix("validation/"), *line))
    return table(("figure", "last", "chance", "best", "at step", "first"), lines)


def _is_fixed(name: str) -> bool:
    """Return whether a figure tells of the set, as its size or chance, and not of the encoder."""
    kind = name.rpartition("/")[2]
    return kind in CHANCE.values() or kind in ("images", "texts", "samples", "left_out")


def _sources(sessions: Rows) -> Markup:
    if not sessions:
        return Markup()
    last = sessions[-1]
    rows = [("training", *_source(source)) for source in last["sources"]]
    if last["validation"]:
        rows.append(("validation", *_source(last["validation"])))
    return table(("use", "source", "samples", "shards", "epochs"), rows)


def _source(source: Mapping[str, Any]) -> tuple[Any, ...]:
    amounts = (source[name] for name in ("samples", "shards", "epochs"))
    return " ".join(source["names"]), *("" if amount is None else amount for amount in amounts)


def _faults(faults: Mapping[str, Mapping[str, Any]]) -> Markup:
    if not faults:
        return Markup("<p>No fault of the data was met.</p>")
    return fault_table("what was wrong with the data", faults)


def _loose_table(rows: Rows) -> Markup:
    """Return rows of any fields as a table, the newest first."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[_cell(row.get(name, "")) for name in columns] for row in rows[: -SHOWN - 1 : -1]]
    return table(columns, shown)


def _config(config: dict[str, Any]) -> Iterable[Markup]:
    """Return the fields that differ from the nearest recipe, and, folded, all of them."""
    own = flatten(config)
    name, base = min(_bases().items(), key=lambda item: len(_changed(item[1], own)))
    rows = [(field, _cell(base.get(field)), _cell(own[field])) for field in _changed(base, own)]
    yield table(("field", name, "this run"), rows)
    yield folded("All fields", table(("field", "value"), [(f, _cell(v)) for f, v in own.items()]))


def _bases() -> dict[str, dict[str, Any]]:
    """Return the defaults and every recipe, as a config is saved."""
    whole = {"the defaults": TrainConfig()}
    whole |= {f"the recipe {name}": recipe() for name, recipe in RECIPES.items()}
    return {name: flatten(json.loads(json.dumps(asdict(c)))) for name, c in whole.items()}


def _changed(base: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    return [field for field, value in own.items() if base.get(field) != value]


def _sessions(sessions: Rows, config: Mapping[str, Any]) -> Iterable[Markup]:
    columns = ("started", "step", "processes", "device", "precision", "ended", "why")
    rows = [[_cell(session.get(name)) for name in columns] for session in sessions]
    yield table(columns, rows)
    if sessions:
        last = sessions[-1]
        facts = {"seed": config.get("seed", ""), **last["hardware"]}
        facts |= {f"parameters, {tower}": count for tower, count in last["parameters"].items()}
        machine = table(("machine and seed", "value"), facts.items())
        yield beside(machine, table(("package", "version"), last["versions"].items()))


def _cell(value: Any) -> Any:
    """Return a value of a config or a row as a cell shows it."""
    if isinstance(value, dict):  # of processes, as the keys of a batch
        value = list(chain.from_iterable(value.values()))
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if value is None or value == "":
        return "none"
    return one_line(value, 300) if isinstance(value, str) else value


def _series(rows: Rows) -> Series:
    """Return points (step, value) of every figure, in the order that they first come."""
    found: Series = defaultdict(list)
    for row in rows:
        step = row["step"]
        for name, value in row.items():
            found[name].append((step, value))
    return {name: points for name, points in found.items() if name not in ("step", "samples_seen")}
