"""XLA on CPUs: one device per core, and only options that this version of XLA has."""

import os
import subprocess
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxdiff import xla


@pytest.fixture
def updates(monkeypatch) -> dict[str, int]:
    """The options that `split_cpu` sets on a machine with 4 cores and no settings of the user."""
    made: dict[str, int] = {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=true")
    monkeypatch.setattr(xla, "cores", lambda: 4)
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


@pytest.mark.parametrize(
    ("batch", "multiple", "devices"),
    [(64, 1, 4), (6, 1, 3), (7, 1, 1), (3, 1, 3), (64, 2, 4), (6, 2, 2), (9, 2, None), (64, 8, None)],
)
def test_as_many_devices_as_cores_that_divide_the_batch(updates, batch, multiple, devices):
    xla.split_cpu(batch, multiple)
    assert updates.get("jax_num_cpu_devices") == devices


def test_a_number_of_devices_that_the_user_set_is_kept(updates, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    xla.split_cpu(64)
    assert not updates


def test_the_devices_are_made():
    code = "import jax; from jaxdiff import xla; xla.cores = lambda: 4; xla.split_cpu(6); print(jax.device_count())"
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_options_that_this_xla_lacks_are_left_out(monkeypatch):
    monkeypatch.setattr(xla, "_OPTIONS", {"xla_no_such_option": "1", "xla_cpu_multi_thread_eigen": True})
    assert xla.compiler_options.__wrapped__().get("xla_no_such_option") is None
    assert xla.compiler_options.__wrapped__()["xla_cpu_multi_thread_eigen"] is not None


@pytest.mark.usefixtures("eight_devices")
def test_operations_have_one_thread_only_if_every_core_has_a_device(monkeypatch):
    for cores, single in ((8, True), (9, False), (1, False)):
        monkeypatch.setattr(xla, "cores", lambda cores=cores: cores)
        assert ("xla_cpu_multi_thread_eigen" in xla.compiler_options.__wrapped__()) == single


def test_no_options_off_the_cpu():
    mesh = Mock(spec=Mesh, devices=np.array([Mock(spec=jax.Device, platform="tpu")]))
    assert xla.compiler_options.__wrapped__(mesh=mesh) == {}


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ({"platform": "cpu"}, "float32"),
        ({"platform": "tpu"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float32"),
        ({"platform": "gpu", "compute_capability": "8.0"}, "bfloat16"),
    ],
)
def test_networks_compute_in_bfloat16_where_the_device_has_it(device, dtype):
    assert xla.compute_dtype(Mock(spec=["platform", *device], **device)) == dtype
