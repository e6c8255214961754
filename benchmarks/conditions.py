"""Do samples obey their conditions? Digits from their 4×4 reductions, and digits of asked moments.

    python train.py --config=configs/digits.py:upscale --workdir=runs/upscale
    python train.py --config=configs/digits.py:moments --workdir=runs/moments
    python benchmarks/conditions.py --upscale=runs/upscale --moments=runs/moments --pictures=docs/pictures

Asks for the conditions of all 297 test digits, with weights w of guidance. For `upscale` it prints the squared error
of the reduced samples against what was asked for, in [−1, 1] units, beside the same with the conditions shuffled; for
`moments` the correlation of each number of the samples' moments with the asked one. Standard errors are over digits.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import jaxdiff as jd
from jaxdiff import data
from jaxdiff.experiment import plots

N, SHOWN = 297, 8
WEIGHTS = (0.0, 1.0)


def measured(samples: np.ndarray, name: str) -> np.ndarray:
    """Return the condition of each sample as the data set computes it."""
    (found,) = data.derive(data.from_object("samples", samples), name).take(np.arange(len(samples))).cond.values()
    return found


def upscale(workdir: str, pictures: Path | None) -> None:
    run = jd.load(workdir)
    cond = run.test_conditions(N)
    asked = cond["image"]
    for w in WEIGHTS:
        samples = run.sample(jax.random.key(0), n=N, cond=cond, guidance=w, batch=N)
        found = measured(samples, "reduced:factor=2")
        each = ((found - asked) ** 2).mean((1, 2, 3))
        shuffled = ((found - np.roll(asked, 1, axis=0)) ** 2).mean((1, 2, 3))
        error = each.std() / np.sqrt(N)
        print(
            f"upscale  w = {w:g}: squared error {each.mean():.5f} ± {error:.5f}, of another digit {shuffled.mean():.3f}"
        )
        if pictures and w == 0:
            large = np.repeat(np.repeat(asked, 2, axis=1), 2, axis=2)
            rows = [large[:SHOWN], samples[:SHOWN], run.test_examples(SHOWN)]
            several = [run.sample(jax.random.key(i), n=SHOWN, cond={"image": asked[:SHOWN]}) for i in (1, 2)]
            plots.save(
                pictures / "upscale.png", plots.draw(np.concatenate([*rows[:2], *several, rows[2]]), columns=SHOWN)
            )


def moments(workdir: str, pictures: Path | None) -> None:
    run = jd.load(workdir)
    asked = run.test_conditions(N)["vector"]
    for w in WEIGHTS:
        samples = run.sample(jax.random.key(0), n=N, cond={"vector": asked}, guidance=w, batch=N)
        found = measured(samples, "moments")
        each = [np.corrcoef(found[:, k], asked[:, k])[0, 1] for k in range(3)]
        names = ("ink", "center down", "center right")
        listed = ", ".join(
            f"{name} {r:.3f} ± {(1 - r**2) / np.sqrt(N):.3f}" for name, r in zip(names, each, strict=True)
        )
        print(f"moments  w = {w:g}: correlation of {listed}")
    if pictures:
        steps = np.linspace(-1.5, 1.5, SHOWN)
        rows = [np.where(np.arange(3) == k, steps[:, None], 0.0) for k in range(3)]
        vector = np.concatenate(rows).astype(np.float32)
        samples = run.sample(jax.random.key(3), n=len(vector), cond={"vector": vector}, guidance=1.0)
        plots.save(pictures / "moments.png", plots.draw(samples, columns=SHOWN))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well samples obey their conditions.")
    parser.add_argument("--upscale", help="a run of configs/digits.py:upscale")
    parser.add_argument("--moments", help="a run of configs/digits.py:moments")
    parser.add_argument("--pictures", type=Path, help="a folder to write pictures to")
    arguments = parser.parse_args()
    if arguments.upscale:
        upscale(arguments.upscale, arguments.pictures)
    if arguments.moments:
        moments(arguments.moments, arguments.pictures)


if __name__ == "__main__":
    main()
