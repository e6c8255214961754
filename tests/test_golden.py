"""The same network outputs give the trajectories of the PyTorch schedulers of diffusers, step by step.

tests/golden/schedulers.npz has them, with the versions that made them; tests/golden/schedulers.py writes it.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import samplers
from jaxdiff.typing import pytree

GOLDEN = Path(__file__).parent / "golden" / "schedulers.npz"


@pytree(kw_only=False, eq=False)
class GivenNoise(jd.Gaussian):
    """A process whose noise is given."""

    z: Any = None

    def sample_noise(self, key: jax.Array, shape: tuple[int, ...], t: Any = 1.0) -> jax.Array:
        return self.z


def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The formula of tests/golden/schedulers.py."""
    weight, bias = params
    angle = 0.5 * np.pi * t[:, None]
    hidden = jnp.tanh(x @ weight + bias[None] * jnp.sin(6 * angle))
    return jnp.sin(angle) * x + jnp.cos(angle) * hidden


def trajectory(sampler: samplers.Sampler, golden: Any, steps: np.ndarray) -> np.ndarray:
    """x_t of both samples at all the times, from the x_T and with the z of the golden run."""
    process = jd.Gaussian(jd.schedules.Linear(num_timesteps=1000))
    denoiser = jd.denoiser(network, (golden["weight"], golden["bias"]), process, predicts="eps")
    times, z = jnp.asarray(steps / 1000), jnp.asarray(golden["noise"][: len(steps) - 1])

    @functools.partial(jax.vmap, in_axes=(0, 1), out_axes=1)
    def walk(x: jax.Array, z: jax.Array) -> jax.Array:
        def body(carry: Any, inputs: Any) -> Any:
            t, s, z = inputs
            given = denoiser.with_process(GivenNoise(process.schedule, z))
            carry = sampler.step(jax.random.key(0), *carry, t=t, s=s, denoiser=given)
            return carry, carry[0]

        return jax.lax.scan(body, (x, sampler.init(x)), (times[:-1], times[1:], z))[1]

    return np.asarray(jax.jit(walk)(jnp.asarray(golden["x"]), z))


# Every step is compared. The last, to t = 0, is of first order and adds no noise in the schedulers as in ours; DDPM's
# large variance is left out there only by a step from k = 1, as this one is. Heun averages the slopes n̂ in σ/α, and
# UniPC's x_t are its predictions. The solvers round their σ/α to float32, DDPM and DDIM round nothing.
@pytest.mark.parametrize(
    ("name", "sampler", "times", "atol"),
    [
        ("ddpm_small", samplers.DDPM("small"), "uneven", 1e-12),
        ("ddpm_large", samplers.DDPM("large"), "uneven", 1e-12),
        ("ddim_0", samplers.DDIM(), "even", 1e-12),
        ("ddim_half", samplers.DDIM(eta=0.5), "even", 1e-12),
        ("euler", samplers.Euler(), "uneven", 5e-6),
        ("heun", samplers.Heun("noise"), "uneven", 5e-6),
        ("dpmpp_2m", samplers.DPMSolver(), "uneven", 5e-6),
        ("unipc", samplers.UniPC(), "even", 5e-6),
    ],
)
def test_a_trajectory_is_that_of_diffusers(name: str, sampler: Any, times: str, atol: float, x64: None) -> None:
    with np.load(GOLDEN) as golden:
        found, expected = trajectory(sampler, golden, golden[times]), golden[name]
        np.testing.assert_array_equal(expected[0], golden["x"])
    np.testing.assert_allclose(found, expected[1:], rtol=0, atol=atol)
