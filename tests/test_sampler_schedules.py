"""Every sampler under every schedule samples a known distribution, or refuses the timesteps."""

import itertools
import re

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.typing import InputError

# The mean that the prior neglects, 0.7 α_1/σ_1 of it, stays in samples of a schedule with a visible α_1.
NEGLECTED = {"learned": 0.06, "ve": 0.02, "edm": 0.02}
SAMPLERS = [name for name in jd.samplers.SAMPLERS if not name.startswith(("dpmpp", "residual"))]
PAIRS = list(itertools.product(SAMPLERS, jd.schedules.SCHEDULES))
# Every other sampler once, under one schedule after another; all pairs are thorough.
QUICK = set(zip(SAMPLERS[::2], itertools.cycle(jd.schedules.SCHEDULES), strict=False))
PARAMS = [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.thorough) for pair in PAIRS]


@pytest.mark.parametrize(("sampler", "schedule"), PARAMS)
def test_a_sampler_is_right_under_a_schedule_or_refuses_it(sampler: str, schedule: str) -> None:
    """For N(0.7, 0.5²): the mean to 4 standard errors, the deviation to 12 % (its error is 1.6 % or 3.2 %)."""
    options = {"hidden": 16} if schedule == "learned" else {}  # the default has an inverse that is slow to compute
    exact = jd.analytic.gaussian([0.7], 0.25, jd.schedules.SCHEDULES[schedule](**options))
    n = 500 if sampler == "langevin" else 2000  # with hundreds of corrections a step
    options = {"n": n, "shape": (1,), "steps": 1 if sampler == "adaptive" else 100}
    if sampler == "langevin":
        with pytest.raises(InputError, match=r"log-SNR .* rises") as refusal:
            jd.sample(jax.random.key(0), exact, sampler, **options)
        needed = re.search(r"use (\d+) corrections", str(refusal.value))
        sampler = f"langevin:corrections={needed[1]}"
    x = np.asarray(jd.sample(jax.random.key(0), exact, sampler, **options))
    assert abs(x.mean() - 0.7) < 2 / n**0.5 + NEGLECTED.get(schedule, 0)
    low, high = (0.3, 0.4) if sampler == "renoise" else (0.44, 0.56)  # renoise is too narrow by construction
    assert low < x.std() < high


@pytest.mark.thorough
def test_langevin_takes_timesteps_that_its_corrections_can_follow() -> None:
    """With 2,000 steps of equal log-SNR the defaults are accepted, and right; the check holds in batches, too."""
    exact = jd.analytic.gaussian([0.7], 0.25, jd.schedules.VE())
    options = {"n": 2000, "shape": (1,), "steps": 2000, "timesteps": "log_snr"}
    x = np.asarray(jd.sample(jax.random.key(0), exact, "langevin", **options))
    assert 0.44 < x.std() < 0.56
    few = jd.samplers.Sampling(sampler="langevin", steps=10)
    with pytest.raises(InputError, match="sampler = langevin"):
        jd.samplers.sample_in_batches(jax.random.key(0), exact, few, shape=(1,), n=2)
