"""Named runs. A recipe is a function that returns a whole config; start from one and change it."""

from dataclasses import replace
from inspect import isfunction

from data_pipelines.augment import Augmentation
from training.config import TrainConfig
from training.options import DataConfig, ModelConfig, OptimizerConfig


def toy() -> TrainConfig:
    """The drawn shapes of `vlp quickstart`: a tiny encoder, a minute on two cores."""
    return TrainConfig(
        model=ModelConfig(name="tiny"),
        data=DataConfig(batch_size=128, workers=1),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup="10%", weight_decay=0.1),
        length="13 epochs",
    )


def emoji() -> TrainConfig:
    """Emoji drawings (README): a small convolutional tower, under 20 minutes on two cores."""
    return TrainConfig(
        model=ModelConfig(name="emoji"),
        data=DataConfig(
            batch_size=128,
            captions="txt:0.85 keywords:0.15",
            augmentation=Augmentation(
                scale=(1.0, 1.0),
                ratio=(1.0, 1.0),
                rotate=10.0,
                shear=6.0,
                zoom=(0.75, 1.1),
                stretch=0.15,
                shift=0.08,
                hue=0.06,
                saturation=0.4,
                brightness=0.1,
                contrast=0.2,
                grayscale=0.15,
                outline=0.5,
            ),
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup="5%", weight_decay=0.05),
        length="45 epochs",
        save_every="500 steps",
    )


def vit_b32_softmax() -> TrainConfig:
    """CLIP ViT-B/32 (Radford et al. 2021, tables 18, 20): batch 32,768, 32 epochs, 5e-4."""
    return TrainConfig(
        model=ModelConfig(name="ViT-B-32"),
        data=DataConfig(batch_size=32768, workers=8),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup="2000 steps", weight_decay=0.2),
        length="32 epochs",
    )


def vit_l14_softmax() -> TrainConfig:
    """CLIP ViT-L/14 (Radford et al. 2021, tables 18, 20): as ViT-B/32, with 4e-4."""
    small = vit_b32_softmax()
    optimizer = replace(small.optimizer, learning_rate=4e-4)
    return replace(small, model=ModelConfig(name="ViT-L-14"), optimizer=optimizer)


def vit_b16_sigmoid() -> TrainConfig:
    """SigLIP ViT-B/16 at 224 (Zhai et al. 2023): batch 32,768, 1e-3, decay 1e-4, beta2 0.95."""
    return TrainConfig(
        model=ModelConfig(name="ViT-B-16-SigLIP"),
        data=DataConfig(
            batch_size=32768, workers=8, augmentation=Augmentation(scale=(0.9, 1.0), flip=0.5)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, beta2=0.95),
        loss="sigmoid",
        length="9000000000 samples",
    )


def datacomp_small() -> TrainConfig:
    """DataComp small (Gadre et al. 2023; mlfoundations/datacomp, scale_configs.py): 12.8 M samples.

    Shards are read in epochs; DataComp's own trainer draws them: ``--data.resample``.
    """
    return TrainConfig(
        model=ModelConfig(name="ViT-B-32"),
        data=DataConfig(batch_size=4096, workers=8),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup="500 steps", clip_norm=0.0),
        length="12800000 samples",
    )


def datacomp_medium() -> TrainConfig:
    """DataComp medium (same source): 128 M samples, otherwise as small."""
    return replace(datacomp_small(), length="128000000 samples")


def datacomp_large() -> TrainConfig:
    """DataComp large (same source): ViT-B/16, batch 8,192, 1.28 B samples."""
    return replace(
        datacomp_small(),
        model=ModelConfig(name="ViT-B-16"),
        data=DataConfig(batch_size=8192, workers=8),
        length="1280000000 samples",
    )


def datacomp_xlarge() -> TrainConfig:
    """DataComp xlarge (same source): ViT-L/14, batch 90,112, 1e-3, beta2 0.95, 12.8 B samples."""
    return TrainConfig(
        model=ModelConfig(name="ViT-L-14"),
        data=DataConfig(batch_size=90112, workers=8),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup="10000 steps", beta2=0.95, clip_norm=0.0
        ),
        length="12800000000 samples",
    )


def lit_b16() -> TrainConfig:
    """LiT: a text tower learns to read a locked image tower (Zhai et al. 2022), with a sigmoid.

    Numbers of big_vision's ``siglip_lit_coco.py`` (SigLiT on 4 TPUs): batch 512, 5,000 steps, 1e-3,
    decay 0.01, warm-up 3 %; the text tower starts from random weights, there from BERT's.
    """
    return TrainConfig(
        model=ModelConfig(name="lit_b16", image_weights="timm"),
        data=DataConfig(
            batch_size=512, workers=8, augmentation=Augmentation(scale=(1.0, 1.0), flip=0.5)
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup="3%",
            weight_decay=0.01,
            beta2=0.999,
            groups=("visual: freeze",),
        ),
        loss="sigmoid",
        length="5000 steps",
    )


