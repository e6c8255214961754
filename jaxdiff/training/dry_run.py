"""A run that is compiled and not run: does it fit the devices, and what bounds its speed?

The training step and the sampler are compiled as a run on these devices would compile them. The devices may be
elsewhere: a TPU pod's step is compiled on a laptop.

    time of a step  ≥  max( FLOP / peak rate,  bytes moved / memory bandwidth,  bytes sent / bandwidth of the links )

for one device (Williams et al. 2009, "Roofline"), with the rates of `jaxdiff.training.chips` and the counts of
`jaxdiff.training.costs`. Memory is what the compiler reserves: it is exact. Whatever reads the data, starts the steps
or waits for other hosts is not counted.
"""

import collections
import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff import data as datasets
from jaxdiff import registry
from jaxdiff.data import Source
from jaxdiff.experiment import Config, Experiment, components, make_experiment
from jaxdiff.experiment.workdir import examples_for
from jaxdiff.samplers.batching import batch_of, trace_steps
from jaxdiff.training import chips, costs, summary
from jaxdiff.training.batches import Resident, is_resident, only
from jaxdiff.training.sharding import batch_spec, make_mesh
from jaxdiff.training.step import State, abstract_state, make_step
from jaxdiff.typing import InputError, PyTree

_GIB = 2**30
_SPARE = 0.95  # of the memory, for what a suggestion may fill by estimate


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int
    average: int  # of the weights
    optimizer: int  # its state, and the little else that training keeps
    data: int  # the data set, if it is kept on the devices, and a batch
    temporary: int  # activations, and whatever else exists only during a step
    program: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class DoesNotFit(InputError):  # noqa: N818 - an answer rather than an error
    """A run needs more memory than its devices have."""


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What compiling a run tells; `dry_run` makes it, and its text is the report."""

    experiment: Experiment
    mesh: Mesh
    chip: chips.Chip | None  # None if its rates are not known
    params: PyTree
    memory: Memory
    limit: int | None  # bytes of memory of a device; None if it is not known
    flops: int  # of a step, on all devices
    traffic: costs.Traffic  # of a step, on one device
    sampling: str

    def __str__(self) -> str:
        return "\n".join(_report(self))


def dry_run(config: Config, machine: str, *, data: Any = None, model: Any = None, what: str = "machine") -> DryRun:
    """Compile the training step and the sampler of a run for a machine, and return what that tells.

    Args:
      machine: "here" or "cpu" for the devices of this machine, or a slice of TPUs, as in "v5e:16x16".
      data, model: as for `jaxdiff.training.loop.train`.
      what: the name of the argument `machine` in messages.

    Raises:
      DoesNotFit: if a device has less memory than the run needs; it says how much, and which settings would do.
      InputError: if there is no such machine, or a run on it would be refused.
    """
    devices = chips.devices(machine, what=what)
    if model is not None:
        config = dataclasses.replace(config, model="given")
    mesh = _mesh(config, devices)
    section = config.data
    dataset: Source = (
        section.load() if data is None else section.with_conditions(datasets.from_object(section.name, data))
    )
    compile_ = partial(_compile, dataset=dataset, model=model)
    try:
        return compile_(config, mesh)
    except DoesNotFit as error:
        fits = list(_that_fit(config, devices, error, compile_))
        fix = "; of the changes tried, " + ("these fit: " + ", ".join(fits) if fits else "none fits")
        raise DoesNotFit(f"{error}{fix}") from None


def _mesh(config: Config, devices: Sequence[Any]) -> Mesh:
    train = config.train
    return make_mesh(train.fsdp, train.batch_size, train.accumulate, devices)


def _compile(config: Config, mesh: Mesh, *, dataset: Source, model: Any) -> DryRun:
    device = mesh.devices.flat[0]
    experiment = make_experiment(config, dataset.spec, examples_for(config, dataset), model, device=device)
    abstract = abstract_state(experiment, mesh)
    resident, batch = _inputs(experiment, dataset, mesh)
    step: Any = make_step(experiment, mesh, abstract)
    traced = step.trace(abstract, resident, batch)
    before = Memory(
        weights=_bytes(abstract.params),
        average=_bytes(abstract.ema),
        optimizer=_bytes(abstract._replace(params=None, ema=None)),
        data=_bytes((resident, batch)),
        temporary=0,
        program=0,
    )
    compiled = _compiled(traced, before)
    found: Any = compiled.memory_analysis()
    memory = before._replace(
        temporary=found.temp_size_in_bytes + max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
        program=found.generated_code_size_in_bytes,
    )
    chip = chips.chip(mesh.devices.ravel().tolist())
    limit = chips.memory(device) or (int(chip.memory) if chip else None)
    if limit is not None and memory.total > limit:
        raise _does_not_fit(memory, memory.total, limit)
    return DryRun(
        experiment=experiment,
        mesh=mesh,
        chip=chip,
        params=abstract.params,
        memory=memory,
        limit=limit,
        flops=costs.flops(traced.jaxpr),
        traffic=costs.read(compiled.as_text()),
        sampling=_sampling(experiment, abstract, before, limit, mesh),
    )


def _inputs(experiment: Experiment, dataset: Source, mesh: Mesh) -> tuple[Resident | None, Any]:
    """The shapes of what a step is given: the data set, if it is resident, and a batch, of indices then."""
    config = experiment.config
    example = only(dataset.take(np.zeros(1, int)), experiment.kinds)
    sharding = NamedSharding(mesh, batch_spec(leading=1))

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, config.train.batch_size, *shape), dtype, sharding=sharding)

    if is_resident(dataset, experiment.kinds, config.data.on_device):
        return Resident.abstract(example, len(dataset), mesh), rows((), jnp.int32)
    return None, jax.tree.map(lambda leaf: rows(leaf.shape[1:], leaf.dtype), example)


def _bytes(tree: PyTree) -> int:
    """The bytes of the part of abstract arrays that one device holds."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        shape: Any = leaf.sharding.shard_shape(leaf.shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return int(np.prod(shape)) * (8 if is_key else leaf.dtype.itemsize)

    return sum(map(size, jax.tree.leaves(tree)))


