"""Fashion-MNIST, 28x28 pictures of clothing: the small network of configs/mnist.py, for any machine.

    python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion
    python train.py --config=configs/fashion_mnist.py:conditional --workdir=runs/fashion_conditional

The files are downloaded once, or read from a folder that has them (`--config.data.dir=DIR`). The network has 685,380
parameters. A step takes as long as that of configs/mnist.py; samples have not been judged yet.

`:conditional` conditions it on labels and drops a tenth of them.
"""

import dataclasses

from ml_collections import ConfigDict

from jaxdiff.experiment import Conditions, Config, Data, Every, Loss, Optimizer, Sampling, Train
from jaxdiff.typing import InputError


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    if variant not in ("", "conditional"):
        raise InputError(f"configs/fashion_mnist.py has no variant {variant!r}; it has conditional")
    config = Config(
        data=Data(name="fashion_mnist"),
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
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        loss=Loss(target="x0"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        train=Train(steps=1500, batch_size=64, ema_decay=0.995),
        sampling=Sampling(sampler="ddpm", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    )
    return dataclasses.replace(config, cond=Conditions(label=0.1 if variant else None)).to_config_dict()
