"""Captions to token ids, and how many captions did not fit."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlp.bpe import Bpe
from vlp.weights import or_user_error


class Tokenizer:
    """Turns captions into ids of a fixed length; longer captions keep their end token.

    Args:
        encode: ``(captions, length) -> ids [captions, length], cut [captions]``: ``Bpe``, or
            ``tokenize_twice`` around any other tokenizer.
        length: Tokens per caption, start and end tokens included.
        hugging_face: The tokenizer of transformers that does the work, where it is one.
    """

    def __init__(
        self,
        encode: Callable[[list[str], int], tuple[Tensor, Tensor]],
        length: int,
        hugging_face: Any = None,
    ) -> None:
        self._encode = encode
        self.length = length
        self.hugging_face = hugging_face

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "captions length"]:
        """Return the ids of each caption."""
        return self.with_cuts(captions)[0]

    def with_cuts(
        self, captions: Sequence[str]
    ) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
        """Return the ids of each caption, and whether its end was cut off."""
        if not captions:
            return torch.empty(0, self.length, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        return self._encode(list(captions), self.length)


def tokenize_twice(
    tokenize: Callable[[list[str], int], Tensor], captions: Sequence[str], length: int
) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
    """Return the ids of each caption, and whether its end was cut off.

    For a tokenizer that gives ids only: captions that fill their row are tokenised once more.

    Args:
        tokenize: ``(captions, length) -> ids [captions, length]``, cut and padded.
        captions: At least one.
        length: Tokens per caption, start and end tokens included.
    """
    ids = tokenize(list(captions), length)  # [captions, length]
    # With room for one token more, a caption that was cut goes on where its end token stood.
    full = (ids[:, -1] != 0).nonzero().squeeze(1).tolist()
    cut = torch.zeros(len(captions), dtype=torch.bool)
    if full:
        roomy = tokenize([captions[int(i)] for i in full], length + 1)
        cut[full] = (roomy[:, :length] != ids[full]).any(dim=1)
    return ids, cut


def create_tokenizer(
    text_cfg: dict[str, Any], folder: Path | None = None, *, room: int | None = None
) -> Tokenizer:
    """Return the tokenizer that a text tower's config asks for, with ids as open_clip's.

    Args:
        text_cfg: open_clip's: ``context_length`` (77), ``hf_tokenizer_name``, ``tokenizer_kwargs``.
        folder: A checkpoint folder that may hold a Hugging Face tokenizer's files.
        room: Most tokens that the tower takes; a Hugging Face tower may have room for more than
            its captions are given.

    Raises:
        UserError: A Hugging Face tokenizer cannot be loaded.
    """
    length = text_cfg.get("context_length", 77)
    tokenize = _open_clip_tokenizer(text_cfg, length, folder)
    encode = Bpe(tokenize) if _is_clip_bpe(tokenize) else partial(tokenize_twice, tokenize)
    return Tokenizer(encode, min(length, room or length), getattr(tokenize, "tokenizer", None))


def _open_clip_tokenizer(text_cfg: dict[str, Any], length: int, folder: Path | None) -> Callable:
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    source = text_cfg.get("hf_tokenizer_name")
    if not source:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    if folder and (folder / "tokenizer_config.json").is_file():
        source = str(folder)
    mode = text_cfg.get("tokenizer_mode")
    return or_user_error(
        lambda: open_clip.tokenizer.HFTokenizer(
            source, context_length=length, tokenizer_mode=mode, **options
        ),
        f"the tokenizer {source}",
    )


def _is_clip_bpe(tokenizer: Callable) -> bool:
    """Whether it does what CLIP's did: no other cleaning, special tokens or masking of captions."""
    return (
        type(tokenizer) is open_clip.SimpleTokenizer
        and tokenizer.clean_fn is open_clip.tokenizer.get_clean_fn("lower")
        and len(tokenizer.all_special_ids) == 2
        and tokenizer.reduction_fn is None
    )
