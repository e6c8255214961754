"""MNIST, 28x28: a small network for any machine, the same with a learned schedule as `:vdm`, and the 10M-parameter DDPM
network as `:ddpm`.

    python train.py --config=configs/mnist.py --workdir=runs/mnist
    python train.py --config=configs/mnist.py:conditional --workdir=runs/conditional
    python train.py --config=configs/mnist.py:classifier --workdir=runs/classifier
    python train.py --config=configs/mnist.py:vdm --workdir=runs/vdm
    python train.py --config=configs/mnist.py:ddpm --workdir=runs/ddpm

The small network has 685,380 parameters and works at 14x14 and 7x7. Measured on 2 cores of a Xeon: 1,500 steps of 64
images in 5 min 7 s, compilation and three pictures included, at 360 images/s; loss 0.080. About two thirds of the
samples are then recognisable by eye. The loss is that of x_0, which taught shapes sooner than that of v or eps did.
Neither variant has been timed on a GPU yet.

`:conditional` tells the small network each digit's label, but for a tenth of them; `:classifier` learns to tell the
label from the noisy digit, to guide by (94 % right at t = 0.2, 71 % at 0.7, after 1,000 steps).

`:vdm` trains the small network by the variational bound, together with the log-SNR as a function of t (Kingma et al.
2021, "Variational Diffusion Models"): its shape so that the estimate of the loss varies least, its ends by the bound.
The loss is the whole bound in nats a pixel, of which most is about noise too weak to see: likelihoods gain (a
training loss of 2.18 nats, 3.14 bits, after 1,500 steps; the bound of the small network is at 5.3 bits of test
images), pictures do not: strokes, hardly digits. Over t the loss then varies 1.8 times less than with a straight line
in the log-SNR, and at least 9 times less than with a cosine (`benchmarks/learned_schedule.py`). It starts from the
paper's 13.3 and from -10 in place of its -5, from which samplers would start too clean.

`:ddpm` has 10,188,081 parameters, 64 epochs of 60,000 images in batches of 64, and needs an accelerator: on the same 2
cores it trains at 17 images/s (`benchmarks/unet.py`).
"""

import dataclasses

from ml_collections import ConfigDict

from jaxdiff.config import Config, Data, Every, Loss, Optimizer, Sampling, Train


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    variants = {"": _small, "conditional": _conditional, "classifier": _classifier, "vdm": _vdm, "ddpm": _ddpm}
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
        loss=Loss(space="x0"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        train=Train(steps=1500, batch_size=64, ema_decay=0.995),
        sampling=Sampling(sampler="ddpm", steps=50),
        every=Every(log=100, checkpoint=500, sample=500),
    )


def _conditional() -> Config:
    return dataclasses.replace(_small(), p_uncond=0.1)


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
        loss=Loss(space="eps", weight="elbo", times="antithetic"),
    )


def _ddpm() -> Config:
    epochs, examples, batch_size = 64, 60_000, 64
    return Config(
        data=Data(name="mnist"),
        model={"name": "unet"},
        schedule={"name": "linear", "steps": 1000},
        predicts="eps",
        optimizer=Optimizer(learning_rate=1e-4, clip_norm=None),
        train=Train(steps=epochs * examples // batch_size, batch_size=batch_size),
        sampling=Sampling(sampler="ddpm", steps=1000),
        every=Every(log=100, checkpoint=1000, sample=5000),
    )
