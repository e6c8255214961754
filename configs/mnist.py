"""MNIST, 28x28: a small network for any machine, and the 10M-parameter network as `:ddpm`."""

from ml_collections import ConfigDict

from jaxdiff.config import Config, Data, Every, Optimizer, Sampling, Train


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    variants = {"": _small, "ddpm": _ddpm}
    if variant not in variants:
        raise ValueError(f"configs/mnist.py has no variant {variant!r}; it has {', '.join(filter(None, variants))}")
    return variants[variant]().to_config_dict()


def _small() -> Config:
    return Config(
        data=Data(name="mnist"),
        model={
            "name": "unet",
            "patch": 2,
            "stem": 32,
            "down": (32, 64),
            "middle": (64,),
            "up": (64, 32),
            "attention": (False, True),
            "layers": 1,
        },
        schedule={"name": "cosine", "steps": 1000},
        predicts="v",
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100),
        train=Train(steps=10_000, batch_size=64, ema_decay=0.999),
        sampling=Sampling(sampler="ddim", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    )


def _ddpm() -> Config:
    return Config(
        data=Data(name="mnist"),
        model={"name": "unet"},
        schedule={"name": "linear", "steps": 1000},
        predicts="eps",
        optimizer=Optimizer(learning_rate=1e-4, clip_norm=None),
        train=Train(steps=64 * 60_000 // 64, batch_size=64),
        sampling=Sampling(sampler="ddpm", steps=1000),
        every=Every(log=100, checkpoint=1000, sample=5000),
    )
