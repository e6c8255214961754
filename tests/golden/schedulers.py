"""Write the trajectories of diffusers' schedulers with which tests/test_golden.py compares jaxdiff's samplers.

    python3.11 -m venv .venv-golden && .venv-golden/bin/pip install torch==2.13.0 diffusers==0.42.1
    .venv-golden/bin/python tests/golden/schedulers.py --out=tests/golden/schedulers.npz

The schedulers are those of the package, with clipping off, on the linear betas of 1000 steps, asked only at their own
steps, between which they would interpolate in ways of their own. Only their table of ᾱ, a product in float32, is
replaced by that in float64. The network is a formula, which the test has too. Every x on the way is kept, as x_t:
Euler and Heun step in x_t/α_t. Needs torch and diffusers, which jaxdiff and its tests do not.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm

TRAINED = 1000
# Steps k of the schedule, t = k/1000, from which to step; the last step is to 0. The schedulers of DDIM and UniPC take
# no steps of one's own.
UNEVEN = [1000, 960, 880, 760, 600, 430, 270, 140, 60, 20, 1]
EVEN = list(range(1000, 0, -100))
CASES: Mapping[str, tuple[str, list[int], Mapping[str, Any]]] = {
    "ddpm_small": ("DDPM", UNEVEN, {"variance_type": "fixed_small", "clip_sample": False}),
    "ddpm_large": ("DDPM", UNEVEN, {"variance_type": "fixed_large", "clip_sample": False}),
    "ddim_0": ("DDIM", EVEN, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim_half": ("DDIM", EVEN, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "euler": ("EulerDiscrete", UNEVEN, {}),
    "heun": ("HeunDiscrete", UNEVEN, {}),
    "dpmpp_2m": ("DPMSolverMultistep", UNEVEN, {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
    "unipc": ("UniPCMultistep", EVEN, {"solver_type": "bh2", "timestep_spacing": "trailing"}),
}


def network(weight: np.ndarray, bias: np.ndarray, x: torch.Tensor, t: float) -> torch.Tensor:
    """ε of a batch at time t: no good model, but one whose x̂_0 stays small where α is."""
    angle = 0.5 * np.pi * t
    hidden = torch.tanh(x @ torch.from_numpy(weight) + torch.from_numpy(bias) * np.sin(6 * angle))
    return np.sin(angle) * x + np.cos(angle) * hidden


def visit(name: str, golden: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """x_t at each of the steps of a case, and at 0."""
    kind, steps, options = CASES[name]
    scheduler = getattr(diffusers, f"{kind}Scheduler")(
        num_train_timesteps=TRAINED, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options
    )
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TRAINED, dtype=torch.float64), 0)
    scheduler.alphas_cumprod = alpha_bar
    if steps is UNEVEN:
        scheduler.set_timesteps(timesteps=[k - 1 for k in steps])
    else:
        scheduler.set_timesteps(len(steps))
    evaluated = [int(timestep) + 1 for timestep in scheduler.timesteps]
    assert list(dict.fromkeys(evaluated)) == steps, evaluated

    over_alpha, twice = kind in ("EulerDiscrete", "HeunDiscrete"), kind == "HeunDiscrete"
    noise, arrivals = iter(torch.from_numpy(golden["noise"])), iter([*steps[1:], 0])
    x = torch.from_numpy(golden["x"])
    yield x.numpy()
    x = x / alpha_bar[steps[0] - 1].sqrt() if over_alpha else x
    for i, timestep in enumerate(scheduler.timesteps):
        x_in = scheduler.scale_model_input(x, timestep)
        eps = network(golden["weight"], golden["bias"], x_in, (int(timestep) + 1) / TRAINED)
        step = functools.partial(scheduler.step, eps, timestep, x)
        if name == "ddim_half":
            x = step(eta=0.5, variance_noise=next(noise)).prev_sample
        elif kind == "DDPM":
            with mock.patch.object(scheduling_ddpm, "randn_tensor", side_effect=noise):
                x = step().prev_sample
        else:
            x = step().prev_sample
        if not twice or i % 2 == 1 or i + 1 == len(evaluated):  # the last of Heun's steps is Euler's
            k = next(arrivals)
            yield (x * alpha_bar[k - 1].sqrt() if over_alpha and k > 0 else x).numpy()
    assert next(arrivals, None) is None


def main(path: str) -> None:
    random, shape = np.random.RandomState(0), (2, 3)
    golden = {
        "x": random.standard_normal(shape),
        "noise": random.standard_normal((len(UNEVEN), *shape)),
        "weight": random.standard_normal((shape[1], shape[1])),
        "bias": random.standard_normal(shape[1]),
        "uneven": np.array([*UNEVEN, 0]),
        "even": np.array([*EVEN, 0]),
    }
    golden |= {name: np.stack(list(visit(name, golden))) for name in CASES}
    versions = [f"{module.__name__} {module.__version__}" for module in (diffusers, torch, np)]
    np.savez_compressed(path, made_with=np.array(versions), **golden)
    for name in CASES:
        print(f"{name}: {golden[name].dtype}, |x| up to {np.abs(golden[name]).max():.3g}")
    print(f"{path}, by {', '.join(versions)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the golden trajectories of diffusers' schedulers.")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    main(parser.parse_args().out)
