"""``sessions.jsonl``: on what a run was started, and gone on with, each time."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data_pipelines.plan import Row
from training.config import TrainConfig
from training.setup import Parts
from training.state import TrainState
from vlp.environment import hardware, versions
from vlp.output import read_lines

SESSIONS = "sessions.jsonl"


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
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
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
    with (run / SESSIONS).open("a") as file:
        file.write(json.dumps(session, ensure_ascii=False) + "\n")


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """Return the sessions of a run, the first one first; none of a run without the file."""
    return read_lines(run / SESSIONS)


def _sources(config: TrainConfig, parts: Parts, steps: int) -> list[dict[str, Any]]:
    """Return what is trained on: one row where all sources are one pool."""
    reader, named = parts.loader.reader, config.data.shards
    epochs = reader.plan.epochs(steps * config.data.batch_size)
    return [
        {
            "names": names,
            "samples": len(row) if isinstance(row, Row) else None,
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
    shards = parts.validation.shards
    return {
        "names": [config.data.validation],
        "samples": len(shards),
        "shards": len(shards.shards),
        "epochs": None,
    }
