"""The sampling loop, written for one sample, mapped over keys and compiled once per shape.

`sample` scans over the steps: it is differentiable and can return the trajectory. `jaxdiff.samplers.batching` runs the
same steps in pieces.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from jaxdiff.processes import Conditioned, Denoiser, Process, for_sample
from jaxdiff.samplers import timesteps as timesteps_
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.names import make
from jaxdiff.samplers.timesteps import Timesteps
from jaxdiff.typing import (
    InputError,
    PyTree,
    RandomKey,
    Sample,
    Samples,
    Shape,
    check_whole,
    elementwise,
    is_traced,
    shown,
)

Keys = Key[Array, " n"]
Times = Float[np.ndarray | Array, " times"]
Carry = tuple[Sample, Any]  # x_t and the state of the sampler


def sample(
    key: RandomKey,
    denoiser: Denoiser,
    sampler: str | Sampler,
    *,
    n: int,
    shape: Shape,
    steps: int | None = None,
    timesteps: Timesteps = "uniform",
    cond: PyTree = None,
    start: Samples | None = None,
    trajectory: bool = False,
) -> Float[Array, "n ..."]:
    """Draw n samples.

    Sample i depends on `fold_in(key, i)` alone: it is the same in any batch and on any number of devices, up to the
    rounding that differs between compiled batch sizes.

    Args:
      sampler: a sampler, or a name with options such as "ddim:eta=0.5" (see `jaxdiff.samplers`).
      shape: the shape of one sample.
      steps: the number of steps; leave it out if `timesteps` lists the times.
      timesteps: the name of a rule of `jaxdiff.timesteps`, or the decreasing times themselves. These must start at 1
        unless `start` is given.
      cond: one condition per sample, a pytree whose leaves have leading axis n; None if unconditional.
      start: x at the first of the times; None draws it from the prior. If the process has random parameters, x_i must
        be made with those of sample i: see `jaxdiff.Run.image_to_image`.
      trajectory: whether to return every x on the way.

    Returns:
      float32 (float64 under x64) of shape (n, *shape); with `trajectory`, (n, steps + 1, *shape), the start first.

    Raises:
      InputError: if an argument is invalid, or the process does not fit the shape or the sampler.
    """
    shape, start = check_rows(n, shape, cond, start)
    if not isinstance(denoiser, Denoiser):
        raise InputError(
            f"denoiser = {denoiser!r} has no process; make it with jaxdiff.denoiser or jaxdiff.from_function"
        )
    denoiser.process.for_sample(key, shape)  # raises if the process can't take this shape
    times = timesteps_.make(timesteps, steps, denoiser.process.schedule)
    check_start(times, start)
    check_sampler(sampler := make(sampler), times, denoiser.process)
    options: Any = {"times": times, "shape": shape, "cond": cond, "start": start, "trajectory": trajectory}
    return sample_each(sample_keys(key, np.arange(n)), denoiser, sampler, **options)


def check_rows(n: int, shape: Shape, cond: PyTree, start: Any) -> tuple[Shape, Any]:
    """Return the shape as a tuple and the starts in the default float dtype.

    Raises an `InputError` if n < 1, the shape is no tuple of whole numbers, conditions are given but not n, or starts
    but not n floats of this shape.
    """
    check_whole("n", n)
    try:
        shape = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InputError(f"shape = {shape!r}; give the shape of one sample, a tuple such as (28, 28, 1)") from None
    check_conditions(cond, n)
    if start is None:
        return shape, None
    start = as_array("start", start)
    if start.shape != (n, *shape):
        raise InputError(f"start has shape {start.shape}; give one x per sample: {(n, *shape)}")
    if not jnp.issubdtype(start.dtype, jnp.floating):
        raise InputError(f"start has dtype {start.dtype}; it must hold floats, in the scale of noisy samples")
    start = start.astype(jnp.result_type(float))
    _check_finite("start", start)
    return shape, start


def check_conditions(cond: PyTree, n: int) -> None:
    """Raise an `InputError` unless every leaf of the conditions has n rows of numbers."""
    for path, leaf in jax.tree.leaves_with_path(cond):
        name = f"cond{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSU":
            raise InputError(f"{name} = {shown(leaf)}; it must hold numbers")
        if np.shape(leaf)[:1] != (n,):
            raise InputError(f"{name} has shape {np.shape(leaf)}; give one condition per sample: leading axis n = {n}")


def check_samples(name: str, x: Any, cond: PyTree = None) -> Samples:
    """Return samples as an array of floats, whole numbers in the default dtype.

    Raises an `InputError` if the argument `name` is no array of n >= 1 samples, has values that are known not to be
    finite, or the conditions are not n.
    """
    x = as_array(name, x)
    if not x.shape or not len(x):
        raise InputError(f"{name} has shape {x.shape}; it must hold n >= 1 samples: (n, *shape)")
    check_conditions(cond, len(x))
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.result_type(float))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{name} has dtype {x.dtype}; it must hold real numbers")
    _check_finite(name, x)
    return x


def _check_finite(name: str, x: Any) -> None:
    if not is_traced(x) and not np.isfinite(np.asarray(x, np.float64)).all():
        raise InputError(f"{name} has values that are not finite; leave those samples out")


def as_array(name: str, x: Any) -> Any:
    """Return the argument `name` as an array of a dtype of JAX, or raise an `InputError`; lists count as arrays."""
    if isinstance(x, jax.Array):
        return x
    try:
        found = np.asarray(x)
    except ValueError:  # rows of unequal lengths
        found = np.asarray(None)
    if found.dtype.kind in "OSUMm":
        raise InputError(f"{name} = {shown(x)}; it must be an array of numbers")
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite
        return found.astype(jax.dtypes.canonicalize_dtype(found.dtype))


def check_start(times: Times, start: Any) -> None:
    """Raise an `InputError` if the times do not start at 1 and no start is given."""
    if not is_traced(times) and times[0] != 1 and start is None:
        raise InputError(
            f"timesteps start at {times[0]}, but the prior is that of t = 1; start them at 1, or give start"
        )


def check_sampler(sampler: Sampler, times: Times, process: Process) -> None:
    """Let a sampler that has a method `check` refuse the times; traced ones are not known."""
    check = getattr(sampler, "check", None)
    if check is not None and not is_traced((times, process.schedule)):
        with jax.ensure_compile_time_eval():
            check(np.asarray(times), process)


def sample_keys(key: RandomKey, indices: Integer[np.ndarray | Array, " n"]) -> Keys:
    """Return the keys of the samples with these indices: fold_in(key, i)."""
    return jax.vmap(partial(jax.random.fold_in, elementwise(key)))(jnp.asarray(indices))


def begin(key: RandomKey, denoiser: Denoiser, start: Sample | None, sampler: Sampler, shape: Shape) -> Carry:
    """Return the start, drawn from the prior at this key if None, and the sampler's first state."""
    if start is None:
        start = for_sample(denoiser, key, shape).process.sample_prior(jax.random.split(key)[0], shape)
    return start, sampler.init(start)


