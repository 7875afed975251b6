"""What a run is told: plain frozen data, checked when it is made, printed, saved and compared."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice, Group
from data_pipelines.plan import LANES
from training.duration import Duration, RunLength
from training.rules import GroupRule, parse_stages
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are batched."""

    shards: tuple[str, ...] = ()
    """Training shards: folders, tar files, globs, brace ranges, URLs or ``pipe:`` commands."""
    weights: tuple[float, ...] = ()
    """Share of each source in what is read; none: all samples are one pool."""
    keep: tuple[str, ...] = ()
    """Keep-lists of `vlp filter --keep-list`, or DataComp's ``.npy`` of uids, one for each of the
    shards: which samples are read, and how often in an epoch."""
    resample: bool = False
    """Draw shards with replacement: nothing is counted first, and there are no epochs."""
    validation: str | None = None
    """Shards for the validation loss and retrieval."""
    batch_size: int = 256
    """Pairs in a step over all processes."""
    captions: str = "txt"
    """Where captions come from: ``txt`` or fields of ``.json``, by weight
    (``"txt:0.7 keywords:0.3"``) or priority (``"recap>alt>txt"``); one is drawn at each read."""
    group: Group = "caption"
    """What makes two pairs of a batch match: an equal caption, class or image; none: only a pair
    itself."""
    label_key: str = "cls"
    """Field of ``.json`` that holds the class, for ``--data.group label``."""
    workers: int = 2
    """Processes that read and decode, for each training process; 0: none of their own."""
    lanes: int = LANES
    """Places in the data that are read side by side. More mix better; a stream keeps a few shards
    open for each, and serves at most as many processes times workers without reading twice."""
    scaled_decode: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, not quite the same pixels."""
    max_bad: float = 0.05
    """Share of bad samples above which the run stops."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """What is changed about training pictures."""
    image_views: int = 1
    """Crops of each picture, for losses that take more than one."""
    text_views: int = 1
    """Captions drawn for each pair, for losses that take more than one."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise UserError(
                f"The batch size is {self.batch_size}; a contrastive loss needs at least 2 pairs."
            )
        least = {"workers": 0, "lanes": 1, "image_views": 1, "text_views": 1}
        _check_least(self, least, prefix="data.")
        is_fitting = len(self.weights) in (0, len(self.shards))
        if not is_fitting or not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(
                f"The weights are {self.weights} for {len(self.shards)} sources. Write a number "
                f"above 0 for each of --data.shards."
            )
        if self.keep and (self.resample or len(self.keep) != len(self.shards)):
            raise UserError(
                "Keep-lists do not go with --data.resample."
                if self.resample
                else f"There are {len(self.keep)} keep-lists for {len(self.shards)} sources. Write "
                f"one after --data.keep for each of --data.shards."
            )
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"data.max-bad is {self.max_bad}. Write a share from 0 to 1.")
        CaptionChoice.parse(self.captions)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers, and the weights that they start from."""

    name: str = "ViT-B-32"
    """Architecture: ``tiny``, open_clip's ``ViT-B-32``, a JSON file, ``hf-hub:org/repo``,
    ``local-dir:path``; or a run or checkpoint folder to fine-tune."""
    weights: str | None = None
    """Weights of both towers: an open_clip tag such as ``laion2b_s34b_b79k``, or a file."""
    image_weights: str | None = None
    """Weights of the image tower: ``timm`` for timm's own, or a file."""
    text_weights: str | None = None
    """Weights of the text tower: ``hf`` for Hugging Face's own, or a file."""
    image_size: int | None = None
    """Side of the pictures in pixels; position embeddings are resized."""
    context_length: int | None = None
    """Tokens per caption; position embeddings are resized."""
    patch_dropout: float | None = None
    """Share of a picture's patches left out in training, as in FLIP, such as 0.5: those of a
    picture follow from its seed. None: the architecture's own, mostly 0."""

    def __post_init__(self) -> None:
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise UserError(f"model.patch-dropout is {self.patch_dropout}. Write 0 up to below 1.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer takes the steps, how large they are, and what they move."""

    name: str = "adamw"
    """``adamw``, ``stable_adamw``, or one of timm's: ``lamb``, ``lion`` (use a third to a tenth of
    AdamW's rate and as much more decay), ``"adopt(caution=True)"``."""
    learning_rate: float = 5e-4
    """Peak, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "reciprocal_sqrt"] = "cosine"
    """After the warm-up: down to 0 along half a cosine or a line; as it is; or with the reciprocal
    square root of the samples seen. The last two do not depend on the run's length until they cool
    down."""
    warmup: str = "5%"
    """Linear rise from 0, such as ``"2000 steps"``, ``"1000000 samples"``, ``"1 epochs"``, ``"5%"``
    of the run."""
    cooldown: str = "0%"
    """Linear fall to 0 at the end, of a constant or reciprocal square root."""
    timescale: str | None = None
    """Of the reciprocal square root: so far behind the warm-up, the rate is the peak over the root
    of 2; none: the length of the warm-up."""
    weight_decay: float = 0.2
    """Not applied to norms, biases, scale and bias."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer of a tower to the one before; its last layer has 1."""
    groups: tuple[str, ...] = ()
    """Rules for parameters by name: ``"visual.*: lr=0.1 decay=0"`` (factors on the learning rate
    and weight decay), ``"text: layer-decay=0.9"``, ``"text.transformer.resblocks.[0-5]: freeze"``.
    A module's name stands for all in it, ``visual[:-2]`` for all layers of the tower but the last
    two; of several rules that name a parameter, the last decides."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"The learning rate is {self.learning_rate}. Write one above 0.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"The layer decay is {self.layer_decay}. Write one up to 1, as 0.75.")
        _, cooldown, timescale = self.durations()
        if cooldown.amount and self.schedule in ("cosine", "linear"):
            raise UserError(
                f"A {self.schedule} falls to 0 by itself. Leave out --optimizer.cooldown, or write "
                f"--optimizer.schedule constant."
            )
        if self.schedule == "reciprocal_sqrt" and not timescale.amount:
            raise UserError(
                "A reciprocal square root has a time scale. Write --optimizer.timescale "
                '"10000 steps", or a warm-up above 0.'
            )
        for rule in self.groups:
            GroupRule.parse(rule)

    def durations(self) -> tuple[Duration, Duration, Duration]:
        """Return the warm-up, the cool-down and the time scale."""
        return (
            Duration.parse(self.warmup, "The warm-up"),
            Duration.parse(self.cooldown, "The cool-down"),
            Duration.parse(self.timescale or self.warmup, "The time scale"),
        )


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which checkpoints of a run stay: the last ones, and of the older those named here."""

    last: int = 2
    """The newest that stay; one of them may be damaged."""
    every: int = 0
    """Those of every so many steps stay for good; 0: none."""
    best: str = ""
    """The one with the best value of this figure stays, such as
    ``validation/retrieval/image_to_text/recall@1``; of a loss or rank the lowest is the best."""

    def __post_init__(self) -> None:
        for name, least in (("last", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"keep.{name} is {getattr(self, name)}. Write {least} or more.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: tuple[str, ...] | str = ("softmax",)
    """Losses of ``training/losses``, such as ``sigmoid`` or ``"softmax(label_smoothing=0.1)"``.
    Several add up, each by its weight: ``softmax "uniformity(weight=0.1)"``."""
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
    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always has one."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    """Which checkpoints stay."""
    validate_every: int = 0
    """Steps between validations; 0: only at the end."""

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
        parse_stages(self.stages)
        _check_least(self, {"log_every": 1, "save_every": 1})
        _check_least(self, {"image_piece": 0, "text_piece": 0, "memory": 0, "memory_top": 0})
        self._check_memory()
        if isinstance(self.loss, str):  # as a recipe may have it
            object.__setattr__(self, "loss", (self.loss,))
        if not self.loss:
            raise UserError("There is no loss. Write --loss softmax.")

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


def _check_least(config: object, least: dict[str, int], prefix: str = "") -> None:
    for name, value in least.items():
        if getattr(config, name) < value:
            raise UserError(f"{prefix}{name} is {getattr(config, name)}. Write {value} or more.")