def _compiled(traced: Any, before: Memory) -> Any:
    """Compile a program; what the compiler says of memory that is not there becomes a DoesNotFit."""
    try:
        with warnings.catch_warnings():  # JAX keeps what it compiles for other machines, but can't read it again
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        sizes = [float(number) * _GIB for number in re.findall(r"([\d.]+)G\b", text)]
        if "RESOURCE_EXHAUSTED" not in text or len(sizes) < 2:
            raise
        used, limit = sizes[:2]
        used += before.total if "temporaries" in text else 0
        raise _does_not_fit(before._replace(temporary=round(used) - before.total), round(used), round(limit)) from error


def _does_not_fit(memory: Memory, used: int, limit: int) -> DoesNotFit:
    error = DoesNotFit(
        f"the run does not fit: each device needs {used / _GIB:.2f} GiB and has {limit / _GIB:.2f} ({_of_what(memory)})"
    )
    error.memory, error.limit = memory, limit  # type: ignore[attr-defined]
    return error


def _of_what(memory: Memory) -> str:
    return ", ".join(f"{name} {size / _GIB:.2f}" for name, size in memory._asdict().items())


def _that_fit(config: Config, devices: Sequence[Any], error: Any, compile_: Any) -> Iterator[str]:
    """Yield the changes of one setting with which a run fits, found by an estimate and proven by compiling it."""
    for name, changed in _changes(config, devices, error.memory, error.limit * _SPARE):
        try:
            found = compile_(changed, _mesh(changed, devices))
        except InputError:
            continue
        yield f"{name} ({found.memory.total / _GIB:.2f} GiB)"


def _changes(config: Config, devices: Sequence[Any], memory: Memory, limit: float) -> Iterator[tuple[str, Config]]:
    """Yield the changes that may fit into `limit`: activations are taken to grow with the examples at a time."""
    train, n = config.train, len(devices)

    def change(**values: Any) -> tuple[str, Config]:
        names = ", ".join(f"train.{name} = {value}" for name, value in values.items())
        return names, dataclasses.replace(config, train=dataclasses.replace(train, **values))

    kept = memory.total - memory.temporary
    parts = train.batch_size // (n * train.accumulate)  # examples at a time
    fewer = [size for size in range(parts - 1, 0, -1) if memory.temporary * size / parts + kept <= limit]
    takes_remat = registry.takes("model", config.model, components.NAMES["model"][0], "remat")
    if takes_remat and not train.remat:
        yield change(remat=True)
    if split := next((size for size in fewer if parts % size == 0), None):
        yield change(accumulate=train.accumulate * parts // split)
    state = memory.weights + memory.average + memory.optimizer
    for fsdp in range(train.fsdp + 1, n + 1):
        if n % fsdp == 0 and memory.total - state * (1 - train.fsdp / fsdp) <= limit:
            yield change(fsdp=fsdp)
            break
    if fewer:
        yield change(batch_size=fewer[0] * n * train.accumulate)


def _sampling(experiment: Experiment, state: State, before: Memory, limit: int | None, mesh: Mesh) -> str:
    """Compile a step of the sampler beside the state of training, and return a line about it."""
    if experiment.classifies:
        return "a classifier is not sampled"
    sampling = experiment.config.sampling
    if len(experiment.shape) < 2:
        return "points in the plane are drawn by each process alone"
    n, steps = batch_of(sampling, mesh), len(sampling.times(experiment.schedule)) - 1
    denoiser = jax.eval_shape(experiment.sampling_denoiser, state.ema)
    cond = experiment.conditioning.absent(n)
    traced = trace_steps(denoiser, sampling, shape=experiment.shape, cond=cond, steps=steps, mesh=mesh)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.ema))
    held = before._replace(temporary=whole)  # a copy of the weights
    compiled = _compiled(traced, held)
    exchanged = costs.read(compiled.as_text()).collectives
    total = held.total + compiled.memory_analysis().temp_size_in_bytes
    if limit is not None and total > limit:
        raise InputError(
            f"sampling.batch = {sampling.batch} does not fit: with the state of training each device needs "
            f"{total / _GIB:.2f} GiB and has {limit / _GIB:.2f}; make it smaller"
        )
    return (
        f"{n} samples at a time, {steps} steps of {costs.flops(traced.jaxpr) / 1e9:,.3g} GFLOP, {total / _GIB:.2f} GiB "
        f"a device with the state of training, {_exchanges(exchanged)} in a step"
    )


