"""XLA options for CPUs; on other devices nothing here has any effect.

Images/s of `configs/mnist.py` in training, measured on 2 cores of a Xeon with AVX-512 and JAX 0.10:

    the defaults of JAX                                                                         259
    convolutions and products by Eigen, sums by YNNPACK, and one device with one thread a core  360

A core that waits for its share of an operation sleeps, and waking it takes about 0.2 ms on a virtual machine: as long
as the operation. Cores that each have their own examples synchronize once per step.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
_ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(batch: int, multiple: int = 1) -> None:
    """Make each core a JAX device, or as many as divide `batch` and are a multiple of `multiple`.

    Call it before JAX initializes its devices. A number of devices that the user has set (`jax_num_cpu_devices`, or
    `--xla_force_host_platform_device_count` in XLA_FLAGS) is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] > 0 or "xla_force_host_platform_device_count" in flags:
        return
    fit = [n for n in range(1, cores() + 1) if batch % n == 0 and n % multiple == 0]
    if fit:
        jax.config.update("jax_num_cpu_devices", max(fit))


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """Return the options for `jax.jit(..., compiler_options=...)`, which accepts them in an outermost jit only."""
    if jax.default_backend() != "cpu":
        return {}
    wanted = _OPTIONS | (_ONE_THREAD if jax.local_device_count() >= cores() > 1 else {})
    return {name: value for name, value in wanted.items() if _known(name, value)}


@functools.cache
def outermost(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """Return `jax.jit` of a module's function with these options; call the result outside any other jit."""
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options())


def _known(name: str, value: str | bool) -> bool:
    """Return whether this version of XLA has the option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
