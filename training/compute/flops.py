"""Floating-point operations of a step, and the share of the hardware's peak that they are (MFU)."""

import copy
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from training.compute.accumulate import num_rows
from vlp.console import say
from vlp.encoder import DualEncoder
from vlp.errors import first_line
from vlp.types import Batch

PEAKS = {
    "A100": {"bf16": 312, "tf32": 156, "fp32": 19.5},
    "A40": {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4},
    "RTX A6000": {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7},
    "RTX 3090": {"bf16": 71, "tf32": 35.6, "fp32": 35.6},
    "RTX 4090": {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6},
    "L4": {"bf16": 121, "tf32": 60, "fp32": 30.3},
    "L40S": {"bf16": 362, "tf32": 183, "fp32": 91.6},
    "H100": {"bf16": 989, "tf32": 495, "fp32": 67},
    "H100 NVL": {"bf16": 835, "tf32": 418, "fp32": 60},
    "H100 PCIe": {"bf16": 756, "tf32": 378, "fp32": 51},
    "H200": {"bf16": 989, "tf32": 495, "fp32": 67},
}
"""TFLOP/s of GPUs without sparsity, fp16 as bf16, sums in fp32: NVIDIA's data sheets and, of the
GeForce cards, its Ampere and Ada white papers (appendix A)."""
ROWS = 2
"""Pictures and captions in a count: batch norm of a single one has no variance."""


class FlopCounter:
    """Counts what both towers need for a batch, forward and backward, once for each shape.

    What is computed again in backward is not counted, nor what frozen layers spare, nor the loss:
    these are the model's own operations, as MFU takes them (PaLM, Chowdhery et al. 2022, appendix
    B). Each product of matrices of n x k and k x m is 2nkm of them.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder, self._skeleton = encoder, _skeleton(encoder)
        self._known: dict[tuple, dict[tuple[int, ...], int]] = {}
        self._is_able = True

    def of(self, batch: Batch, stage: int = 0) -> int:
        """Return the operations of a training step on a batch; 0 where they cannot be counted.

        Args:
            batch: As the towers get it: captions are cut already.
            stage: What is frozen is looked at once for each stage.
        """
        num_images, num_texts = num_rows(batch)
        try:
            return num_images * self._of_row("images", batch.images, stage) + num_texts * (
                self._of_row("tokens", batch.tokens, stage)
            )
        except (RuntimeError, NotImplementedError) as error:  # a tower that looks at values
            if self._is_able:
                say(f"No MFU: the operations cannot be counted ({first_line(error)}).")
            self._is_able = False
            return 0

    def _of_row(self, kind: str, rows: Tensor, stage: int) -> int:
        known, shape = self._known.setdefault((kind, stage), {}), tuple(rows.shape[1:])
        if shape not in known:
            # A transformer's are a parabola in the length: three lengths tell the others.
            is_told = kind == "tokens" and len(known) >= 3
            count = _parabola(known, shape[0]) if is_told else self._count(kind, rows) // ROWS
            known[shape] = count
        return known[shape]

    def _count(self, kind: str, rows: Tensor) -> int:
        for name, parameter in self._encoder.named_parameters():
            self._skeleton.get_parameter(name).requires_grad_(parameter.requires_grad)
        inputs = torch.empty((ROWS, *rows.shape[1:]), dtype=rows.dtype, device="meta")
        seed = torch.empty(ROWS, dtype=torch.int64, device="meta")
        self._skeleton.train()
        with _Counting() as counting, torch.enable_grad():
            if kind == "images":
                features = self._skeleton(images=inputs, seed=seed).image
            else:
                features = self._skeleton(tokens=inputs).text
            if features.requires_grad:
                features.sum().backward()
        self._skeleton.zero_grad(set_to_none=True)
        return counting.total


class _Counting(TorchDispatchMode):
    """Adds up torch's own formulas; its ``FlopCounterMode`` takes twice as long."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the most operations per second of a device at fp32, bf16 or fp16; None: unknown.

    A part of a GPU (MIG) is unknown, too.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = [known for known in PEAKS if known in name.replace("-", " ").split(" MIG ")[0]]
    if not found or "MIG" in name:
        return None
    kind = "bf16" if precision in ("bf16", "fp16") else "fp32"
    if kind == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        kind = "tf32"
    return PEAKS[max(found, key=len)][kind] * 1e12


def _skeleton(encoder: DualEncoder) -> DualEncoder:
    """Return the encoder without a single value: its copy on the device ``meta``."""
    shared: dict[int, Any] = {id(part): part for part in (encoder.tokenizer, encoder.transform)}
    for value in (*encoder.parameters(), *encoder.buffers()):
        empty = torch.empty_like(value, device="meta")
        shared[id(value)] = nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty
    return copy.deepcopy(encoder, shared)


def _parabola(points: dict[tuple[int, ...], int], at: int) -> int:
    """Return the value at a place of the parabola through the first three points (Lagrange)."""
    places = [place for (place,) in points][:3]
    value = Fraction(0)
    for place in places:
        term = Fraction(points[(place,)])
        for other in places:
            if other != place:
                term *= Fraction(at - other, place - other)
        value += term
    return int(value)
