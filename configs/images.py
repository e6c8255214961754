"""A folder of your pictures, of any format, size and mode: no code needed.

    python train.py --config=configs/images.py --config.data.name=folder:photos --workdir=runs/photos
    python train.py --config=configs/images.py:conditional --config.data.name=folder:photos --workdir=runs/photos

Pictures are cropped to a square and resized to 64×64; `--config.data.size=32` or `"(48,64)"` changes that, and the
U-Net gets as many levels as the size needs. `--config.data.crop=random` and `--config.data.flip` vary them.

`:conditional` takes the sub-folders as classes, and drops a tenth of the labels.
"""

import dataclasses

from ml_collections import ConfigDict

from jaxdiff.experiment import Conditions, Config, Data, Every, Optimizer, Sampling, Train
from jaxdiff.typing import InputError


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    if variant not in ("", "conditional"):
        raise InputError(f"configs/images.py has no variant {variant!r}; it has conditional")
    config = Config(
        data=Data(name="folder:YOUR_PICTURES", size=64),
        model={"name": "sized_unet", "width": 64},
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200, decay="cosine"),
        train=Train(steps=20_000, batch_size=64, ema_decay=0.999),
        sampling=Sampling(sampler="ddim", steps=50, n=16),
        every=Every(log=100, checkpoint=1000, sample=1000),
    )
    return dataclasses.replace(config, cond=Conditions(label=0.1 if variant else None)).to_config_dict()
