"""``sessions.jsonl``: on what a run was started and gone on with, each time, and why it ended."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from data_pipelines.plan import samples_in
from training.config import TrainConfig
from training.setup import Parts
from training.state import TrainState
from vlp.environment import hardware, versions
from vlp.output import read_lines

SESSIONS = "sessions.jsonl"


class RunStatus(NamedTuple):
    """How far a run has come; the last row of its figures may be older."""

    step: int
    samples_seen: int
    why: str = ""
    """Why it ended; empty while it is at work."""


def begin_session(
    run: Path,
    config: TrainConfig,
    accelerator: Accelerator,
    parts: Parts,
    state: TrainState,
    steps: int,
) -> None:
    """Write down where the run is, on which machine and data, with which versions."""
    encoder = parts.encoder
    session = {
        "started": _now(),
        "step": state.step,
        "steps": steps,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "hardware": hardware(),
        "versions": versions(),
        "parameters": {
            "image tower": sum(p.numel() for p in encoder.visual.parameters()),
            "text tower": sum(p.numel() for p in encoder.text.parameters()),
        },
        "sources": _sources(config, parts, steps),
        "validation": _held_out(config, parts),
    }
    _append(run, session)


def end_session(run: Path, status: RunStatus) -> None:
    """Write down where and why the session ended, in a row of its own; one that is killed has none.

    A run that had nothing left to do began no session, and ends none.
    """
    rows = read_lines(run / SESSIONS)
    if rows and "started" in rows[-1]:
        at = {"ended_at_step": status.step, "samples_seen": status.samples_seen}
        _append(run, {"ended": _now(), **at, "why": status.why})


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """Return the sessions of a run, the first one first, each with its end where it was told."""
    sessions: list[dict[str, Any]] = []
    for row in read_lines(run / SESSIONS):
        if "started" in row:
            sessions.append(row)
        elif sessions:
            sessions[-1] |= row
    return sessions


def _append(run: Path, row: dict[str, Any]) -> None:
    with (run / SESSIONS).open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _sources(config: TrainConfig, parts: Parts, steps: int) -> list[dict[str, Any]]:
    """Return what is trained on: one row where all sources are one pool."""
    reader, named = parts.loader.reader, config.data.shards
    epochs = reader.plan.epochs(steps * config.data.batch_size)
    return [
        {
            "names": names,
            "samples": samples_in(row),
            "shards": len(shards.shards),
            "epochs": number,
        }
        for names, shards, row, number in zip(
            [[name] for name in named] if config.data.weights else [list(named)],
            reader.sources,
            reader.plan.rows,
            epochs,
            strict=True,
        )
    ]


def _held_out(config: TrainConfig, parts: Parts) -> dict[str, Any] | None:
    if parts.validation is None:
        return None
    dataset = parts.validation.dataset
    return {
        "names": [config.data.validation],
        "samples": len(dataset),
        "shards": len(dataset.files),
        "epochs": None,
    }
