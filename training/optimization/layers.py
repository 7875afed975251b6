"""How deep in its tower each parameter lies: what layer decay and ``visual[:-2]`` count by."""

import re
from collections.abc import Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from vlp.errors import UserError

TOWERS = ("visual", "text")
BLOCK = re.compile(r"^(?:.*?\.)??(?:resblocks|blocks?|layers?|h)\.?(\d+)(?:\.(\d+))?\.")
"""``transformer.resblocks.3.``, ``encoder.layer.3.``, ``encoder.block.3.``, ``layer2.0.``."""
EMBEDDING = re.compile(r"embed|shared|conv\d|bn\d|ln_pre|norm_pre|patch|stem")
"""What comes before the blocks, by name; anything else outside of them comes after."""


def tower_layers(encoder: nn.Module, tower: str) -> dict[str, int]:
    """Return the layer of each parameter of a tower: 0 embeddings, then blocks, last the output.

    timm says so itself (``group_matcher``); other towers are told by their names: open_clip's,
    Hugging Face's. ViT-B/32 has layers 0 to 13 in each tower.

    Raises:
        UserError: The tower names its blocks in no way that is known.
    """
    part: Any = getattr(encoder, tower)
    trunk: Any = getattr(part, "trunk", None)
    if hasattr(trunk, "group_matcher"):
        names: Any = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        inside = {f"trunk.{name}": layer for name, layer in names.items()}
        output = max(inside.values()) + 1
        layers = {name: inside.get(name, output) for name, _ in part.named_parameters()}
    else:
        layers = _layers_by_name([name for name, _ in part.named_parameters()])
    if len(set(layers.values())) < 2:
        raise UserError(
            f"The layers of the tower {tower} ({type(trunk or part).__name__}) are not known. "
            f'Write rates for its parts by name, as --optimizer.groups "{tower}.*: lr=0.1".'
        )
    return {f"{tower}.{name}": layer for name, layer in layers.items()}


def tower_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of both towers, each a module that is called whole; none within another."""
    found: dict[str, nn.Module] = {}
    for tower in TOWERS:
        for name, module in getattr(encoder, tower).named_modules():
            if BLOCK.fullmatch(f"{name}.") and list(module.parameters()):
                found[f"{tower}.{name}"] = module
    return [
        module
        for name, module in found.items()
        if not any(other.startswith(f"{name}.") for other in found)
    ]


def slice_layers(layers: Mapping[str, int], start: str, stop: str) -> set[str]:
    """Return the parameters of the layers that ``tower[start:stop]`` names, as Python counts."""
    numbers = range(max(layers.values()) + 1)
    chosen = set(numbers[int(start) if start else None : int(stop) if stop else None])
    return {name for name, layer in layers.items() if layer in chosen}


def _layers_by_name(names: list[str]) -> dict[str, int]:
    """Return the layer of each parameter; all 0 where no name is of a block."""
    blocks = {name: _block(name) for name in names}
    ordered = sorted({block for block in blocks.values() if block is not None})
    numbers = {block: number for number, block in enumerate(ordered, start=1)}
    if not ordered:
        return dict.fromkeys(names, 0)
    output = len(ordered) + 1
    return {
        name: numbers[block]
        if block is not None
        else (0 if EMBEDDING.search(name) and "pool" not in name else output)
        for name, block in blocks.items()
    }


def _block(name: str) -> tuple[int, ...] | None:
    """Return where a block stands: (3,) of ``resblocks.3.``, (2, 0) of the stage ``layer2.0.``."""
    match = BLOCK.match(name)
    if not match:
        return None
    is_stage = re.search(r"(^|\.)layer\d", name[: match.end()])
    return (int(match[1]), int(match[2])) if is_stage and match[2] else (int(match[1]),)
