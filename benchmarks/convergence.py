"""Measure the error of every ODE sampler against network evaluations, on a mixture with its exact denoiser, in float64.

    python benchmarks/convergence.py

writes docs/pictures/convergence.png and prints the tables of docs/samplers.md. The error is the root mean square, over
the coordinates of 16 samples, of the distance from the exact solution of the probability-flow ODE from the same x_1.
Evaluations are counted as the compiled program makes them for a batch of these samples: an adaptive solver continues
until the last sample is finished.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from results import given_path, write_figure

from jaxdiff import Prediction, analytic, from_function, samplers, schedules, timesteps

SAMPLES = 16
END = 0.01
EVALUATIONS = (4, 8, 16, 32, 64, 128, 256)
STEPPED = {"ddim": 1, "midpoint": 2, "heun": 2, "heun:slope=noise": 2, "rk4": 4, "dpm++2m": 1, "dpm++3m": 1, "unipc": 1}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

Points = list[tuple[int, float]]  # evaluations and error
Times = Callable[[int], np.ndarray]  # by the number of steps


class Model:
    """A mixture of two normal distributions in the plane, with an exact denoiser that counts its calls."""

    def __init__(self, schedule: schedules.Schedule) -> None:
        means, variances = [[-1.0, 0.5], [1.0, -0.3]], [[0.1, 0.2], [0.15, 0.1]]
        self.exact = analytic.mixture([0.3, 0.7], means, variances, schedule=schedule)
        self.denoiser = from_function(self.predict, self.exact.process)
        keys = jax.random.split(jax.random.key(0), SAMPLES)
        self.start = jax.vmap(lambda key: self.exact.process.sample_prior(key, (2,)))(keys)
        self.calls = 0

    def count(self) -> None:
        self.calls += 1

    def predict(self, x_t: jax.Array, t: jax.Array, cond: None = None, /) -> Prediction:
        jax.debug.callback(self.count)  # once for the batch: vmap maps none of its arguments
        return self.exact(x_t, t)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def step(self, sampler: samplers.Sampler, x: jax.Array, state: Any, times: jax.Array) -> tuple[jax.Array, Any]:
        t, s = times

        def one(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
            return sampler.step(jax.random.key(0), x, state, t=t, s=s, denoiser=self.denoiser)

        return jax.vmap(one)(x, state)

    def solve(self, sampler: samplers.Sampler, times: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the number of network evaluations, and the samples."""
        self.calls = 0
        x, state = self.start, jax.vmap(sampler.init)(self.start)
        for pair in itertools.pairwise(times):
            x, state = self.step(sampler, x, state, np.array(pair))
        jax.block_until_ready(x)
        jax.effects_barrier()
        return self.calls, np.asarray(x)


def uniform_in_log_snr(schedule: schedules.Schedule, steps: int) -> np.ndarray:
    """Return times from 1 to `END`, uniform in λ."""
    times = np.array(schedule.time(jnp.linspace(*schedule.log_snr(jnp.array([1.0, END])), steps + 1)))
    times[0], times[-1] = 1.0, END
    return times


def measure(model: Model, times: Times) -> dict[str, Points]:
    """Return the evaluations and errors of each sampler, with at most as many evaluations as `EVALUATIONS`."""
    last = times(4)[-1]
    _, exact = model.solve(samplers.Adaptive(1e-13, 1e-13, method=diffrax.Dopri8()), np.array([1.0, last]))
    if last > 0:
        _, other = model.solve(samplers.RK4(), times(4096))
        print(f"the reference differs from RK4 with 4096 steps by {rms(other - exact):.1e}")

    def points(runs: list[tuple[samplers.Sampler, np.ndarray]]) -> Points:
        solved = [model.solve(sampler, times) for sampler, times in runs]
        return [(calls, rms(x - exact)) for calls, x in solved]

    found = {}
    for name, calls in STEPPED.items():  # the evaluations of a step
        # To t = 0 the last step takes one evaluation.
        steps = [n // calls if last > 0 else (n - 1) // calls + 1 for n in EVALUATIONS]
        found[name] = points([(samplers.make(name), times(n)) for n in steps])
    found["adaptive"] = points([(samplers.Adaptive(tol, tol), np.array([1.0, last])) for tol in TOLERANCES])
    return found


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt((difference**2).mean()))


def table(found: dict[str, Points]) -> None:
    columns = EVALUATIONS[:-1]
    print("| at most | " + " | ".join(map(str, columns)) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, points in found.items():
        best = [min((error for calls, error in points if calls <= n), default=None) for n in columns]
        print(f"| `{name}` | " + " | ".join("" if error is None else f"{error:.1e}" for error in best) + " |")
    needs = [f"{tol:.0e}: {calls}" for tol, (calls, _) in zip(TOLERANCES, found["adaptive"], strict=True)]
    print("\nevaluations of `adaptive`, by tolerance:", ", ".join(needs))


def main(path: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    schedule = schedules.VP()
    model = Model(schedule)
    panels: dict[str, Times] = {
        f"to t = {END}, timesteps uniform in λ": lambda n: uniform_in_log_snr(schedule, n),
        "to the data, --timesteps=log_snr": lambda n: timesteps.make("log_snr", n, schedule),
        "to the data, --timesteps=uniform": lambda n: timesteps.make("uniform", n, schedule),
    }
    figure = matplotlib.figure.Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for axis, (title, times) in zip(axes, panels.items(), strict=True):
        found = measure(model, times)
        print(f"\n{title}\n")
        table(found)
        for i, (name, points) in enumerate(found.items()):
            line = "--" if name == "adaptive" else "-"
            axis.loglog(*zip(*points, strict=True), line, marker="osDd^vPX*"[i], markersize=4, label=name)
        axis.set(title=title, xlabel="network evaluations")
        axis.set_xlim(EVALUATIONS[0] / 1.2, EVALUATIONS[-1] * 1.2)
        axis.set_xticks(EVALUATIONS, map(str, EVALUATIONS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("root mean square error of x")
    axes[0].legend()
    write_figure(path, figure, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plot and tabulate the convergence of the ODE samplers.")
    root = Path(__file__).parents[1]
    parser.add_argument("--out", type=given_path, default=root / "docs" / "pictures" / "convergence.png")
    main(parser.parse_args().out)
