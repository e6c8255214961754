"""The samplers compared on a trained run: Fréchet distance against network evaluations, and bits/dim.

    python benchmarks/mnist_samplers.py --workdir=runs/mnist --data_dir=DIR

writes docs/mnist_samplers.md and, after every cell, docs/mnist_samplers.json: the same command again goes on where it
was stopped. A cell has as many steps as its evaluations allow, and the evaluations that it took are counted, not
assumed: Heun's method calls the network twice a step, and once in the last. All cells start from the same keys.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from results import Results, identity, source

import jaxdiff as jd
from jaxdiff import data, evaluation, samplers, xla
from jaxdiff.typing import Prediction

BUDGETS = (5, 10, 20, 50)
MANY = 1000
WAYS = {"bound": "bound", "ode": "ODE"}
# Sampler, grid, network calls a step (one in the last), and whether MANY evaluations are worth their time. The cosine
# schedule of configs/mnist.py spreads its log-SNR over t by itself: equal spacing of λ, or Karras's of σ/α, spends most
# of few steps at its two ends, where λ runs to ±20.
ROWS = (
    ("ddpm", "uniform", 1, True),
    ("ddim", "uniform", 1, False),
    ("heun", "uniform", 2, False),
    ("dpm++2m", "uniform", 1, False),
    ("dpm++2m", "log_snr", 1, False),
    ("dpm++3m", "uniform", 1, False),
    ("unipc", "uniform", 1, False),
    ("dpm++2m_sde", "uniform", 1, False),
    ("edm", "uniform", 2, False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the folder of the run")
    parser.add_argument("--data_dir", help="the folder of MNIST's files; the run's if left out")
    parser.add_argument("--n", type=int, default=1000, help="samples a cell")
    parser.add_argument("--batch", type=int, default=100, help="samples at a time")
    parser.add_argument("--bits", type=int, default=16, help="test images whose bits/dim are measured; 0 for none")
    parser.add_argument("--budgets", type=int, nargs="+", default=(*BUDGETS, MANY), help="network evaluations")
    parser.add_argument("--out", type=Path, default=Path("docs/mnist_samplers.md"), help="the .json goes beside it")
    args = parser.parse_args()
    xla.split_cpu(args.batch)
    run = jd.load(args.workdir)
    dataset = {"name": run.config.data.name, "dir": args.data_dir or run.config.data.dir}
    reference = evaluation.reference(**dataset)
    card = reference.classifier.card
    results = Results(args.out.with_suffix(".json"), identity(run, card, args.n))
    for name, grid, calls, many in ROWS:
        for budget in args.budgets:
            key = f"{name} {grid} {budget}"
            steps = (budget - 1) // calls + 1
            if key in results.cells or (budget >= MANY and not many):
                continue
            images = run.sample(
                jax.random.key(0), n=args.n, sampler=name, steps=steps, grid=grid, batch=args.batch, progress=True
            )
            taken = evaluations(run.process, samplers.make(name), steps, grid)
            assert taken <= budget, f"{name} took {taken} evaluations in {steps} steps: correct ROWS"
            distance = reference.distance(images)
            print(f"{name}, grid {grid}, {taken} evaluations: {distance}", flush=True)
            found = {field: getattr(distance, field) for field in ("value", "standard_error", "floor")}
            results.add(key, {"steps": steps, "evaluations": taken, **found})
    if args.bits and (key := f"bits {args.bits}") not in results.cells:
        test = data.load(**dataset, split="test")
        chosen = np.random.default_rng(1).choice(len(test.x), args.bits, replace=False)
        bits = run.bits_per_dim(data.normalize(test.x[chosen], test.levels))
        print(", ".join(f"{name} {mean:.3f} ± {error:.3f} bits/dim" for name, (mean, error) in bits.items()))
        results.add(key, bits)
    args.out.write_text(page(results.cells, results.of, columns=args.budgets, card=card))
    print(f"{args.out}, {results.path}")


def evaluations(process: jd.Process, sampler: samplers.Sampler, steps: int, grid: str) -> int:
    """How often a sampler calls the network for one sample: counted."""
    called = []

    def denoise(x_t, t, cond=None):
        jax.debug.callback(lambda: called.append(None))
        return Prediction(x0=jnp.zeros_like(x_t), noise=x_t)

    jd.sample(jax.random.key(0), denoise, process, sampler, shape=(), n=1, steps=steps, grid=grid).block_until_ready()
    jax.effects_barrier()
    return len(called)


def page(cells: dict[str, dict], of: dict, *, columns: Sequence[int], card: evaluation.Card) -> str:
    """The table as Markdown, with all that is needed to read a figure."""
    lines = ["| sampler | grid | " + " | ".join(f"{budget} evaluations" for budget in columns) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(columns))
    for name, grid, *_ in ROWS:
        row = []
        for budget in columns:
            cell = cells.get(f"{name} {grid} {budget}")
            taken = "" if cell is None or cell["evaluations"] == budget else f" ({cell['evaluations']})"
            row.append("" if cell is None else f"{cell['value']:.2f} ± {cell['standard_error']:.2f}{taken}")
        lines.append(f"| `{name}` | {grid} | " + " | ".join(row) + " |")
    floor = next(cell["floor"] for cell in cells.values() if "floor" in cell)
    before, after = source(of, "mnist_samplers.py", floor, card)
    paragraphs = [
        f"# Samplers on {of['data']}",
        f"{before} Where the network evaluations taken are not the column's, they are in brackets.",
        "\n".join(lines),
    ]
    if found := goal(cells):
        paragraphs.append(found)
    for key, bits in cells.items():
        if key.startswith("bits "):
            costs = ", ".join(f"{mean:.3f} ± {error:.3f} by the {WAYS[way]}" for way, (mean, error) in bits.items())
            paragraphs.append(f"Bits a dimension of {key.removeprefix('bits ')} images of the test split: {costs}.")
    paragraphs.append(after)
    return "\n\n".join(paragraphs) + "\n"


def goal(cells: dict[str, dict]) -> str | None:
    """The best of 10 evaluations beside 1000 ancestral steps."""
    ancestral = cells.get("ddpm uniform 1000")
    ten = {key: cell for key, cell in cells.items() if key.endswith(" 10") and not key.startswith("bits")}
    if ancestral is None or not ten:
        return None
    best = min(ten, key=lambda key: ten[key]["value"])
    name, grid, _ = best.split(" ")
    ratio = ten[best]["value"] / ancestral["value"]
    return (
        f"The best at 10 evaluations or fewer, `{name}` on the grid {grid}, is at {ratio:.2f} times the distance of "
        "1000 ancestral steps."
    )


if __name__ == "__main__":
    main()