def clipa_b16() -> TrainConfig:
    """CLIPA, first run: pictures of 112 and captions of 16 tokens (Li et al. 2023).

    Numbers of open_clip's ``script_examples/clipa/vit_b16/i50_t16_pretrain.sh`` (LAION-400M); here
    the tower is open_clip's ViT-B-16, with a class token in place of the mean.
    """
    return TrainConfig(
        model=ModelConfig(name="ViT-B-16", image_size=112, context_length=16),
        data=DataConfig(batch_size=8192, workers=8, augmentation=Augmentation(scale=(0.4, 1.0))),
        optimizer=OptimizerConfig(
            learning_rate=2.048e-3, warmup="782 steps", beta2=0.95, clip_norm=0.0
        ),
        length="6 epochs",
    )


def clipa_b16_full() -> TrainConfig:
    """CLIPA, second run: at 224, from ``--model.name`` the first one's run folder.

    Numbers of ``i50_t16_finetune.sh`` in the same place: batch 1,024, 2.56e-5, 131 M samples.
    """
    small = clipa_b16()
    return replace(
        small,
        model=ModelConfig(name="ViT-B-16", image_size=224, context_length=16),
        data=replace(small.data, batch_size=1024),
        optimizer=replace(small.optimizer, learning_rate=2.56e-5, warmup="3072 steps"),
        length="131072000 samples",
    )


def distill_b16() -> TrainConfig:
    """Distil a ViT-B/16 from a ViT-L/14 (MobileCLIP's DataCompDR-12M, Vasu et al. 2023).

    Numbers of ml-mobileclip's ``training/configs/run_datacompdr12m.sh`` and ``datacompdr12m.json``:
    batch 8,192, 30,000 steps, 1e-3, the loss of the teacher alone. There two teachers, whose
    features of 30 augmentations and of synthetic captions are on disk, and RandAugment; here one of
    the two, which sees each crop. From disk instead: ``--teacher FEATURES``, of `vlp embed`.
    """
    return TrainConfig(
        model=ModelConfig(name="ViT-B-16"),
        data=DataConfig(batch_size=8192, workers=8, augmentation=Augmentation(scale=(0.08, 1.0))),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup="1000 steps", beta2=0.95),
        loss="distill",
        teacher="ViT-L-14:datacomp_xl_s13b_b90k",
        length="30000 steps",
    )


def two_stage() -> TrainConfig:
    """Fine-tune an open_clip model: the text tower alone, then both (Yang et al. 2022).

    Chinese-CLIP's two stages in one run. Batch, rate, decay, warm-up and length are those of its
    ``muge_finetune_vit-b-16_rbt-base.sh``; that the first stage is a third of the run is ours.
    """
    return TrainConfig(
        model=ModelConfig(name="ViT-B-16", weights="laion2b_s34b_b88k"),
        data=DataConfig(batch_size=1024, workers=8),
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup="100 steps", weight_decay=1e-3),
        stages=("33%: freeze=visual", "rest: warmup=100 steps"),
        length="3 epochs",
    )


def convirt() -> TrainConfig:
    """ConVIRT: radiographs and reports, ResNet-50 and ClinicalBERT (Zhang et al. 2020, section 3).

    Both towers start trained; the embeddings and first 6 layers of BERT stay as they are. Other
    than there: both directions of the loss count the same (3 to 1), the temperature is learned
    (0.1), the rate falls along a cosine (where validation stands still), BERT's words are averaged
    (the largest is taken; open_clip's code for that does not run), and the length is ours.
    """
    changes = Augmentation(
        scale=(0.6, 1.0),
        flip=0.5,
        rotate=20.0,
        shift=0.1,
        zoom=(0.95, 1.05),
        brightness=0.4,
        contrast=0.4,
    )
    return TrainConfig(
        model=ModelConfig(name="convirt", image_weights="timm", text_weights="hf"),
        data=DataConfig(batch_size=32, augmentation=changes),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            weight_decay=1e-6,
            beta2=0.999,
            groups=("text[:7]: freeze",),
        ),
        length="50 epochs",
    )


RECIPES = {
    name: value
    for name, value in sorted(globals().items())
    if isfunction(value) and value.__module__ == __name__
}
"""Every recipe by its name."""
