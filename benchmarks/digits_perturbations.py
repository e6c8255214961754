"""Compare every perturbed config of configs/digits.py with the plain one, by the Fréchet distance of its samples.

    python benchmarks/digits_perturbations.py --runs=runs/perturbed

trains the runs that are not finished in the folders runs/perturbed/gaussian, runs/perturbed/laplace …, and writes
docs/digits_perturbations.md, docs/pictures/digits_perturbations.png and, after every row,
docs/digits_perturbations.json. If it was stopped, the same command resumes. All runs see the same batches for the same
number of steps, and are sampled with the same keys and the same number of network evaluations.

Each network is compared with the exact denoiser of the train split under the same process, with the same sampler. The
distance of the exact denoiser is due to the process, the prior and the steps; any further distance is due to the
network.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
from results import Results, given_path, identity, source, table_path, write_figure, write_text

import jaxdiff as jd
from jaxdiff import data, evaluation, noise, xla
from jaxdiff.samplers import Sampling, sample_in_batches

PLAIN = "gaussian"
VARIANTS = ("laplace", "uniform", "bernoulli", "rotate", "mask", "blur", "pixelate", "overlap")
SHOWN = 12  # samples in the picture
LEVELS = "0123456789abcdefg"  # one character for each of the 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=given_path, required=True, help="the folder that holds the runs")
    parser.add_argument("--train_steps", type=int, help="default: the configs'")
    parser.add_argument("--n", type=int, default=297, help="samples of each run; the test split has 297 images")
    parser.add_argument("--batch", type=int, default=100, help="samples at a time")
    parser.add_argument("--steps", type=int, default=50, help="network evaluations a sample")
    parser.add_argument(
        "--out", type=table_path, default=Path("docs/digits_perturbations.md"), help="the .json goes beside it"
    )
    args = parser.parse_args()
    for name in (PLAIN, *VARIANTS):
        train(args.runs / name, name, args.train_steps)
    xla.split_cpu(args.batch)
    runs = {name: jd.load(args.runs / name) for name in (PLAIN, *VARIANTS)}
    reference = evaluation.reference("digits")
    card = reference.classifier.card
    each = {name: identity(run, card, args.n) for name, run in runs.items()}
    if len(steps := {of["step"] for of in each.values()}) > 1:
        raise SystemExit(f"--runs={args.runs} holds runs of {sorted(steps)} steps; train all for the same number")
    of = each[PLAIN] | {"weights": {name: one["weights"] for name, one in each.items()}, "steps": args.steps}
    results = Results(args.out.with_suffix(".json"), of)
    for name, run in runs.items():
        if name in results.cells:
            continue
        images = run.sample(jax.random.key(0), n=args.n, steps=args.steps, batch=args.batch, progress=True)
        images = images.clip(-1, 1)  # the blur rounds, even at t = 0
        distance = reference.distance(images)
        cell = {field: getattr(distance, field) for field in ("value", "standard_error", "floor")}
        cell["exact"] = exact(run, reference, n=args.n, steps=args.steps, batch=args.batch)
        levels = np.round((images[:SHOWN] + 1) * (len(LEVELS) - 1) / 2).astype(int)
        cell |= describe(run) | {"samples": ["".join(LEVELS[k] for k in image.ravel()) for image in levels]}
        print(f"{name}: {distance}", flush=True)
        results.add(name, cell)
    write_text(args.out, page(results.cells, of, card))
    picture = args.out.parent / "pictures" / "digits_perturbations.png"
    write_figure(picture, plot(results.cells), dpi=80)
    print(f"{args.out}, {picture}, {results.path}")


def train(workdir: Path, name: str, steps: int | None) -> None:
    """Run `train.py` on this variant; it resumes an unfinished run and leaves a finished one."""
    variant = "" if name == PLAIN else f":{name}"
    command = [sys.executable, "train.py", f"--config=configs/digits.py{variant}", f"--workdir={workdir}"]
    subprocess.run(command + ([f"--config.train.steps={steps}"] if steps else []), check=True)


def exact(run: jd.Run, reference: evaluation.Reference, *, n: int, steps: int, batch: int) -> float | None:
    """Return the distance for the exact denoiser of the train split; None for discrete noise, which has no density."""
    process = run.process
    if isinstance(process.noise, noise.Poisson | noise.Bernoulli):
        return None
    dataset = data.load("digits")
    denoiser = jd.analytic.empirical(data.normalize(dataset.x, dataset.levels), process)
    sampling = Sampling(sampler=run.config.sampling.sampler, steps=steps, batch=batch)
    images = sample_in_batches(jax.random.key(0), denoiser, sampling, shape=run.experiment.shape, n=n)
    return reference.distance(images.clip(-1, 1)).value


def describe(run: jd.Run) -> dict:
    """Return the settings in which the runs differ."""
    config, process = run.config, run.config.process
    parts = [*process.get("transform", ()), *([process["noise"]] if process.get("noise", "normal") != "normal" else [])]
    return {
        "process": ", ".join(f"`{part}`" for part in parts) or "plain",
        "conditioned": bool(process.get("condition_on_transform")),
        "schedule": config.schedule["name"],
        "predicts": config.predicts,
        "sampler": config.sampling.sampler,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
    }


def verdict(cell: dict, plain: dict) -> str:
    """Compare a row with the Gaussian one: a difference counts if it is at least two standard errors."""
    more = cell["value"] - plain["value"]
    error = math.hypot(cell["standard_error"], plain["standard_error"])
    if abs(more) < 2 * error:
        return "no difference seen"
    return f"{'worse' if more > 0 else 'better'}, by {abs(more):.2f} ± {error:.2f}"


def page(cells: dict[str, dict], of: dict, card: evaluation.Card) -> str:
    """Return the table as Markdown, with what a reader needs to know about its numbers."""
    plain = cells[PLAIN]
    before, after = source(of | {"weights": "as in the .json"}, "digits_perturbations.py", plain["floor"], card)
    lines = [
        "| config | transform or noise | schedule | predicts | sampler | parameters | Fréchet distance "
        "| against Gaussian | exact denoiser |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for name, cell in cells.items():
        said = "" if name == PLAIN else verdict(cell, plain)
        lines.append(
            f"| `{name}` | {cell['process']}{', conditioned' if cell['conditioned'] else ''} | {cell['schedule']} "
            f"| {cell['predicts']} | `{cell['sampler']}` | {cell['parameters']:,} "
            f"| {cell['value']:.2f} ± {cell['standard_error']:.2f} | {said} "
            f"| {'' if cell['exact'] is None else format(cell['exact'], '.2f')} |"
        )
    said = {name: verdict(cell, plain) for name, cell in cells.items() if name != PLAIN}
    least = 2 * math.hypot(plain["standard_error"], np.median([cell["standard_error"] for cell in cells.values()]))
    worse, better = ([f"`{name}`" for name in said if said[name].startswith(w)] for w in ("worse", "better"))
    paragraphs = [
        "# Digits with other transforms and noise",
        "Each config of `configs/digits.py` with a transform or other noise, compared with the plain one: the same "
        f"network, {of['step']} training steps on the same batches, {of['steps']} network evaluations a sample. "
        f"{before} Other people wrote the digits' test split, so its images are further from the train split than good "
        "samples are.",
        "\n".join(lines),
        f"Worse than Gaussian diffusion: {', '.join(worse) or 'none'}. Better: {', '.join(better) or 'none'}. A "
        "difference counts if it is at least two standard errors, here about "
        f"{least:.0f}. The two distances are treated as independent, although both are to the same train split. Runs "
        "of the same config differ as well, and each config was run once. *conditioned*: the network is conditioned on "
        "the parameters of its sample. *exact denoiser*: the distance with the exact denoiser of the train split in "
        "place of the network. It reproduces images of the train split as far as the process and the sampler allow; "
        "for discrete noise there is none.",
        f"![The first {SHOWN} samples of every config](pictures/digits_perturbations.png)",
        after,
    ]
    return "\n\n".join(paragraphs) + "\n"


def plot(cells: dict[str, dict]) -> matplotlib.figure.Figure:
    """Draw the first samples, a row for each config."""
    figure = matplotlib.figure.Figure(figsize=(0.75 * SHOWN + 1.2, 0.75 * len(cells)))
    axes = figure.subplots(len(cells), SHOWN, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    figure.subplots_adjust(left=0.12, right=0.99, top=0.99, bottom=0.01)
    for row, (name, cell) in zip(axes, cells.items(), strict=True):
        for axis, text in zip(row, cell["samples"], strict=True):
            pixels = np.array([LEVELS.index(character) for character in text]).reshape(8, 8)
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=len(LEVELS) - 1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{name} ", rotation=0, ha="right", va="center")
    return figure


if __name__ == "__main__":
    main()
