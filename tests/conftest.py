"""Every test runs on 8 forced host devices, with implicit rank promotion and old-style keys refused.

The package's annotations are checked at every call: types by beartype, dtypes and shapes by jaxtyping. An int stands
for a float, as everywhere in Python.
"""

import os
from collections.abc import Callable, Iterator

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import beartype
import jax
import pytest
from beartype.roar import BeartypeDecorHintException
from jaxtyping import config, install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def checked(function: Callable) -> Callable:
    """A function that checks its annotations, or the function itself where beartype can't (`typing.Self`)."""
    try:
        return beartype.beartype(function, conf=beartype.BeartypeConf(is_pep484_tower=True))
    except BeartypeDecorHintException:
        return function


install_import_hook("jaxdiff", f"{__name__}.{checked.__name__}")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the checks of annotations off, where the package itself must refuse what breaks them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
