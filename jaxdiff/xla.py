"""How XLA is asked to compute on a CPU; on other devices nothing here does anything.

Measured on 2 cores of a Xeon with AVX-512 and JAX 0.10, in images/s of `configs/mnist.py` in training:

    as JAX comes                                                                                259
    convolutions and products by Eigen, sums by YNNPACK, and a device a core with one thread    360

A core that waits for its share of an operation sleeps, and waking it takes about 0.2 ms on a virtual machine: as long
as the operation. Cores that each have examples of their own meet once a step.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
_ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(batch: int, multiple: int = 1) -> None:
    """Make the CPU a device a core, or as many as divide a batch and are a multiple of `multiple`.

    To be called before JAX makes its devices. A number that the user has set (`jax_num_cpu_devices`, or
    `--xla_force_host_platform_device_count` in XLA_FLAGS) stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] > 0 or "xla_force_host_platform_device_count" in flags:
        return
    fit = [n for n in range(1, cores() + 1) if batch % n == 0 and n % multiple == 0]
    if fit:
        jax.config.update("jax_num_cpu_devices", max(fit))


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """For `jax.jit(..., compiler_options=...)`, which takes them in an outermost jit alone."""
    if jax.default_backend() != "cpu":
        return {}
    wanted = _OPTIONS | (_ONE_THREAD if jax.local_device_count() >= cores() > 1 else {})
    return {name: value for name, value in wanted.items() if _known(name, value)}


@functools.cache
def outermost(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """`jax.jit` with these options, for a function of a module: to be called where no other jit is around."""
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options())


def _known(name: str, value: str | bool) -> bool:
    """Whether this XLA has the option: they come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
