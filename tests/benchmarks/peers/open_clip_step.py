"""open_clip's trainer as it is, on batches that are in memory already."""

from argparse import Namespace
from typing import Any

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn

from training.options import OptimizerConfig
from vlp.encoder import DualEncoder, open_clip_weights
from vlp.types import Batch


class PeerTrainer:
    """Takes open_clip's steps from the weights of an encoder of ours."""

    def __init__(self, encoder: DualEncoder, precision: str, options: OptimizerConfig) -> None:
        self._model = open_clip.CustomTextCLIP(**encoder.config["model_cfg"], output_dict=True)
        self._model.load_state_dict(open_clip_weights(encoder))
        self._optimizer = _optimizer(self._model, options)
        self._loss = _RecordingLoss(cache_labels=True)
        self._mean, self._std = encoder.pixel_mean, encoder.pixel_std
        self._args = Namespace(
            device="cpu",
            precision=precision,
            distill=False,
            accum_freq=1,
            skip_scheduler=True,
            grad_clip_norm=None,
            horovod=False,
            rank=0,
            world_size=1,
            log_every_n_steps=100,
            wandb=False,
        )

    def prepare(self, batches: list[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Return batches as its loader's workers hand them over: normalised, fp32."""
        return [((batch.images - self._mean) / self._std, batch.tokens) for batch in batches]

    def take_steps(self, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
        """Take a step for each batch and return the losses."""
        self._loss.seen.clear()
        self._args.batch_size = len(batches[0][1])
        data = {"train": Namespace(set_epoch=lambda _: None, dataloader=_Batches(batches))}
        scaler = scheduler = teacher = None
        train_one_epoch(
            self._model,
            data,
            self._loss,
            0,
            self._optimizer,
            scaler,
            scheduler,
            teacher,
            self._args,
        )
        return [loss.item() for loss in self._loss.seen]


class _RecordingLoss(open_clip.ClipLoss):
    """open_clip's loss, whose values are kept: its trainer returns none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        losses = super().forward(*args, **kwargs)
        self.seen.append(losses["contrastive_loss"].detach())
        return losses


class _Batches(list):
    """What the trainer asks of a loader."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(tokens) for _, tokens in self)


def _optimizer(model: nn.Module, options: OptimizerConfig) -> torch.optim.Optimizer:
    """Return what open_clip 3.3.0's `main.py` makes by default (lines 335 to 351)."""
    free, rest = [], []
    for name, parameter in model.named_parameters():
        is_free = parameter.ndim < 2 or any(w in name for w in ("bn", "ln", "bias", "logit_scale"))
        (free if is_free else rest).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": free, "weight_decay": 0.0},
            {"params": rest, "weight_decay": options.weight_decay},
        ],
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
    )
