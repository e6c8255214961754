"""The peak rates of accelerators, and the devices of machines that are elsewhere.

The rates are their makers': Google Cloud's pages "TPU versions", and NVIDIA's data sheets of the A100 (SXM),
H100 (SXM) and H200, without sparsity; the clocks are those of "How to Scale Your Model" (Austin et al. 2025). To
compile a program for a TPU takes no TPU, only libtpu.
"""

import collections
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxdiff.typing import InputError


class Chip(NamedTuple):
    """What one chip has; a device of JAX may be half of one."""

    flops: float  # floating-point operations a second, in bfloat16
    memory: float  # bytes
    bandwidth: float  # of the main memory, in bytes a second
    links: float  # to other chips, in bytes a second, all together
    clock: float | None = None  # of a TPU's cores, in Hz

    def part(self, devices: int) -> "Chip":
        """Return the share of one of the devices of a chip."""
        shares = {name: getattr(self, name) / devices for name in ("flops", "memory", "bandwidth", "links")}
        return self._replace(**shares)


_GIB = 2**30
_V5P = Chip(459e12, 95 * _GIB, 2765e9, 600e9, 1.75e9)
_V6E = Chip(918e12, 32 * _GIB, 1640e9, 400e9)
_H100 = Chip(989e12, 80 * _GIB, 3350e9, 450e9)
_CHIPS = {  # by `jax.Device.device_kind`
    "TPU v4": Chip(275e12, 32 * _GIB, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 819e9, 200e9, 1.5e9),
    "TPU v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, 1.5e9),
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(2307e12, 192 * _GIB, 7380e9, 600e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * _GIB, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * _GIB, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H100._replace(memory=141 * _GIB, bandwidth=4800e9),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # the grids of v5e and v6e
_SIDES = (2, 4, 8, 12, 16, 20, 24)  # of the grids of v4, v5p and tpu7x, apart from 2x2x1
_KNOWN = (
    f"v5e and v6e with {', '.join(_FLAT)} chips, as v5e:4x4; v4, v5p and tpu7x with 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4 "
    "... chips, as v5p:2x2x4"
)
_MOST_CHIPS = 2**13  # more than any slice has
HERE = "here"

# What libtpu reads, on a machine without a TPU.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def chip(devices: Sequence[Any]) -> Chip | None:
    """Return what each of these equal devices has; None for a CPU or an unknown accelerator."""
    found = _CHIPS.get(devices[0].device_kind)
    here = collections.Counter(place(device)[:-1] or (i,) for i, device in enumerate(devices))
    return found and found.part(max(here.values()))


def place(device: Any) -> tuple[int, ...]:
    """Return where a TPU is: its slice, its coordinates in the torus of the slice, and its core; () for others."""
    if device.platform != "tpu":
        return ()
    return (getattr(device, "slice_index", 0) or 0, *device.coords, device.core_on_chip)


def memory(device: Any) -> int | None:
    """Return the bytes of memory that a device of this machine has for arrays; None if that is not known."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (RuntimeError, NotImplementedError):  # a device that is elsewhere
        return None


def check_name(name: str, *, what: str) -> None:
    """Raise an InputError about the argument `what` unless `devices` may know this name."""
    generation, _, grid = name.partition(":")
    sides = [int(side) for side in grid.split("x") if side.isdecimal()]
    deep = grid == "2x2x1" or ("x".join(map(str, sides)) == grid and len(sides) == 3 and {*sides} <= {*_SIDES})
    known = {"v5e": grid in _FLAT, "v6e": grid in _FLAT, "v4": deep, "v5p": deep, "tpu7x": deep}
    if name in (HERE, "cpu") or (known.get(generation, False) and math.prod(sides) <= _MOST_CHIPS):
        return
    raise InputError(
        f"{what} = {name!r} is no machine that a run can be compiled for; the known ones are {HERE} (the devices of "
        f"this machine), cpu, and TPUs: {_KNOWN}"
    )


def devices(name: str, *, what: str) -> list[Any]:
    """Return the devices of a machine: "here" or "cpu" for this one's, or a slice of TPUs as in "v5e:16x16".

    Raises an InputError about the argument `what` if there is no such machine, or libtpu is missing.
    """
    check_name(name, what=what)
    if name == HERE:
        return jax.devices()
    if name == "cpu":
        return jax.devices("cpu")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: Any = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    if name.startswith("v4:"):  # a device is a chip, as it is on those machines
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        text = str(error).splitlines()[0]
        if isinstance(error, ImportError) or "not installed" in text:
            fix = 'it needs the compiler of TPUs: pip install "jaxdiff[tpu]"'
            raise InputError(f"{what} = {name!r} can't be compiled for ({text}); {fix}") from error
        raise InputError(f"{what} = {name!r} does not exist ({text}); the known ones are {_KNOWN}") from error
