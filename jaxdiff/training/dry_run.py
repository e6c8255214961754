"""A run that is compiled and not run: does it fit the devices, and what bounds its speed?

The training step and the sampler are compiled as a run on these devices would compile them. The devices may be
elsewhere: a TPU pod's step is compiled on a laptop.

    time of a step  ≥  max( FLOP / peak rate,  bytes moved / memory bandwidth,  bytes sent / bandwidth of the links )

for one device (Williams et al. 2009, "Roofline"), with the rates of `jaxdiff.training.chips` and the counts of
`jaxdiff.training.costs`. Memory is what the compiler reserves for the step. Reading the data, starting the steps,
evaluation, and waiting for other hosts are not counted.
"""

import collections
import dataclasses
import itertools
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff import data as datasets
from jaxdiff import registry
from jaxdiff.data import Part, Source
from jaxdiff.experiment import Config, Experiment, components, make_experiment
from jaxdiff.experiment.build import test_split
from jaxdiff.experiment.workdir import examples_for
from jaxdiff.samplers.batching import batch_of, trace_steps
from jaxdiff.training import chips, costs, summary
from jaxdiff.training import loggers as loggers_
from jaxdiff.training.batches import Resident, is_resident, only
from jaxdiff.training.evaluation import split
from jaxdiff.training.sharding import batch_spec, make_mesh
from jaxdiff.training.step import State, abstract_state, make_step
from jaxdiff.typing import InputError, PyTree, first_line

_SPARE = 0.95  # of the memory, for what a change may fill by estimate
_TRIES = 3  # values of a setting
_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}  # as the compiler writes them


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int
    average: int  # of the weights
    optimizer: int  # its state, and the little else that training keeps
    data: int  # the data set, if it is kept on the devices, and two batches, as the next one is sent ahead
    padding: int = 0  # of these arrays, as a TPU keeps them in tiles
    temporary: int = 0  # activations, and whatever else exists only during a step
    program: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class DoesNotFit(InputError):  # noqa: N818 - an answer rather than an error
    """A step needs more memory than a device has."""

    def __init__(self, memory: Memory, limit: int, fix: str = "") -> None:
        parts = ", ".join(f"{name} {_binary(size)}" for name, size in memory._asdict().items() if size)
        needs = f"each device needs {_binary(memory.total)} and has {_binary(limit)}"
        super().__init__(f"the run does not fit: {needs} ({parts}){fix}")
        self.memory, self.limit = memory, limit


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


def dry_run(
    config: Config,
    machine: str,
    *,
    data: Any = None,
    model: Any = None,
    what: str = "machine",
    say: Callable[[str], None] = lambda text: None,
) -> DryRun:
    """Compile the training step and the sampler of a run for a machine, and return what that tells.

    Args:
      machine: "here" or "cpu" for the devices of this machine, or a slice of TPUs, as in "v5e:16x16".
      data, model: as for `jaxdiff.training.loop.train`.
      what: the name of the argument `machine` in messages.
      say: called with a line of text before each program is compiled.

    Raises:
      DoesNotFit: if a device has less memory than the run needs; it says how much, and which settings would do.
      InputError: if there is no such machine, or a run would be refused for its config or its data.
    """
    loggers_.check(config.loggers, ())
    devices = chips.devices(machine, what=what)
    if model is not None:
        config = dataclasses.replace(config, model="given")
    mesh, section = _mesh(config, devices), config.data
    dataset: Source = (
        section.load() if data is None else section.with_conditions(datasets.from_object(section.name, data))
    )
    dataset, _ = split(config, dataset, dataset.fingerprint(), named=data is None)
    compile_ = partial(_compile, dataset=dataset, model=model)
    try:
        say(f"compiling the training step and the sampler for {machine} ...")
        return compile_(config, mesh)
    except DoesNotFit as error:
        fits = list(_that_fit(config, devices, error, compile_, say))
        fix = "; of the changes tried, " + (f"each of these fits: {', '.join(fits)}" if fits else "none fits")
        raise DoesNotFit(error.memory, error.limit, fix) from None


def _mesh(config: Config, devices: Sequence[Any]) -> Mesh:
    train = config.train
    return make_mesh(train.fsdp, train.batch_size, train.accumulate, devices)


