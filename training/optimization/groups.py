"""Which parameters are trained, and how: patterns of names, parameter groups, what is frozen."""

import re
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

from training.optimization.layers import TOWERS, slice_layers, tower_layers
from training.optimization.rules import GroupRule, Stage
from training.options import OptimizerConfig
from vlp.errors import UserError, nearest

SLICE = re.compile(r"(\w+)\[(-?\d*):(-?\d*)\]")


def select(encoder: nn.Module, pattern: str) -> set[str]:
    """Return the names of the parameters that a pattern means, one at least.

    ``visual`` is all in that module, ``text.*.ln_1`` as in a shell, ``visual[:-2]`` all layers of
    the tower but the last two, ``text[0:1]`` the embeddings.

    Raises:
        UserError: It means none.
    """
    names = [name for name, _ in encoder.named_parameters()]
    match = SLICE.fullmatch(pattern)
    if match and match[1] in TOWERS:
        found = slice_layers(tower_layers(encoder, match[1]), match[2], match[3])
    else:
        found = {
            name
            for name in names
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        }
    if not found:
        raise UserError(f"No parameter is called {pattern!r}. {nearest(pattern, _modules(names))}")
    return found


def frozen_names(encoder: nn.Module, options: OptimizerConfig, stage: Stage) -> set[str]:
    """Return the parameters that a stage does not train, those that no stage trains included.

    Raises:
        UserError: A pattern names nothing, or nothing is left to train.
    """
    rules = [rule for rule in map(GroupRule.parse, options.groups) if rule.is_frozen]
    patterns = [rule.pattern for rule in rules] + list(stage.freeze)
    frozen = set().union(*(select(encoder, pattern) for pattern in patterns))
    if all(name in frozen for name, p in encoder.named_parameters() if p.requires_grad):
        raise UserError(f"Nothing is left to train: {' '.join(patterns)} are frozen.")
    return frozen


def parameter_groups(
    encoder: nn.Module, options: OptimizerConfig, stages: Iterable[Stage] = (Stage(length=None),)
) -> list[dict[str, Any]]:
    """Return the optimizer's groups of what any stage trains; norms, biases, scale do not decay.

    ``rate`` of a group is its factor on the learning rate of the run.

    Raises:
        UserError: A pattern names nothing, or nothing is left to train.
    """
    never = set.intersection(*(frozen_names(encoder, options, stage) for stage in stages))
    rules = _rules_by_name(encoder, options)
    depth = cache(lambda tower: tower_layers(encoder, tower))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if name in never or not parameter.requires_grad:
            continue
        rule, tower = rules[name], name.split(".")[0]
        rate = rule.rate or 0.0
        if rule.layer_decay != 1 and tower in TOWERS:
            layers = depth(tower)
            rate *= (rule.layer_decay or 0.0) ** (max(layers.values()) - layers[name])
        # Vectors are norms and biases; scale and bias are vectors of length 1 (CLIP, section 2.5).
        decay = options.weight_decay * (rule.decay or 0.0) if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _rules_by_name(encoder: nn.Module, options: OptimizerConfig) -> dict[str, GroupRule]:
    """Return what holds for each parameter: the options', then what the rules change of it."""
    base = GroupRule(pattern="*", rate=1.0, decay=1.0, layer_decay=options.layer_decay)
    rules = dict.fromkeys((name for name, _ in encoder.named_parameters()), base)
    for rule in map(GroupRule.parse, options.groups):
        given = {"rate": rule.rate, "decay": rule.decay, "layer_decay": rule.layer_decay}
        changes = {field: value for field, value in given.items() if value is not None}
        for name in select(encoder, rule.pattern):
            rules[name] = replace(rules[name], **changes)
    return rules


def _modules(names: Iterable[str]) -> set[str]:
    """Return the names of parameters and of the modules that hold them."""
    parts = [name.split(".") for name in names]
    return {".".join(words[:end]) for words in parts for end in range(1, len(words) + 1)}
