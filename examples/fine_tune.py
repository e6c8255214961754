"""Train a model of all digits, then fine-tune it on one of them: about a minute on two cores.

    python examples/fine_tune.py threes.png --digit=3

The picture shows samples of the first run above, and of the second one below. The runs stay in --workdir: a second call
with another digit fine-tunes the same first run again.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import jaxdiff as jd
from jaxdiff import xla
from jaxdiff.experiment import Config, Data, Every, Loss, Optimizer, Sampling, Train, plots

BATCH = 64
NETWORK = {"name": "unet", "patch": 2, "down": (64,), "middle": (), "up": (64,), "attention": (False,), "layers": 1}


def config(steps: int, learning_rate: float, init_from: Path | None = None) -> Config:
    """Return the config of a run of so many steps, which may start from the weights of another run."""
    return Config(
        data=Data(name="digits"),
        model=NETWORK,
        schedule={"name": "cosine", "num_timesteps": 1000},
        predicts="v",
        loss=Loss(target="eps"),
        optimizer=Optimizer(learning_rate=learning_rate, warmup_steps=20, decay="cosine"),
        train=Train(steps=steps, batch_size=BATCH, ema_decay=0.98, init_from=init_from and str(init_from)),
        sampling=Sampling(sampler="ddim", steps=25, n=16),
        every=Every(log=50, checkpoint=1000, sample=1000),
    )


def only(digit: int) -> jd.data.Dataset:
    """Return the data set of one digit. The levels of its pixels are those of the first run: 0 to 16."""
    digits = jd.data.load("digits")
    return jd.data.Dataset(
        name=f"digit {digit}", x=digits.x[digits.labels == digit], labels=None, levels=digits.levels, classes=None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a model of all digits on one of them.")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("--digit", type=int, default=3, help="the digit to fine-tune on")
    parser.add_argument("--workdir", type=Path, default=Path("runs/fine_tune"), help="the folder of both runs")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of the first run; the second has half")
    parser.add_argument("--samples", help="an .npz file to write the samples of both runs to")
    arguments = parser.parse_args()

    xla.split_cpu(BATCH)  # each core of a CPU becomes a device with its own examples
    first, second = arguments.workdir / "digits", arguments.workdir / f"digit_{arguments.digit}"
    jd.train(config(arguments.steps, 4e-3), first)
    # A new run with its own data, learning rate and optimizer state; only its first weights are those of the other run.
    jd.train(config(arguments.steps // 2, 1e-3, init_from=first), second, data=only(arguments.digit))

    drawn = {folder.name: jd.load(folder).sample(jax.random.key(0), n=64) for folder in (first, second)}
    pixels = plots.draw(np.concatenate(list(drawn.values())), columns=16)
    Image.fromarray(pixels).save(arguments.out)
    if arguments.samples:
        np.savez(arguments.samples, **drawn)


if __name__ == "__main__":
    main()