def _compile(config: Config, mesh: Mesh, *, dataset: Source, model: Any) -> DryRun:
    device = mesh.devices.flat[0]
    experiment = make_experiment(config, dataset.spec, examples_for(config, dataset), model, device=device)
    if experiment.classifies:
        test_split(experiment, config.data.dir)
    abstract = abstract_state(experiment, mesh)
    steps = min(config.steps_per_dispatch(on_cpu=device.platform == "cpu"), config.train.steps)
    resident, batch = _inputs(experiment, dataset, mesh, steps)
    step: Any = make_step(experiment, mesh, abstract)
    traced = step.trace(abstract, resident, batch)
    state = Memory(
        weights=_bytes(abstract.params),
        average=_bytes(abstract.ema),
        optimizer=_bytes(abstract._replace(params=None, ema=None)),
        data=_bytes((resident, batch, batch)),
    )
    compiled = _compiled(traced, state)
    found: Any = compiled.memory_analysis()
    memory = state._replace(
        padding=max(found.argument_size_in_bytes + _bytes(batch) - state.total, 0),
        temporary=found.temp_size_in_bytes + max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
        program=found.generated_code_size_in_bytes,
    )
    chip = chips.chip(mesh.devices.ravel().tolist())
    limit = chips.memory(device) or (int(chip.memory) if chip else None)
    if limit is not None and memory.total > limit:
        raise DoesNotFit(memory, limit)
    held = memory._replace(temporary=0, program=0)
    return DryRun(
        experiment=experiment,
        mesh=mesh,
        chip=chip,
        params=abstract.params,
        memory=memory,
        limit=limit,
        flops=costs.flops(traced.jaxpr) // steps,
        traffic=costs.read(compiled.as_text()).per_step(steps),
        sampling=_sampling(experiment, abstract, held, limit, mesh),
    )


def _inputs(experiment: Experiment, dataset: Source, mesh: Mesh, steps: int) -> tuple[Resident | None, Any]:
    """The shapes of what a call of some steps is given: the resident data set, if any, and batches, of indices then."""
    config = experiment.config
    example = only(dataset.take(np.zeros(1, int)), experiment.kinds)
    whole = dataset.source if isinstance(dataset, Part) else dataset
    sharding = NamedSharding(mesh, batch_spec(leading=1))

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((steps, config.train.batch_size, *shape), dtype, sharding=sharding)

    if is_resident(whole, experiment.kinds, config.data.on_device):
        return Resident.abstract(example, len(whole), mesh), rows((), jnp.int32)
    return None, jax.tree.map(lambda leaf: rows(leaf.shape[1:], leaf.dtype), example)


