"""Commands on checkpoints."""

from pathlib import Path
from typing import Any


def eval_(
    model: str,
    shards: str,
    /,
    tasks: tuple[str, ...] = ("retrieval",),
    out: Path | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on shards: zero-shot classification, retrieval.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        shards: Shards to read, or a folder in CLIP_benchmark's layout.
        tasks: Evaluators, such as ``retrieval`` or ``"zero_shot(classes='classes.json')"``.
        out: Folder for ``metrics.json``; without it the figures are only printed.
        batch_size: Samples encoded at once.
        overwrite: Replace what another command or config wrote.
    """
    from eval.run import evaluate

    return evaluate(model, shards, tasks=tasks, out=out, batch_size=batch_size, overwrite=overwrite)
