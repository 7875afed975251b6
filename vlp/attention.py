"""Attention of the towers: without the copies of torch's module, and the CPU's quickest way."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

LONGEST_PLAIN = {torch.bfloat16: 512, torch.float32: 128}
"""Tokens up to which the plain products beat torch's flash kernel on a CPU (measured, forward and
backward): in bf16 2.2 times at 197 tokens and 3 times at 24 to 99, in fp32 1.05 to 1.2 times up to
99. They hold the products of all pairs of tokens."""


class SelfAttention(nn.MultiheadAttention):
    """Self-attention over ``[batch, tokens, width]``, with the parameters of torch's own.

    torch's module copies queries, keys and values, and turns the batch around and back.
    """

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "batch tokens width"],
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        """Return what each token attends to; the mask is added to the products."""
        assert query is key is value
        assert not need_weights
        batch, tokens, width = query.shape
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        packed = packed.view(batch, tokens, 3, self.num_heads, self.head_dim)
        queries, keys, values = packed.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, head]
        if attn_mask is not None:
            if attn_mask.dim() == 3:  # one for each head of each row
                attn_mask = attn_mask.view(batch, self.num_heads, tokens, tokens)
            attn_mask = attn_mask.to(queries.dtype)
        mixed = _attend(queries, keys, values, attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width)), None


def quicken(tower: nn.Module) -> None:
    """Give a tower of open_clip's or timm's the quickest attention; names and shapes stay."""
    for module in tower.modules():
        if type(module).__name__ == "ResidualAttentionBlock" and not hasattr(module, "ln_1_kv"):
            attention: Any = module.attn
            if attention.batch_first and not attention.dropout:
                attention.__class__ = SelfAttention
        elif isinstance(getattr(module, "fused_attn", None), bool):  # timm's
            module.register_forward_pre_hook(_choose)


def _choose(module: Any, args: tuple) -> None:
    if not torch.compiler.is_compiling():
        module.fused_attn = not _is_quicker_plain(args[0])


def _attend(
    queries: Float[Tensor, "batch heads tokens head"],
    keys: Float[Tensor, "batch heads tokens head"],
    values: Float[Tensor, "batch heads tokens head"],
    mask: Tensor | None,
) -> Float[Tensor, "batch heads tokens head"]:
    if not _is_quicker_plain(queries):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    products = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if mask is not None:
        products = products + mask
    return F.softmax(products, dim=-1) @ values


def _is_quicker_plain(tokens: Float[Tensor, "... tokens width"]) -> bool:
    if tokens.device.type != "cpu":
        return False
    if isinstance(tokens, FakeTensor) and not torch.compiler.is_compiling():
        return False  # shapes alone, asked what a GPU would keep
    is_cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_cast else tokens.dtype
    return tokens.shape[-2] <= LONGEST_PLAIN.get(dtype, 0)
