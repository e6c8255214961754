"""Handwritten digits, 8x8, from scikit-learn."""

from ml_collections import ConfigDict

from jaxdiff.config import Config, Data, Every, Optimizer, Sampling, Train


def get_config() -> ConfigDict:
    """The locked config."""
    return Config(
        data=Data(name="digits"),
        model={
            "name": "unet",
            "stem": 32,
            "down": (32, 64),
            "middle": (64,),
            "up": (64, 32),
            "attention": (False, True),
            "layers": 1,
        },
        schedule={"name": "cosine", "steps": 1000},
        predicts="v",
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        train=Train(steps=2000, batch_size=64, ema_decay=0.999),
        sampling=Sampling(sampler="ddim", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    ).to_config_dict()