def _bytes(tree: PyTree) -> int:
    """The bytes of the part of abstract arrays that one device holds."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        shape: Any = leaf.sharding.shard_shape(leaf.shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return int(np.prod(shape)) * (8 if is_key else leaf.dtype.itemsize)

    return sum(map(size, jax.tree.leaves(tree)))


def _compiled(traced: Any, held: Memory) -> Any:
    """Compile a program; if the compiler says that memory is missing, raise a DoesNotFit with what is held anyway."""
    try:
        with warnings.catch_warnings():  # JAX keeps what it compiles for other machines, but can't read it again
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        sizes = [round(float(number) * _UNITS[unit]) for number, unit in re.findall(r"([\d.]+)([MGT])\b", text)]
        if "RESOURCE_EXHAUSTED" not in text or len(sizes) < 2:
            raise
        used, limit = sizes[:2]  # in all, or for temporary arrays alone
        temporary = used if "temporaries" in text else max(used - held.total, 0)
        raise DoesNotFit(held._replace(temporary=held.temporary + temporary), limit) from error


def _that_fit(
    config: Config, devices: Sequence[Any], error: DoesNotFit, compile_: Any, say: Callable[[str], None]
) -> Iterator[str]:
    """Yield the changes of one setting with which a run fits, found by an estimate and proven by compiling it."""
    say(str(error))
    for values in _changes(config, devices, error.memory, error.limit * _SPARE):
        for section, name, value in itertools.islice(values, _TRIES):
            part = dataclasses.replace(getattr(config, section), **{name: value})
            changed = dataclasses.replace(config, **{section: part})
            text = f"{section}.{name} = {value}"
            say(f"trying {text} ...")
            try:
                found = compile_(changed, _mesh(changed, devices))
            except (InputError, jax.errors.JaxRuntimeError) as failed:
                say(first_line(failed))
                continue
            yield f"{text} ({_binary(found.memory.total)})"
            break


def _changes(
    config: Config, devices: Sequence[Any], memory: Memory, limit: float
) -> Iterator[Iterator[tuple[str, str, Any]]]:
    """Yield, for each setting, the values that may fit into `limit`, the mildest first.

    Activations are taken to grow with the examples at a time.
    """
    train, n = config.train, len(devices)
    kept = memory.total - memory.temporary
    parts = train.batch_size // (n * train.accumulate)  # examples at a time
    fewer = [size for size in range(parts - 1, 0, -1) if memory.temporary * size / parts + kept <= limit]
    if not train.remat and registry.takes("model", config.model, components.NAMES["model"][0], "remat"):
        yield iter([("train", "remat", True)])
    if devices[0].platform != "cpu":  # where the parts are not computed one after the other
        yield (("train", "accumulate", train.accumulate * parts // size) for size in fewer if parts % size == 0)
    state = memory.weights + memory.average + memory.optimizer
    yield (
        ("train", "fsdp", fsdp)
        for fsdp in range(train.fsdp + 1, n + 1)
        if n % fsdp == 0 and memory.total - state * (1 - train.fsdp / fsdp) <= limit
    )
    if config.data.on_device is not False and memory.total - memory.data <= limit:
        yield iter([("data", "on_device", False)])
    powers = [size for size in fewer if size & (size - 1) == 0]
    yield (("train", "batch_size", size * n * train.accumulate) for size in powers)


def _sampling(experiment: Experiment, state: State, held: Memory, limit: int | None, mesh: Mesh) -> str:
    """Compile a step of the sampler beside the state of training, and return a line about it."""
    if experiment.classifies:
        return "a classifier is not sampled"
    sampling = experiment.config.sampling
    if len(experiment.shape) < 2:
        return "each process draws points alone"
    n, steps = batch_of(sampling, mesh), len(sampling.times(experiment.schedule)) - 1
    denoiser = jax.eval_shape(experiment.sampling_denoiser, state.ema)
    cond = experiment.conditioning.absent(n)
    traced = trace_steps(denoiser, sampling, shape=experiment.shape, cond=cond, steps=steps, mesh=mesh)
    held = held._replace(temporary=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.ema)))
    try:
        compiled = _compiled(traced, held)
        needed = held._replace(temporary=held.temporary + compiled.memory_analysis().temp_size_in_bytes)
        if limit is not None and needed.total > limit:
            raise DoesNotFit(needed, limit)
    except DoesNotFit as error:
        room = (error.limit - held.total) * _SPARE / max(error.memory.total - held.total, 1)
        fit = int(max(room, 0) * n) // mesh.size * mesh.size
        raise InputError(
            f"sampling.batch = {sampling.batch} does not fit: with the state of training a device needs "
            f"{_binary(error.memory.total)} to draw {n} samples and has {_binary(error.limit)}; "
            + (f"about {fit} may fit" if fit else "not even one sample on each device fits")
        ) from error
    flops = costs.flops(traced.jaxpr) / mesh.size
    return (
        f"{n} samples at a time, {steps} steps of {_scaled(flops, 'FLOP')} on each device, {_binary(needed.total)} "
        f"with the state of training; {_exchanges(costs.read(compiled.as_text()).collectives)}"
    )


def _exchanges(collectives: Sequence[costs.Collective]) -> str:
    """The exchanges of a program: the number of each kind, and the sizes of the whole arrays together."""
    if not collectives:
        return "no exchange between devices"
    kinds: dict[Any, list[int]] = collections.defaultdict(list)
    for found in collectives:
        kinds[found.kind, found.group, found.dtypes].append(found.bytes)
    return ", ".join(
        f"{len(sizes)} {kind} over {devices} devices, {sum(sizes) / 1e6:,.3g} MB of {' and '.join(dtypes)} together"
        for (kind, devices, dtypes), sizes in kinds.items()
    )


def _report(found: DryRun) -> Iterator[str]:
    for name, line in _lines(found).items():
        yield textwrap.fill(f"{name:12} {line}", 110, subsequent_indent=" " * 13, break_long_words=False)


def _lines(found: DryRun) -> dict[str, str]:
    train, mesh = found.experiment.config.train, found.mesh
    n, device, hosts = mesh.size, mesh.devices.flat[0], len({device.process_index for device in mesh.devices.flat})
    lines = {
        "devices": summary.devices(mesh) + (f" on {hosts} hosts" if hosts > 1 else ""),
        "network": summary.network(found.experiment, found.params),
        "batch": f"{train.batch_size:,}, {train.batch_size // n:,} on each device"
        + (f" in {train.accumulate} parts" if train.accumulate > 1 else ""),
        "memory": f"{_binary(found.memory.total)} on each device"
        + ("" if found.limit is None else f" of {_binary(found.limit)}"),
    }
    lines |= {f"  {name}": _binary(size) for name, size in found.memory._asdict().items()}
    works = {
        "products": (found.flops / n, "FLOP", "flops"),
        "traffic": (found.traffic.moved, "B", "bandwidth"),
        "links": (sum(one.sent for one in found.traffic.collectives), "B", "links"),
    }
    lines["a step"] = "on each device: matrix products, traffic with its memory, bytes sent to others"
    times = {}
    for name, (amount, unit, rate) in works.items():
        text = _scaled(amount, unit)
        if found.chip is not None:
            times[name] = amount / getattr(found.chip, rate)
            text += f", {times[name] * 1e3:.3g} ms at {_scaled(getattr(found.chip, rate), unit)}/s"
        lines[f"  {name}"] = text
    lines["exchanged"] = _exchanges(found.traffic.collectives)
    if times:
        slowest = max(times, key=lambda name: times[name])
        lines["bound"] = (
            f"{slowest}: no step is faster than {times[slowest] * 1e3:.3g} ms, which is "
            f"{train.batch_size / times[slowest]:,.0f} examples/s and {times['products'] / times[slowest]:.0%} of the "
            "peak rate in bfloat16"
        )
    else:
        lines["bound"] = f"not known, as no rates of {device.device_kind} are"
    if found.traffic.cycles and found.chip and found.chip.clock:
        seconds = found.traffic.cycles / found.chip.clock
        lines["estimate"] = (
            f"{seconds * 1e3:.3g} ms a step, {train.batch_size / seconds:,.0f} examples/s, by the cycles that the "
            "compiler expects of each operation"
        )
    return {**lines, "sampling": found.sampling}


def _scaled(amount: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.4g} {prefix}{unit}"
    return f"{amount:.4g} {unit}"


def _binary(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
