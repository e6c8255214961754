"""Handwritten digits, 8x8, from scikit-learn: nothing to download.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/digits.py:conditional --workdir=runs/conditional
    python train.py --config=configs/digits.py:classifier --workdir=runs/classifier
    python train.py --config=configs/digits.py:upscale --workdir=runs/upscale
    python train.py --config=configs/digits.py:moments --workdir=runs/moments
    python train.py --config=configs/digits.py:blur --workdir=runs/blur

Measured on 2 cores of a Xeon: 2,000 steps of 64 images in 2 min 30 s, compilation and four pictures included, at 1,100
images/s; loss 0.137. Digits are recognisable from the first picture (500 steps) on. 683,649 parameters.

`:conditional` conditions the same network on labels and drops a tenth of them; `:classifier` trains a classifier of
noisy digits for guidance. `:upscale` is conditioned on the digit reduced to 4×4 pixels, `:moments` on three numbers:
how much ink there is, and where its center is. Samples obey them: see docs/guides/networks.md.

The other variants are perturbed processes (docs/perturbations.md; docs/digits_perturbations.md has their results). They
take the same steps in the same time (`:overlap` 2 min 22 s) and as many evaluations, with the same network, which has
one more input channel if it is conditioned on the transform, or two for angle and zoom:

    :laplace :uniform :bernoulli    noise from these distributions instead of the normal one
    :rotate      rotation by up to 90 degrees either way; conditioned on the angle
    :mask        pixels vanish; conditioned on which and when
    :blur        blur to the mean with little noise; sampling starts from a distribution fitted to the mean
    :pixelate    as `:blur`, by blocks of 2, 4 and 8 pixels
    :overlap     change into another digit of the train split with little noise; conditioned on that digit
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.experiment import Conditions, Config, Data, Every, Loss, Optimizer, Sampling, Train
from jaxdiff.typing import InputError


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    variants = {
        "": _plain,
        "conditional": _conditional,
        "classifier": _classifier,
        "upscale": _upscale,
        "moments": _moments,
    }
    if variant in _PERTURBED:
        return _perturbed(**_PERTURBED[variant]).to_config_dict()
    if variant not in variants:
        known = ", ".join(filter(None, [*variants, *_PERTURBED]))
        raise InputError(f"configs/digits.py has no variant {variant!r}; it has {known}")
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
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        loss=Loss(target="eps"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        train=Train(steps=2000, batch_size=64, ema_decay=0.999),
        sampling=Sampling(sampler="ddim", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    )


def _conditional() -> Config:
    return dataclasses.replace(_plain(), cond=Conditions(label=0.1))


def _upscale() -> Config:
    return dataclasses.replace(
        _plain(), data=Data(name="digits", derive="reduced:factor=2"), cond=Conditions(image=0.1), loss=Loss()
    )


def _moments() -> Config:
    return dataclasses.replace(
        _plain(), data=Data(name="digits", derive="moments"), cond=Conditions(vector=0.1), loss=Loss()
    )


def _classifier() -> Config:
    return dataclasses.replace(
        _plain(),
        model={"name": "classifier", "channels": (32, 64)},
        train=Train(steps=1000, batch_size=64, ema_decay=0.99),
    )


def _perturbed(*, little_noise: float | None = None, **process: Any) -> Config:
    """Return the config of a perturbed process; with `little_noise`, α = 1 and σ rises to it."""
    plain = _plain()
    config = dataclasses.replace(
        plain,
        process={"name": "perturbed", **process},
        sampling=dataclasses.replace(plain.sampling, sampler="deterministic"),
        **({"predicts": "x0", "loss": Loss(target="x0")} if "transform" in process else {}),
    )
    if little_noise is None:
        return config
    schedule = {"name": "ve", "sigma_min": little_noise / 10, "sigma_max": little_noise}
    return dataclasses.replace(config, schedule=schedule)


# The schedule depends on what g leaves of a digit at t = 1. A rotated digit is still one, which only noise can hide: so
# the schedule is that of the plain config, and sampling starts from noise alone. The same holds for masked pixels: one
# that reappears is drawn at its mean, and the remaining noise supplies the spread that this lacks. The mean of all
# pixels is nearly normal, and another digit is known: these keep α = 1, and sampling undoes the transform.
_PERTURBED: dict[str, dict[str, Any]] = {
    "laplace": {"noise": "laplace"},
    "uniform": {"noise": "uniform"},
    "bernoulli": {"noise": "bernoulli"},
    "rotate": {"transform": ("random_warp:low=-1.5708,high=1.5708",), "condition_on_transform": True},
    "mask": {"transform": ("mask",), "condition_on_transform": True},
    "blur": {"transform": ("blur:width=4",), "start": "fitted", "little_noise": 0.5},
    "pixelate": {"transform": ("pixelate:blocks=(2,4,8)",), "start": "fitted", "little_noise": 0.5},
    "overlap": {"transform": ("overlap",), "condition_on_transform": True, "little_noise": 0.5},
}
