"""MNIST, 28x28: a small network for any machine, `:vdm` with a learned schedule, and `:ddpm` with 10M parameters.

    python train.py --config=configs/mnist.py --workdir=runs/mnist
    python train.py --config=configs/mnist.py:conditional --workdir=runs/conditional
    python train.py --config=configs/mnist.py:classifier --workdir=runs/classifier
    python train.py --config=configs/mnist.py:vdm --workdir=runs/vdm
    python train.py --config=configs/mnist.py:ddpm --workdir=runs/ddpm

The small network has 685,380 parameters and works at 14x14 and 7x7. Measured on 2 cores of a Xeon: 1,500 steps of 64
images in 5 min 7 s, compilation and three pictures included, at 360 images/s; loss 0.080. About two thirds of the
samples are then recognisable by eye. The loss is that of x_0, with which shapes appear sooner than with v or eps. No
variant has been timed on a GPU yet.

`:conditional` conditions the small network on labels and drops a tenth of them; `:classifier` trains a classifier of
noisy digits for guidance (94 % right at t = 0.2, 71 % at 0.7, after 1,000 steps).

`:vdm` trains the small network by the ELBO, together with the log-SNR as a function of t (Kingma et al. 2021,
"Variational Diffusion Models"): the shape minimises the variance of the loss, and the ELBO sets the ends. The loss is
the whole ELBO in nats per pixel, mostly about noise too weak to see. That improves likelihoods (a training loss of 2.18
nats, 3.14 bits, after 1,500 steps; the ELBO of the small network is 5.3 bits on test images) but not samples, which are
strokes rather than digits. The loss varies over t 1.8 times less than with a straight line in the log-SNR, and at least
9 times less than with a cosine (`benchmarks/learned_schedule.py`). The log-SNR starts from 13.3, as in the paper, to
-10 instead of -5, which would be too clean to start sampling from.

`:ddpm` has 10,188,081 parameters, trains for 64 epochs of 60,000 images in batches of 64, and needs an accelerator: on
the same 2 cores it trains at 17 images/s (`benchmarks/unet.py`).
"""

import dataclasses

from ml_collections import ConfigDict

from jaxdiff.experiment import Conditions, Config, Data, Every, Loss, Optimizer, Sampling, Train
from jaxdiff.typing import InputError


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    variants = {"": _small, "conditional": _conditional, "classifier": _classifier, "vdm": _vdm, "ddpm": _ddpm}
    if variant not in variants:
        raise InputError(f"configs/mnist.py has no variant {variant!r}; it has {', '.join(filter(None, variants))}")
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
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        loss=Loss(target="x0"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        train=Train(steps=1500, batch_size=64, ema_decay=0.995),
        sampling=Sampling(sampler="ddpm", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    )


def _conditional() -> Config:
    return dataclasses.replace(_small(), cond=Conditions(label=0.1))


def _classifier() -> Config:
    return dataclasses.replace(
        _small(),
        model={"name": "classifier", "patch": 2, "channels": (32, 64)},
        train=Train(steps=1000, batch_size=64, ema_decay=0.99),
    )


def _vdm() -> Config:
    return dataclasses.replace(
        _small(),
        schedule={"name": "learned", "log_snr_max": 13.3, "log_snr_min": -10.0, "learn_ends": True},
        predicts="eps",
        loss=Loss(target="eps", weight="elbo", times="antithetic"),
    )


def _ddpm() -> Config:
    epochs, examples, batch_size = 64, 60_000, 64
    return Config(
        data=Data(name="mnist"),
        model={"name": "unet"},
        schedule={"name": "linear", "num_timesteps": 1000},
        predicts="eps",
        optimizer=Optimizer(learning_rate=1e-4, clip_norm=None),
        train=Train(steps=epochs * examples // batch_size, batch_size=batch_size),
        sampling=Sampling(sampler="ddpm", steps=1000),
        every=Every(log=100, checkpoint=1000, sample=5000),
    )
