"""Named runs. A recipe is a function that returns a whole config; start from one and change it."""

from data_pipelines.augment import Augmentation
from training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig


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
        save_every=500,
    )


def vit_b32_softmax() -> TrainConfig:
    """CLIP ViT-B/32 (Radford et al. 2021, table 18): batch 32,768, 32 epochs, 5e-4."""
    return TrainConfig(
        model=ModelConfig(name="ViT-B-32"),
        data=DataConfig(batch_size=32768, workers=8),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup="2000 steps", weight_decay=0.2),
        length="32 epochs",
    )


def vit_b16_sigmoid() -> TrainConfig:
    """SigLIP ViT-B/16 at 224 (Zhai et al. 2023): batch 32,768, 1e-3, decay 1e-4, beta2 0.95."""
    return TrainConfig(
        model=ModelConfig(name="ViT-B-16-SigLIP"),
        data=DataConfig(
            batch_size=32768, workers=8, augmentation=Augmentation(scale=(0.9, 1.0), flip=0.5)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup="5%", weight_decay=1e-4, beta2=0.95),
        loss="sigmoid",
        length="9000000000 samples",
    )
