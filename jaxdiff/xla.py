"""XLA options for CPUs; on other devices nothing here has any effect.

Images/s of `configs/mnist.py` in training, measured on 2 cores of a Xeon with AVX-512 and JAX 0.10:

    the defaults of JAX                                                                         259
    convolutions and products by Eigen, sums by YNNPACK, and one device with one thread a core  360

A core that waits for its share of an operation sleeps, and waking it on a virtual machine takes about 0.2 ms, as long
as the operation itself. Cores that each have their own examples synchronize once per step.

Training steps are compiled at LLVM's optimization level 1 in place of 3. The gradient of `configs/mnist.py` then
compiles in 6.8 CPU seconds in place of 9.7, that of `configs/digits.py` in 7.0 in place of 9.3, and both are as fast:
176 ms in place of 180, and 54 ms in place of 53.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

_OPTIONS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    # This pass lets XLA merge what is computed twice, so that `jax.checkpoint` would save nothing.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
_ONE_THREAD: dict[str, Any] = {"xla_cpu_multi_thread_eigen": False}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(batch: int, multiple: int = 1) -> None:
    """Make each core a JAX device, or as many as divide `batch` and are a multiple of `multiple`.

    Call it before JAX initializes its devices. It keeps a number of devices that the user has set with
    `jax_num_cpu_devices` or `--xla_force_host_platform_device_count` in XLA_FLAGS. If it comes too late it only warns.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] > 0 or "xla_force_host_platform_device_count" in flags:
        return
    fit = [n for n in range(1, cores() + 1) if batch % n == 0 and n % multiple == 0]
    try:
        if fit:
            jax.config.update("jax_num_cpu_devices", max(fit))
    except RuntimeError:
        warnings.warn(
            "JAX was used before this run began, so each core can't be a device of its own, and it runs slower; "
            "use NumPy for arrays that a module makes when it is imported",
            stacklevel=2,
        )


@functools.cache
def compiler_options(level: int | None = None, mesh: Mesh | None = None) -> dict[str, Any]:
    """Return the options for `jax.jit(..., compiler_options=...)`, which accepts them in an outermost jit only.

    `level` is LLVM's optimization level on a CPU, from 0 to 3; None leaves XLA's, which is 3. At 0 the initialization
    of a U-Net compiles in a quarter of the time; what runs once needs no more. `mesh` are the devices of the program,
    by default all.
    """
    devices = jax.devices() if mesh is None else mesh.devices.ravel().tolist()
    if devices[0].platform != "cpu":
        return {}
    here = [device for device in devices if device.process_index == jax.process_index()]
    every = _OPTIONS | (_ONE_THREAD if len(here) >= cores() > 1 else {})
    if level is not None:
        every |= {"xla_backend_optimization_level": level}
    known: dict[str, Any] = {}
    for name, value in every.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # this version of XLA lacks the option
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            known[name] = value
    return known


def compute_dtype(device: Any) -> str:
    """Return the dtype in which a network computes on a `jax.Device`: bfloat16 if it has it."""
    if device.platform == "cpu":
        return "float32"
    older = float(getattr(device, "compute_capability", None) or 8) < 8  # NVIDIA GPUs before Ampere
    return "float32" if older else "bfloat16"


@functools.cache
def outermost(function: Callable[..., Any], *static: str, mesh: Mesh | None = None) -> Any:
    """Return `jax.jit` of a module's function with the options for a mesh; call the result outside any other jit."""
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(mesh=mesh))
