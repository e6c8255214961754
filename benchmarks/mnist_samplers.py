"""Compare samplers on a trained run: the Fréchet distance against network evaluations, and bits/dim.

    python benchmarks/mnist_samplers.py --workdir=runs/mnist --data_dir=DIR

writes docs/mnist_samplers.md and, after every cell, docs/mnist_samplers.json. If it was stopped, the same command
resumes. A cell has as many steps as its evaluations allow. The evaluations are counted: Heun's method calls the network
twice a step, but once in the last. All cells start from the same keys.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from results import Results, identity, source, table_path, write_text

import jaxdiff as jd
from jaxdiff import data, evaluation, samplers, xla

BUDGETS = (5, 10, 20, 50)
MANY = 1000
WAYS = {"elbo": "ELBO", "ode": "ODE"}
# Sampler, timesteps, network calls a step (one in the last), and whether to take MANY evaluations, too. The cosine
# schedule of configs/mnist.py already spreads its log-SNR over t: timesteps uniform in λ, or those of Karras in σ/α,
# spend most of few steps at the two ends, where λ goes to ±20.
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
    parser.add_argument("--data_dir", help="the folder of MNIST's files; default: the run's")
    parser.add_argument("--n", type=int, default=1000, help="samples for each cell")
    parser.add_argument("--batch", type=int, default=100, help="samples at a time")
    parser.add_argument("--bits", type=int, default=16, help="number of test images for bits/dim; 0 for none")
    parser.add_argument("--budgets", type=int, nargs="+", default=(*BUDGETS, MANY), help="network evaluations")
    parser.add_argument(
        "--out", type=table_path, default=Path("docs/mnist_samplers.md"), help="the .json goes beside it"
    )
    args = parser.parse_args()
    xla.split_cpu(args.batch)
    run = jd.load(args.workdir)
    dataset = {"name": run.config.data.name, "dir": args.data_dir or run.config.data.dir}
    reference = evaluation.reference(**dataset)
    card = reference.classifier.card
    results = Results(args.out.with_suffix(".json"), identity(run, card, args.n))
    for name, timesteps, calls, many in ROWS:
        for budget in args.budgets:
            key = f"{name} {timesteps} {budget}"
            steps = (budget - 1) // calls + 1
            if key in results.cells or (budget >= MANY and not many):
                continue
            options = {"sampler": name, "steps": steps, "timesteps": timesteps, "batch": args.batch}
            images = run.sample(jax.random.key(0), n=args.n, progress=True, **options)
            taken = evaluations(run.process, samplers.make(name), steps, timesteps)
            assert taken <= budget, f"{name} took {taken} evaluations in {steps} steps: correct ROWS"
            distance = reference.distance(images)
            print(f"{name}, timesteps {timesteps}, {taken} evaluations: {distance}", flush=True)
            found = {field: getattr(distance, field) for field in ("value", "standard_error", "floor")}
            results.add(key, {"steps": steps, "evaluations": taken, **found})
    if args.bits and (key := f"bits {args.bits}") not in results.cells:
        test = data.load(**dataset, split="test")
        chosen = np.random.default_rng(1).choice(len(test.x), args.bits, replace=False)
        bits = run.bits_per_dim(data.normalize(test.x[chosen], test.levels))
        print(", ".join(f"{name} {mean:.3f} ± {error:.3f} bits/dim" for name, (mean, error) in bits.items()))
        results.add(key, bits)
    write_text(args.out, page(results.cells, results.of, columns=args.budgets, card=card))
    print(f"{args.out}, {results.path}")


def evaluations(process: jd.Process, sampler: samplers.Sampler, steps: int, timesteps: str) -> int:
    """Count how often a sampler calls the network for one sample."""
    called = []

    def predict(x_t, t, cond=None):
        jax.debug.callback(lambda: called.append(None))
        return jd.Prediction(x0=jnp.zeros_like(x_t), noise=x_t)

    denoiser = jd.from_function(predict, process)
    x0 = jd.sample(jax.random.key(0), denoiser, sampler, shape=(), n=1, steps=steps, timesteps=timesteps)
    x0.block_until_ready()
    jax.effects_barrier()
    return len(called)


def page(cells: dict[str, dict], of: dict, *, columns: Sequence[int], card: evaluation.Card) -> str:
    """Return the table as Markdown, with what a reader needs to know about its numbers."""
    lines = ["| sampler | timesteps | " + " | ".join(f"{budget} evaluations" for budget in columns) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(columns))
    for name, timesteps, *_ in ROWS:
        row = []
        for budget in columns:
            cell = cells.get(f"{name} {timesteps} {budget}")
            taken = "" if cell is None or cell["evaluations"] == budget else f" ({cell['evaluations']})"
            row.append("" if cell is None else f"{cell['value']:.2f} ± {cell['standard_error']:.2f}{taken}")
        lines.append(f"| `{name}` | {timesteps} | " + " | ".join(row) + " |")
    floor = next(cell["floor"] for cell in cells.values() if "floor" in cell)
    before, after = source(of, "mnist_samplers.py", floor, card)
    paragraphs = [
        f"# Samplers on {of['data']}",
        f"{before} The number of network evaluations is in brackets if it is not that of the column.",
        "\n".join(lines),
    ]
    if found := goal(cells):
        paragraphs.append(found)
    for key, bits in cells.items():
        if key.startswith("bits "):
            found = ", ".join(f"{mean:.3f} ± {error:.3f} by the {WAYS[way]}" for way, (mean, error) in bits.items())
            paragraphs.append(f"Bits per dimension of {key.removeprefix('bits ')} images of the test split: {found}.")
    paragraphs.append(after)
    return "\n\n".join(paragraphs) + "\n"


def goal(cells: dict[str, dict]) -> str | None:
    """Compare the best sampler with 10 evaluations with 1000 ancestral steps."""
    ancestral = cells.get("ddpm uniform 1000")
    ten = {key: cell for key, cell in cells.items() if key.endswith(" 10") and not key.startswith("bits")}
    if ancestral is None or not ten:
        return None
    best = min(ten, key=lambda key: ten[key]["value"])
    name, timesteps, _ = best.split(" ")
    ratio = ten[best]["value"] / ancestral["value"]
    return (
        f"The best with at most 10 evaluations, `{name}` with timesteps {timesteps}, is at {ratio:.2f} times the "
        "distance of 1000 ancestral steps."
    )


if __name__ == "__main__":
    main()
