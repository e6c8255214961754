"""Measure guidance on a trained conditional run: accuracy of the requested label and Fréchet distance against w.

    python benchmarks/mnist_guidance.py --workdir=runs/conditional --data_dir=DIR [--classifier=runs/classifier]

writes docs/guidance_mnist.md, docs/pictures/guidance.png and, after every cell, docs/guidance_mnist.json. If it was
stopped, the same command resumes. Accuracy is that of a frozen classifier that guidance does not use. Every class is
requested equally often; all cells start from the same keys.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
from results import Results, identity, source, table_path, write_figure, write_text

import jaxdiff as jd
from jaxdiff import evaluation, xla

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
ANY = "no label"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the folder of a conditional run")
    parser.add_argument("--classifier", help="the folder of a classifier's run, to measure its guidance as well")
    parser.add_argument("--data_dir", help="the folder of MNIST's files; default: the run's")
    parser.add_argument("--n", type=int, default=1000, help="samples for each cell")
    parser.add_argument("--batch", type=int, default=100, help="samples at a time")
    parser.add_argument("--sampler", help="default: the run's")
    parser.add_argument("--steps", type=int, help="default: the run's")
    parser.add_argument(
        "--out", type=table_path, default=Path("docs/guidance_mnist.md"), help="the .json goes beside it"
    )
    args = parser.parse_args()
    xla.split_cpu(args.batch)
    run = jd.load(args.workdir)
    sampler, steps = args.sampler or run.config.sampling.sampler, args.steps or run.config.sampling.steps
    reference = evaluation.reference(run.config.data.name, dir=args.data_dir or run.config.data.dir)
    card = reference.classifier.card
    of = identity(run, card, args.n) | {"sampler": sampler, "steps": steps}
    ways = {"classifier-free": None}
    if args.classifier:
        ways["classifier"] = jd.load(args.classifier)
        of["noisy classifier"] = identity(ways["classifier"], card, args.n)["weights"]
    results = Results(args.out.with_suffix(".json"), of)
    requested = np.arange(args.n) % run.experiment.classes

    def measure(key: str, **options) -> None:
        if key in results.cells:
            return
        images = run.sample(
            jax.random.key(0), n=args.n, sampler=sampler, steps=steps, batch=args.batch, progress=True, **options
        )
        distance = reference.distance(images)
        cell = {field: getattr(distance, field) for field in ("value", "standard_error", "floor")}
        if "labels" in options:
            cell["accuracy"] = reference.classifier.accuracy(images, requested)
        print(f"{key}: {distance}, accuracy {cell.get('accuracy', float('nan')):.2%}", flush=True)
        results.add(key, cell)

    measure(ANY)
    for way, by in ways.items():
        for w in WEIGHTS:
            if not (by is not None and w == 0):
                measure(f"{way} {w:g}", labels=requested, guidance=w, classifier=by)
    write_text(args.out, page(results.cells, of, list(ways), card))
    picture = args.out.parent / "pictures" / "guidance.png"
    write_figure(picture, plot(results.cells, list(ways)), dpi=120)
    print(f"{args.out}, {picture}, {results.path}")


def page(cells: dict[str, dict], of: dict, ways: list[str], card: evaluation.Card) -> str:
    """Return the table as Markdown, with what a reader needs to know about its numbers."""
    before, after = source(of, "mnist_guidance.py", cells[ANY]["floor"], card)
    lines = ["| guidance | w | accuracy | Fréchet distance |", "| --- | ---: | ---: | ---: |"]
    for key, cell in cells.items():
        way, _, w = key.rpartition(" ") if key != ANY else ("none, no label", "", "")
        accuracy = f"{cell['accuracy']:.1%}" if "accuracy" in cell else ""
        lines.append(f"| {way} | {w} | {accuracy} | {cell['value']:.2f} ± {cell['standard_error']:.2f} |")
    paragraphs = [
        f"# Guidance on {of['data']}",
        f"{before} Accuracy is the share of samples to which that classifier, which guidance does not use, gives the "
        f"requested label. Sampler `{of['sampler']}`, {of['steps']} steps.",
        "\n".join(lines),
        "![Accuracy and Fréchet distance against w](pictures/guidance.png)",
        after,
    ]
    return "\n\n".join(paragraphs) + "\n"


def plot(cells: dict[str, dict], ways: list[str]) -> matplotlib.figure.Figure:
    """Plot accuracy and distance against w."""
    figure = matplotlib.figure.Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way in ways:
        points = [(w, cells[key]) for w in WEIGHTS if (key := f"{way} {w:g}") in cells]
        w = [point[0] for point in points]
        left.plot(w, [cell["accuracy"] for _, cell in points], marker="o", label=way)
        right.errorbar(
            w,
            [c["value"] for _, c in points],
            [c["standard_error"] for _, c in points],
            marker="o",
            label=way,
            capsize=3,
        )
    right.axhline(cells[ANY]["value"], color="grey", linestyle="--", label=ANY)
    right.axhline(cells[ANY]["floor"], color="grey", linestyle=":", label="floor")
    left.set(xlabel="w", ylabel="accuracy of the requested label")
    right.set(xlabel="w", ylabel="Fréchet distance", ylim=(0, None))
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