def _exchanges(collectives: Sequence[costs.Collective]) -> str:
    """The exchanges of a program by kind, with their number and what a device sends."""
    if not collectives:
        return "no exchange between devices"
    kinds: dict[Any, list[costs.Collective]] = collections.defaultdict(list)
    for found in collectives:
        kinds[found.kind, found.group, found.dtypes].append(found)
    return ", ".join(
        f"{len(group)} {kind} over {devices} of {sum(one.bytes for one in group) / 1e6:,.3g} MB ({'+'.join(dtypes)})"
        for (kind, devices, dtypes), group in kinds.items()
    )


def _report(found: DryRun) -> Iterator[str]:
    experiment, mesh = found.experiment, found.mesh
    train, n = experiment.config.train, mesh.size
    hosts = len({device.process_index for device in mesh.devices.flat})
    of = f" on {hosts} hosts" if hosts > 1 else ""
    lines = {
        "devices": f"{summary.devices(mesh)}{of}",
        "network": summary.network(experiment, found.params),
        "batch": f"{train.batch_size:,}, {train.batch_size // n:,} on each device"
        + (f" in {train.accumulate} parts" if train.accumulate > 1 else ""),
        "memory": f"{found.memory.total / _GIB:.3f} GiB a device"
        + ("" if found.limit is None else f" of {found.limit / _GIB:.1f}"),
    }
    lines |= {f"  {name}": f"{size / _GIB:.3f}" for name, size in found.memory._asdict().items()}
    sent = sum(one.sent for one in found.traffic.collectives)
    lines["a step"] = "on each device"
    works = {
        "products": (found.flops / n, "FLOP", "flops"),
        "memory": (found.traffic.moved, "B", "bandwidth"),
        "links": (sent, "B", "links"),
    }
    times = {}
    for name, (amount, unit, rate) in works.items():
        text = _scaled(amount, unit)
        if found.chip is not None:
            times[name] = amount / getattr(found.chip, rate)
            text += f", {times[name] * 1e3:.3g} ms at {_scaled(getattr(found.chip, rate), unit)}/s"
        lines[f"  {name} "] = text
    lines["exchanged"] = _exchanges(found.traffic.collectives)
    if times:
        slowest = max(times, key=lambda name: times[name])
        images = train.batch_size / times[slowest]
        share = times["products"] / times[slowest]
        lines["at best"] = f"{times[slowest] * 1e3:.3g} ms a step, bound by {slowest}: {images:,.0f} images/s, "
        lines["at best"] += f"{share:.0%} of the peak rate"
    else:
        lines["at best"] = f"not known: no rates of {mesh.devices.flat[0].device_kind}"
    if found.traffic.cycles and found.chip and found.chip.clock:
        seconds = found.traffic.cycles / found.chip.clock
        text = f"{seconds * 1e3:.3g} ms a step, as the compiler estimates its cycles: "
        lines["estimate"] = f"{text}{train.batch_size / seconds:,.0f} images/s"
    lines["sampling"] = found.sampling
    for name, line in lines.items():
        yield f"{name:12} {line}".rstrip()


def _scaled(amount: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.4g} {prefix}{unit}"
    return f"{amount:.4g} {unit}"
