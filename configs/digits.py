"""Handwritten digits, 8x8, from scikit-learn: nothing to download.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/digits.py:conditional --workdir=runs/conditional
    python train.py --config=configs/digits.py:classifier --workdir=runs/classifier
    python train.py --config=configs/digits.py:blur --workdir=runs/blur

Measured on 2 cores of a Xeon: 2,000 steps of 64 images in 2 min 30 s, compilation and four pictures included, at 1,100
images/s; loss 0.137. Digits are recognisable from the first picture (500 steps) on. 683,649 parameters.

`:conditional` tells the same network each digit's label, but for a tenth of them; `:classifier` learns to tell the
label from the noisy digit, to guide by.

Under other perturbations, with the same network (one channel wider at its entrance where it is told the parameters of
its sample, two for the angle and the zoom), the same steps in the same time (`:overlap` 2 min 22 s) and as many
evaluations (see docs/perturbations.md, and docs/digits_perturbations.md for what comes of them):

    :laplace :uniform :bernoulli    noise of these laws in the place of the normal one
    :rotate      turned by up to a quarter either way; the network is told how far
    :mask        pixels vanish, and the network is told which and when
    :blur        to the mean, with little noise: the blur is undone, from a fitted law of the mean
    :pixelate    to the mean by blocks of 2, 4 and 8 pixels, likewise
    :overlap     into another digit of the train split, which the network is told, with little noise
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config import Config, Data, Every, Loss, Optimizer, Sampling, Train


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    variants = {"": _plain, "conditional": _conditional, "classifier": _classifier}
    if variant in _PERTURBED:
        return _perturbed(**_PERTURBED[variant]).to_config_dict()
    if variant not in variants:
        known = ", ".join(filter(None, [*variants, *_PERTURBED]))
        raise ValueError(f"configs/digits.py has no variant {variant!r}; it has {known}")
    return variants[variant]().to_config_dict()


def _plain() -> Config:
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
    )


def _conditional() -> Config:
    return dataclasses.replace(_plain(), p_uncond=0.1)


def _classifier() -> Config:
    return dataclasses.replace(
        _plain(),
        model={"name": "classifier", "channels": (32, 64)},
        train=Train(steps=1000, batch_size=64, ema_decay=0.99),
    )


def _perturbed(*, little_noise: float | None = None, **process: Any) -> Config:
    """Diffusion under a process; with `little_noise`, α = 1 and σ rises from 0 to that."""
    plain = _plain()
    config = dataclasses.replace(
        plain,
        process={"name": "perturbed", **process},
        sampling=dataclasses.replace(plain.sampling, sampler="transported"),
        **({"predicts": "x0", "loss": Loss(space="x0")} if "signal" in process else {}),
    )
    if little_noise is None:
        return config
    schedule = {"name": "ve", "sigma_min": little_noise / 10, "sigma_max": little_noise}
    return dataclasses.replace(config, schedule=schedule)


# What g leaves of a digit at t = 1 decides about the schedule. A turned digit is still one: only noise can hide it, so
# the schedule of the plain config does, and starts from noise alone. So it does for pixels that vanish, as one that
# reappears is drawn at its mean: the noise that is still there makes up for the spread that this lacks. A mean of all
# pixels is known well enough by its variance, and another digit wholly: these keep α = 1, and the transform is undone.
_PERTURBED: dict[str, dict[str, Any]] = {
    "laplace": {"noise": "laplace"},
    "uniform": {"noise": "uniform"},
    "bernoulli": {"noise": "bernoulli"},
    "rotate": {"signal": ("random_warp:low=-1.5708,high=1.5708",), "tell": True},
    "mask": {"signal": ("mask",), "tell": True},
    "blur": {"signal": ("blur:width=4",), "start": "fitted", "little_noise": 0.5},
    "pixelate": {"signal": ("pixelate:blocks=(2,4,8)",), "start": "fitted", "little_noise": 0.5},
    "overlap": {"signal": ("overlap",), "tell": True, "little_noise": 0.5},
}
