"""Commands that train."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import tyro

from training.recipes import RECIPES
from vlp.errors import UserError

_Recipe = tyro.extras.subcommand_type_from_defaults(
    {name: recipe() for name, recipe in RECIPES.items()},
    {name: inspect.getdoc(recipe) or "" for name, recipe in RECIPES.items()},
    prefix_names=False,
)


def train(
    recipe: Annotated[_Recipe, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    out: Annotated[Path, tyro.conf.arg(name="out")],
    overwrite: bool = False,
    dry_run: bool = False,
    processes: int | None = None,
) -> dict[str, Any] | None:
    """Train a dual encoder from a recipe, or go on with a run that was stopped.

    Args:
        recipe: The config to start from.
        out: Run folder: checkpoints, metrics, TensorBoard. With the config that it was written
            with, the run goes on from its newest checkpoint.
        overwrite: Start anew in a folder that another config or command wrote.
        dry_run: Train nothing and write no run folder: print what the run would be (parameters,
            memory and traffic per GPU, length, stages), and draw its first pictures with their
            captions beside the folder, in OUT.first.png.
        processes: With dry-run, as many GPUs as this in place of those that are here.
    """
    if dry_run:
        from training.dry_run import dry_run as tell

        return tell(recipe, out, processes=processes, overwrite=overwrite)
    if processes is not None:
        raise UserError(
            "--processes goes with --dry-run. A run has as many as its launcher starts: torchrun "
            f"--nproc-per-node={processes} -m vlp train ..."
        )
    from training.loop import train as run

    return run(recipe, out, overwrite=overwrite)
