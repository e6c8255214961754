"""What is imported and compiled, and when."""

import logging
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny

import jaxdiff as jd
from jaxdiff.models import MLP
from jaxdiff.training import loop


def test_the_import_leaves_out_what_few_programs_need():
    slow = "flax", "orbax", "optax", "diffrax", "matplotlib", "sklearn", "scipy.stats", "tensorboardX", "ml_collections"
    program = f"import sys, jaxdiff; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", jd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(jd, name) is not None
    assert name in dir(jd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = jd.nothing


def network(model: nn.Module) -> jd.Denoiser:
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    return jd.denoiser(model.apply, params, jd.Gaussian(jd.schedules.Cosine()))


def test_equal_networks_share_a_program():
    traced = []

    @jax.jit
    def x0(denoiser):
        traced.append(denoiser)
        return denoiser(jnp.ones(2), 0.5).x0

    for width in (8, 8, 16):
        x0(network(MLP(width=width, depth=1, time_dim=8)))
    assert len(traced) == 2


@pytest.mark.thorough
def test_a_second_run_of_the_same_architecture_compiles_nothing(tmp_path, caplog):
    folders = [tmp_path / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        loop.train(tiny.config({"train.steps": 2, "train.seed": seed}), folder)
    first = jd.load(folders[0]).sample(jax.random.key(0), n=4)
    with caplog.at_level(logging.DEBUG), jax.log_compiles():
        second = jd.load(folders[1]).sample(jax.random.key(0), n=4)
    assert (first != second).any()
    assert [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()] == []
