"""Commands that train."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import tyro

from training import recipes

RECIPES = {
    name: recipe
    for name, recipe in inspect.getmembers(recipes, inspect.isfunction)
    if recipe.__module__ == recipes.__name__
}
_Recipe = tyro.extras.subcommand_type_from_defaults(
    {name: recipe() for name, recipe in RECIPES.items()},
    {name: inspect.getdoc(recipe) or "" for name, recipe in RECIPES.items()},
    prefix_names=False,
)


def train(
    recipe: Annotated[_Recipe, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    out: Annotated[Path, tyro.conf.arg(name="out")],
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Train a dual encoder from a recipe, or go on with a run that was stopped.

    Args:
        recipe: The config to start from.
        out: Run folder: checkpoints, metrics, TensorBoard. With the config that it was written
            with, the run goes on from its newest checkpoint.
        overwrite: Start anew in a folder that another config or command wrote.
    """
    from training.loop import train as run

    return run(recipe, out, overwrite=overwrite)
