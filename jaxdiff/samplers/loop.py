"""The sampling loop: one `lax.scan` over jumps, written for one sample, mapped over keys, compiled once per shape."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from jaxdiff import xla
from jaxdiff.processes import Process, bind
from jaxdiff.samplers import grids
from jaxdiff.samplers.grids import Grid
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time


@runtime_checkable
class Sampler(Protocol):
    """One jump of one sample from t to s < t. A hashable value: equal samplers share a compilation."""

    def init(self, x: Float[Array, "*shape"]) -> Any:
        """What the sampler carries between jumps (None if nothing), for a start at x."""

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: Any,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], Any]:
        """x_s and the new state. `denoise` already holds the condition.

        Raises:
          ValueError: for times outside [0, 1] or s not below t, where they are known when the step is traced, and for a
            process that the sampler can't reverse.
        """


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    *,
    shape: tuple[int, ...],
    n: int,
    steps: int | None = None,
    grid: Grid = "uniform",
    cond: PyTree = None,
    start: Float[Array, "n *shape"] | None = None,
    trajectory: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Float[Array, "n ..."]:
    """Draw n samples.

    Sample i depends on `fold_in(key, i)` alone: it is the same in any batch and on any number of devices, to the
    rounding of the compiled batch size.

    Args:
      key: a typed key.
      denoiser: the model.
      process: the process that it denoises.
      sampler: how to jump; see `jaxdiff.samplers`.
      shape: the shape of one sample.
      n: how many.
      steps: the number of jumps; left out where `grid` lists the times.
      grid: the name of a rule for the times, or the falling times themselves, of which the first must be 1 unless
        `start` is given.
      cond: a pytree whose leaves have leading axis n, one condition a sample; None if there is none.
      start: x at the grid's first time, which then need not be 1; None draws it from the prior. Of a process with
        random parameters it must be made with those that sample i is drawn with: see `jaxdiff.Run.vary`.
      trajectory: whether to return every x on the way.
      on_step: called with the number of jumps done after each one; it may come late, and must not raise. A new
        function is a new compilation: define it once.

    Returns:
      float32 (float64 under x64) of shape (n, *shape); with `trajectory`, (n, steps + 1, *shape), the start first.

    Raises:
      ValueError: for n < 1, for steps or a grid that the schedule can't take (see `jaxdiff.samplers.grids`), for a
        grid that does not start at 1 where there is no `start`, for a condition without the leading axis n, for a
        `start` of another shape than (n, *shape), for a process that is none (see `jaxdiff.Perturbed`) and one that
        the sampler can't reverse.
    """
    if n < 1:
        raise ValueError(f"n = {n}; ask for at least 1 sample")
    for path, leaf in jax.tree.leaves_with_path(cond):
        if jnp.shape(leaf)[:1] != (n,):
            name = f"cond{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} has shape {jnp.shape(leaf)}; give one condition a sample: leading axis n = {n}")
    if start is not None and start.shape != (n, *shape):
        raise ValueError(f"start has shape {start.shape}; the rule is one x a sample: {(n, *shape)}")
    process.draw(key, tuple(shape))  # it says what is wrong with it
    times = grids.make(grid, steps, process.schedule)
    return sample_each(
        sample_keys(key, np.arange(n)),
        denoiser,
        process,
        sampler,
        times=times,
        shape=shape,
        cond=cond,
        start=start,
        trajectory=trajectory,
        on_step=on_step,
    )


def sample_keys(key: Key[Array, ""], indices: Integer[np.ndarray | Array, " n"]) -> Key[Array, " n"]:
    """The keys of the samples with these indices: fold_in(key, i)."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(indices))


def sample_each(
    keys: Key[Array, " n"],
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    *,
    times: Float[np.ndarray, " times"],
    shape: tuple[int, ...],
    cond: PyTree = None,
    start: Float[Array, "n *shape"] | None = None,
    trajectory: bool = False,
    on_step: Callable[[int], None] | None = None,
    outermost: bool = False,
) -> Float[Array, "n ..."]:
    """`sample` with one key a sample and the times given: keys sharded over devices make a sharded computation.

    `outermost` says that no `jax.jit` is around the call, so that it can have the options of `jaxdiff.xla`.

    Raises:
      ValueError: for times that do not start at 1 where there is no `start`.
    """
    if times[0] != 1 and start is None:
        raise ValueError(
            f"the times start at {times[0]}, but the prior is that of t = 1; start them at 1, or give start"
        )
    return _compiled(outermost)(
        keys,
        jax.tree.map(as_pytree, denoiser),
        process,
        jnp.asarray(times, jnp.result_type(float)),
        cond,
        start,
        sampler=sampler,
        shape=tuple(shape),
        trajectory=trajectory,
        on_step=on_step,
    )


def own_process(key: Key[Array, ""], process: Process, shape: tuple[int, ...]) -> Process:
    """The process of the sample that is drawn with this key, with its random parameters."""
    return process.draw(jax.random.fold_in(key, 2), shape)


def as_pytree(leaf: Any) -> Any:
    """A plain function, a denoiser itself or held by one, as a pytree that `jax.jit` takes; arrays as they are."""
    return jax.tree_util.Partial(leaf) if callable(leaf) else leaf


@cache
def _compiled(outermost: bool) -> Callable[..., Array]:
    """`_sample` compiled, with the options for this device where JAX takes them."""
    return jax.jit(
        _sample,
        static_argnames=("sampler", "shape", "trajectory", "on_step"),
        compiler_options=xla.compiler_options() if outermost else None,
    )


def _sample(
    keys: Key[Array, " n"],
    denoiser: Denoiser,
    process: Process,
    times: Float[Array, " times"],
    cond: PyTree,
    start: Float[Array, "n *shape"] | None,
    *,
    sampler: Sampler,
    shape: tuple[int, ...],
    trajectory: bool,
    on_step: Callable[[int], None] | None,
) -> Float[Array, "n ..."]:
    def one(key: Key[Array, ""], cond: PyTree, start: Float[Array, "*shape"] | None) -> Float[Array, "..."]:
        key_start, key_jumps = jax.random.split(key)
        mine = own_process(key, process, shape)
        model = bind(denoiser, mine)
        x = mine.prior(key_start, shape) if start is None else start

        def denoise(x_t: Float[Array, "*shape"], t: Time, _: PyTree = None, /) -> Prediction:
            return model(x_t, t, cond)

        def body(carry: Any, jump: Any) -> tuple[Any, Any]:
            x_t, state = carry
            i, t, s = jump
            x_s, state = sampler.step(
                jax.random.fold_in(key_jumps, i),
                x_t,
                state,
                t=t,
                s=s,
                denoise=denoise,
                process=mine,
            )
            if on_step is not None:
                jax.debug.callback(lambda done: on_step(int(done)), i + 1)
            return (x_s, state), x_s if trajectory else None

        jumps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
        (last, _), visited = jax.lax.scan(body, (x, sampler.init(x)), jumps)
        return jnp.concatenate([x[None], visited]) if trajectory else last

    return jax.vmap(one)(keys, cond, start)
