"""Sums of the weights of several models of one architecture: soups, WiSE-FT, checkpoint averages.

- The mean of a run's last checkpoints (Vaswani et al. 2017, section 6.1).
- A uniform soup: the mean of models that were fine-tuned from the same one (Wortsman et al. 2022,
  arXiv:2203.05482, equation 1). A greedy soup takes in what an evaluation finds to help: `vlp eval`
  each sum and keep it or not.
- WiSE-FT: (1 - alpha) x what it started from + alpha x the fine-tuned model (Wortsman et al. 2021,
  arXiv:2109.01903, section 3).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from vlp.checkpoint import list_checkpoints, load_encoder
from vlp.console import say
from vlp.encoder import DualEncoder, architectures, open_clip_config
from vlp.errors import UserError
from vlp.manifest import damage
from vlp.output import read_record

NO_PART = ("patch_dropout", "init_logit_bias", "init_logit_scale")
"""Of an architecture's config, what changes how it is trained and not what it computes."""


def soup(names: Sequence[str], shares: Sequence[float]) -> DualEncoder:
    """Return the first model with the sum of all models' weights, each times its share.

    Sums are in fp64 and rounded once, so that models of equal fp32 weights give these very weights.
    Counts, which are no weights, stay the first model's. One model is loaded at a time.

    Args:
        names: What ``load_encoder`` takes.
        shares: One for each name; the sum is 1.

    Raises:
        UserError: Models are of different architectures.
    """
    encoder = load_encoder(names[0])
    total = {
        name: value.double() * shares[0]
        for name, value in encoder.state_dict().items()
        if value.is_floating_point()
    }
    for name, share in zip(names[1:], shares[1:], strict=True):
        other = load_encoder(name)
        _refuse_other(encoder, names[0], other, name)
        state = other.state_dict()
        for key, value in total.items():
            value.add_(state[key].double(), alpha=share)
    own = encoder.state_dict()
    for key, value in total.items():
        own[key].copy_(value)
    if len(names) > 1 and any(isinstance(m, _NormBase) for m in encoder.modules()):
        say("Batch-norm statistics are averaged, too; those of the averaged weights may differ.")
    return encoder


def models_of(model: str, average: Sequence[str]) -> list[str]:
    """Return the names of the models that are averaged, where ``last=5`` and ``start`` are words.

    Raises:
        UserError: The run has too few checkpoints or no start, or a word stands beside names.
    """
    words = [name for name in average if name == "start" or name.startswith("last=")]
    if words and len(average) > 1:
        raise UserError(f"{words[0]!r} stands alone after --average. Leave the others out.")
    if words == ["start"]:
        return [model, _start(Path(model))]
    return _last(Path(model), words[0].removeprefix("last=")) if words else [model, *average]


def shares_of(weights: Sequence[float], alpha: float | None, count: int) -> list[float]:
    """Return the share of each model, with a sum of 1: all the same where none is given.

    Args:
        weights: One for each model, in any unit.
        alpha: The share of the first of two models.
        count: How many models there are.

    Raises:
        UserError: There are more or fewer weights than models, or they cannot be divided.
    """
    if alpha is not None:
        if count != 2 or weights or not 0 <= alpha <= 1:
            raise UserError(
                f"--alpha is {alpha}, for {count} models. Write a share from 0 to 1, one other "
                f"model and no --weights, as --average start --alpha 0.5."
            )
        return [alpha, 1 - alpha]
    given = list(weights) or [1.0] * count
    total = sum(given)
    if len(given) != count or not math.isfinite(total) or total <= 0:
        raise UserError(
            f"The weights are {' '.join(map(str, given))} for {count} models. Write one for each, "
            f"with a sum above 0."
        )
    return [share / total for share in given]


def _last(run: Path, number: str) -> list[str]:
    """Return the newest checkpoints of a run, newest first; damaged ones are left out."""
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"Cannot read 'last={number}'. Write a number of checkpoints, as last=5.")
    whole = [folder for folder in list_checkpoints(run) if damage(folder) is None]
    if len(whole) < int(number):
        raise UserError(
            f"{run} holds {len(whole)} whole checkpoints, not {number}. Write last={len(whole)}, "
            f"or train with --keep.last {number}."
            if whole
            else f"{run} is no run with checkpoints. Write last={number} after a run's folder."
        )
    return [str(folder) for folder in reversed(whole[-int(number) :])]


def _start(run: Path) -> str:
    """Return the model that a run was fine-tuned from."""
    record = read_record(run) if run.is_dir() else None
    if record is None or record["command"] != "train":
        raise UserError(f"{run} is no run's folder. Name what it started from after --average.")
    told: dict[str, Any] = record["config"]["model"]
    name, weights = told["name"], told["weights"]
    if weights:
        return f"{name}:{weights}"
    if told["image_weights"] or told["text_weights"] or not _is_whole(name):
        raise UserError(f"{run} did not start from a whole model. There is nothing to go back to.")
    return name


def _is_whole(name: str) -> bool:
    is_folder = Path(name).is_dir() and name not in architectures()
    return is_folder or name.startswith(("hf-hub:", "local-dir:"))


def _refuse_other(encoder: DualEncoder, name: str, other: DualEncoder, its_name: str) -> None:
    """Raise UserError where two models do not compute the same function of their weights."""
    own, its = encoder.state_dict(), other.state_dict()
    missing = sorted(own.keys() ^ its.keys())
    found = [f"{missing[0]} is in one of them only"] if missing else []
    found += [
        f"{key} is {_shape(value)} and {_shape(its[key])}"
        for key, value in own.items()
        if key in its and value.shape != its[key].shape
    ]
    mine, theirs = (_flat(open_clip_config(model)) for model in (encoder, other))
    found += [
        f"{key} is {mine.get(key)} and {theirs.get(key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if (mine.get(key) or None) != (theirs.get(key) or None)
    ]
    if found:
        raise UserError(
            f"{name} and {its_name} are of different architectures: {found[0]}. Give models of one."
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config by their path, less what has no part in what is computed."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        elif key not in NO_PART:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