def stepper(
    key: RandomKey, denoiser: Denoiser, cond: PyTree, times: Times, sampler: Sampler, shape: Shape
) -> Callable[[Any, Carry], Carry]:
    """Return the function (i, carry) -> carry that takes step i of the sample with this key."""
    key_steps = jax.random.split(key)[1]
    conditioned = Conditioned(inner=for_sample(denoiser, key, shape), cond=cond)

    def step(i: Any, carry: Carry) -> Carry:
        key_step = jax.random.fold_in(key_steps, i)
        found = sampler.step(key_step, *carry, t=times[i], s=times[i + 1], denoiser=conditioned)
        _check_step(sampler, found, carry)
        return found

    return step


def _check_step(sampler: Sampler, found: Any, carry: Carry) -> None:
    """Raise an InputError unless a step returned what it was given: a sample, and a state, of the same shapes."""
    before, after = ((jax.tree.structure(pair), jax.tree.map(jnp.shape, pair)) for pair in (carry, found))
    if not isinstance(found, tuple) or before != after:
        raise InputError(
            f"{type(sampler).__name__}.step returned {jax.tree.map(jnp.shape, found)} for (x_t, state) of shapes "
            f"{jax.tree.map(jnp.shape, carry)}; it must return (x_s, new state) of the same shapes"
        )


@partial(jax.jit, static_argnames=("sampler", "shape", "trajectory"))
def sample_each(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    times: Times,
    shape: Shape,
    cond: PyTree = None,
    start: Samples | None = None,
    trajectory: bool = False,
) -> Float[Array, "n ..."]:
    """`sample` from one key per sample and given times. If the keys are sharded over devices, so is the computation."""

    def one(key: RandomKey, cond: PyTree, start: Sample | None) -> Float[Array, "..."]:
        step = stepper(key, denoiser, cond, times, sampler, shape)

        def body(carry: Carry, i: Any) -> tuple[Carry, Any]:
            carry = step(i, carry)
            return carry, carry[0] if trajectory else None

        first = begin(key, denoiser, start, sampler, shape)
        (last, _), visited = jax.lax.scan(body, first, jnp.arange(len(times) - 1))
        return jnp.concatenate([first[0][None], visited]) if trajectory else last

    return jax.vmap(one)(keys, cond, start)
