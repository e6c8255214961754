"""CIFAR-10, 32x32 colour photographs of ten classes.

    python train.py --config=configs/cifar10.py --workdir=runs/cifar10
    python train.py --config=configs/cifar10.py:conditional --workdir=runs/cifar10_conditional

The archive of the binary version (170 MB) is downloaded once, or read from a folder that has it or its files
(`--config.data.dir=DIR`). The U-Net has 10,339,715 parameters and needs an accelerator; nobody has trained it yet.
`--config.model.width=32 --config.train.steps=5000` is smaller.

`:conditional` conditions the network on labels and drops a tenth of them.
"""

import dataclasses

from ml_collections import ConfigDict

from jaxdiff.experiment import Conditions, Config, Data, Every, Optimizer, Sampling, Train
from jaxdiff.typing import InputError


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    if variant not in ("", "conditional"):
        raise InputError(f"configs/cifar10.py has no variant {variant!r}; it has conditional")
    config = Config(
        data=Data(name="cifar10"),
        model={"name": "sized_unet", "width": 64},
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        optimizer=Optimizer(learning_rate=5e-4, warmup_steps=1000, decay="cosine"),
        train=Train(steps=100_000, batch_size=128, ema_decay=0.9999),
        sampling=Sampling(sampler="ddim", steps=50),
        every=Every(log=100, checkpoint=1000, sample=5000),
    )
    return dataclasses.replace(config, cond=Conditions(label=0.1 if variant else None)).to_config_dict()
