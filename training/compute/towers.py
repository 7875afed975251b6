"""How the towers compute: blocks again in backward instead of kept, or compiled."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.options import SpeedConfig
from vlp.encoder import DualEncoder
from vlp.errors import UserError


def set_up_towers(encoder: DualEncoder, speed: SpeedConfig) -> None:
    """Let the towers compute as the options say; names of parameters and the gradient stay.

    Raises:
        UserError: A tower has no blocks that can be computed again.
    """
    for name in speed.recompute:
        recompute_blocks(encoder.visual if name == "image" else encoder.text, name)
    if speed.compile:
        compile_towers(encoder)


def recompute_blocks(tower: Any, name: str) -> None:
    """Keep only the inputs of a tower's blocks, which backward computes again.

    Source: gradient checkpointing (Chen et al. 2016, arXiv:1604.06174), as each library does it.

    Raises:
        UserError: The tower has no such blocks, or batch norm.
    """
    if any(isinstance(module, _BatchNorm) for module in tower.modules()):
        raise UserError(
            f"The {name} tower has batch norm, whose running statistics would move twice in a "
            f"step. Leave {name} out of --speed.recompute."
        )
    if hasattr(tower, "pooler"):  # a Hugging Face tower
        model = tower.transformer
        newest = getattr(model, "activation_checkpointing_enable", None)
        # Reentrant checkpoints give blocks above frozen ones no gradient.
        (newest or model.gradient_checkpointing_enable)({"use_reentrant": False})
    else:
        tower.set_grad_checkpointing(True)
    if not any(_is_recomputing(module) for module in tower.modules()):
        raise UserError(
            f"The {name} tower has no blocks that can be computed again. Leave {name} out of "
            f"--speed.recompute, or make pieces smaller by --{name}-piece."
        )


def compile_towers(encoder: DualEncoder) -> None:
    """Compile both towers where they are: they stay the modules that they were.

    What wraps the encoder, as data parallelism, and its state dict know nothing of it.
    """
    import torch._dynamo

    # Its splitting of graphs for data parallelism does not know recomputed blocks.
    torch._dynamo.config.optimize_ddp = False
    for tower in (encoder.visual, encoder.text):
        tower.compile()
    encoder.is_compiled = True


def _is_recomputing(module: nn.Module) -> bool:
    return any(getattr(module, f"{word}_checkpointing", False) for word in ("grad", "gradient"))
