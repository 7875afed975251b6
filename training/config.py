"""What a run is told: plain frozen data, checked when it is made, printed, saved and compared."""

import math
from dataclasses import dataclass, field
from typing import Literal

from training.cadence import Cadence
from training.curriculum import Curriculum
from training.duration import Duration, RunLength
from training.optimization.rules import parse_stages
from training.options import (
    DataConfig,
    GuardConfig,
    KeepConfig,
    ModelConfig,
    OptimizerConfig,
    SpeedConfig,
    check_least,
)
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: tuple[str, ...] | str = ("softmax",)
    """Losses of ``training/losses``, such as ``sigmoid`` or ``"softmax(label_smoothing=0.1)"``.
    Several add up, each by its weight: ``softmax "uniformity(weight=0.1)"``."""
    negatives: tuple[str, ...] = ()
    """Captions that nearly fit each picture, as more negatives of it: ways to make them of its own
    caption, of ``data_pipelines/negatives``, such as ``"swap_words(k=1)"``,
    ``"replace_words(kind='attribute')"``."""
    negatives_share: str = "1"
    """Share of samples that get them, or how it changes from the start of the run, as
    ``"0 -> 1 over 20%"``."""
    teacher: str | None = None
    """What ``distill`` and ``weighted`` learn from, frozen: a model of any architecture as `vlp
    eval` takes it (a run or checkpoint folder, ``hf-hub:org/repo``, ``ViT-L-14:openai``), which
    sees each crop at its own size and each caption by its own tokenizer, for a forward pass more;
    or features of the training samples on disk, as `vlp embed` writes them, of the whole pictures
    and one caption each."""
    image_piece: int = 0
    """Pictures that a process encodes at a time; 0: all of its batch. Smaller pieces need less
    memory and a third more time, and the gradient stays that of the whole batch."""
    text_piece: int = 0
    """Captions that a process encodes at a time; 0: all of its batch."""
    memory: int = 0
    """Pairs of past steps that are more negatives, such as 65536; kept after the warm-up. They are
    stale, as the encoder of their step saw them (XBM), unless memory-momentum is given."""
    memory_top: int = 0
    """Of the past pairs, only as many as are most similar to the batch; 0: all."""
    memory_ceiling: float | None = None
    """Cosine of a past caption to an image's own caption, or of a past image to a caption's own
    image, above which it is a near-duplicate and no negative, such as 0.95."""
    memory_momentum: float = 0.0
    """Share of its own weights, such as 0.999, that a second encoder keeps in a step, which past
    pairs then come from (MoCo): one more forward pass. 0: the trained encoder alone."""
    stages: tuple[str, ...] = ()
    """Parts of the run, one after the other, that freeze what they name: ``"50%: freeze=visual"
    "rest"`` trains both towers in the second half; ``lr=0.1`` is a factor on the learning rate,
    ``warmup=2%`` a warm-up of the stage's own, ``size=112`` another side of the pictures.
    None: one stage, that freezes nothing."""
    ema: float = 0.0
    """Share of its own weights, such as 0.9999, that a moving average of the encoder keeps in a
    step. It forgets half in 0.69 x batch size / (1 - ema) samples: keep that when you change the
    batch size. It is what is evaluated and used later. 0: none."""
    length: str = "1 epochs"
    """The recipe's length, where none of steps, samples and epochs is given."""
    steps: int | None = None
    """Length of the run in optimizer steps."""
    samples: int | None = None
    """Length of the run in samples seen; the last batch may go beyond it."""
    epochs: float | None = None
    """Length of the run in passes over the data."""
    seed: int = 0
    """Order, crops, drawn captions, initial weights and dropout follow from it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 where the GPU or CPU has it (AMX, AVX512-BF16), else fp32."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """How its steps are computed."""
    sharding: Literal["none", "fsdp"] = "none"
    """What several processes hold of the weights, gradients and optimizer state: ``none``: all of
    them each; ``fsdp``: each its share (FSDP2), the rest is gathered block by block."""
    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``."""
    save_every: str = "1000 steps"
    """How often a checkpoint is written: ``"1000 steps"``, ``"1000000 samples"``, ``"1 epochs"``,
    ``"15 minutes"``, or a number of steps; 0: only at the end, which always has one."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    """Which checkpoints stay."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What is done about steps that would harm the run."""
    validate_every: str = "0"
    """How often the run is validated, as save_every but not in minutes; 0: only at the end."""
    tasks: tuple[str, ...] = ("retrieval",)
    """Evaluators of ``eval/evaluators`` that each validation runs on ``--data.validation``, such as
    ``retrieval "zero_shot(classes='classes.json')"``; none: only the loss."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where figures go besides ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``mlflow``, ``aim``
    and others that Accelerate knows, each with its package; none: nowhere."""

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "samples", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join(f"--{name}" for name in given)
            raise UserError(f"The length is given twice, by {flags}. Give exactly one.")
        if self.seed < 0:
            raise UserError(f"The seed is {self.seed}. Write 0 or more.")
        length = self._length()
        if not 0 < length.amount < math.inf or length.unit == "%":
            raise UserError(f"The length is {length}. Write one above 0 in steps or samples.")
        if self.teacher is not None and not self.teacher.strip():
            raise UserError("The teacher is empty. Write --teacher MODEL, or leave it out.")
        parse_stages(self.stages)
        self._check_cadences()
        check_least(self, {"log_every": 1})
        check_least(self, {"image_piece": 0, "text_piece": 0, "memory": 0, "memory_top": 0})
        self._check_memory()
        self._check_negatives()
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}. Write 0 up to below 1, as 0.9999.")
        if isinstance(self.loss, str):  # as a recipe may have it
            object.__setattr__(self, "loss", (self.loss,))
        if not self.loss:
            raise UserError("There is no loss. Write --loss softmax.")
        self._check_validation()

    def num_steps(self, num_samples: int | None) -> int:
        """Return the length in steps for a set of this many samples; None: not known.

        Raises:
            UserError: The length is in epochs of data that is not counted.
        """
        return max(1, math.ceil(self.run_length(num_samples).samples / self.data.batch_size))

    def run_length(self, num_samples: int | None) -> RunLength:
        """Return what durations are parts of, for a set of this many samples; None: not known.

        Raises:
            UserError: The length is in epochs of data that is not counted.
        """
        none_yet = RunLength(0, self.data.batch_size, num_samples)
        return none_yet._replace(samples=max(1, int(self._length().samples(none_yet))))

    def _check_cadences(self) -> None:
        saves = Cadence.parse(self.save_every, "save_every")
        validations = Cadence.parse(self.validate_every, "validate_every")
        if validations.minutes:
            raise UserError(
                f"validate_every is {self.validate_every!r}: by the clock, two equal runs would be "
                f'validated at other steps. Write it in "1000 steps" or "1000000 samples".'
            )
        for name, cadence in (("save", saves), ("validate", validations)):
            if self.data.resample and cadence.duration.unit == "epochs":
                raise UserError(
                    f"Data that is drawn with replacement has no epochs. Write --{name}-every "
                    f'{str(cadence.duration)!r} in samples, such as "1000000 samples".'
                )

    def _check_validation(self) -> None:
        """Refuse what would do nothing without held-out shards."""
        cadence = Cadence.parse(self.validate_every, "validate_every")
        asked = {
            "--tasks": self.tasks not in ((), ("retrieval",)),
            f"--validate-every {self.validate_every!r}": cadence.duration.amount,
            f"--keep.best {self.keep.best}": self.keep.best.startswith("validation/"),
        }
        for option, is_asked in asked.items():
            if is_asked and not self.data.validation:
                raise UserError(
                    f"{option} needs held-out shards. Write --data.validation FOLDER, too."
                )

    def _check_negatives(self) -> None:
        Curriculum.parse(self.negatives_share, "negatives-share")
        if not self.negatives and self.negatives_share != "1":
            raise UserError(
                "--negatives-share is the share of samples with hard captions. Write --negatives "
                '"swap_words", too.'
            )

    def _check_memory(self) -> None:
        if not 0 <= self.memory_momentum < 1:
            raise UserError(
                f"memory_momentum is {self.memory_momentum}. Write 0 up to below 1, as 0.999."
            )
        options = ("memory_top", "memory_ceiling", "memory_momentum")
        given = [name for name in options if getattr(self, name) not in (None, 0)]
        if given and not self.memory:
            flag = given[0].replace("_", "-")
            raise UserError(f"--{flag} needs past pairs. Write --memory 65536, too.")
        if self.memory_ceiling is not None and not 0 < self.memory_ceiling <= 1:
            raise UserError(
                f"--memory-ceiling is {self.memory_ceiling}. Write a cosine up to 1, as 0.95."
            )

    def _length(self) -> Duration:
        for unit in ("steps", "samples", "epochs"):
            amount = getattr(self, unit)
            if amount is not None:
                return Duration(amount, unit)
        return Duration.parse(self.length, "The length")
