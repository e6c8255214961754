"""The training state and the compiled step.

    g  = clip(∇ mean_i w_i L(x_i; θ))     averaged over `accumulate` micro-batches; w_i = 1 unless times are drawn by
                                          the history of losses
    θ ← θ + AdamW(g)
    θ̄ ← d θ̄ + (1 − d) θ,              d = min(ema_decay, (1 + n)/(10 + n)) at step n

θ̄, the average that samples are drawn with, forgets its start within the first steps thanks to the warm-up of d
(Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", use such an average;
the warm-up is TensorFlow's `ExponentialMovingAverage(num_updates)`).

XLA runs the weight gradient of a convolution 40 to 70 times slower inside a loop than outside on CPU (measured:
128×8×8×64 with 3×3×64, 17 ms against 700 to 1300): it leaves that convolution in a layout for which it has no
fast code. So there the micro-batches are unrolled, and a convolutional network wants one step a dispatch, for which
no loop is made.

The randomness of step n is fold_in(key, n): a resumed run repeats what an unbroken one would have drawn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from jaxdiff import data, xla
from jaxdiff.config import Optimizer
from jaxdiff.experiment import Experiment
from jaxdiff.time_sampling import LossHistory, first_history
from jaxdiff.training import schedule
from jaxdiff.training.batches import Examples
from jaxdiff.training.sharding import batch_spec, state_shardings
from jaxdiff.typing import PyTree


class State(NamedTuple):
    """Everything that training carries from step to step."""

    step: Int[Array, ""]  # optimizer steps done
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    history: LossHistory | None = None  # of the losses at each time, where times are drawn by it


class Metrics(NamedTuple):
    """Of each step of a dispatch; float32."""

    loss: Float[Array, " steps"]  # the weighted mean
    grad_norm: Float[Array, " steps"]  # before clipping
    learning_rate: Float[Array, " steps"]


Batch = Examples | Int[Array, "steps batch"]
StepFunction = Callable[[State, Examples | None, Batch], tuple[State, Metrics]]


def learning_rate(config: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up to the learning rate, then constant or a cosine that would reach 0 right after the last step."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.decay == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(config.learning_rate, max(steps - config.warmup_steps, 1))
    # The first step's rate is that of count 0: a warm-up must not waste it on a rate of 0.
    return (
        optax.join_schedules([lambda n: warmup(n + 1), after], [config.warmup_steps]) if config.warmup_steps else after
    )


def make_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """AdamW behind gradient clipping by global norm. A learned schedule is neither decayed nor part of the norm."""
    config, steps = experiment.config.optimizer, experiment.config.train.steps
    mask = _network_alone if experiment.learns_schedule else None
    adam = optax.adamw(learning_rate(config, steps), weight_decay=config.weight_decay, mask=mask)
    if config.clip_norm is None:
        return adam
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(optax.masked(clip, mask) if mask else clip, adam)


def _network_alone(params: PyTree) -> PyTree:
    return {name: name != "schedule" for name in params}


def init_state(experiment: Experiment) -> State:
    """The state before the first step, from the config's seed."""
    train = experiment.config.train
    key_init, key = jax.random.split(jax.random.key(train.seed))
    params = experiment.init(key_init)
    optimizer = make_optimizer(experiment)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # its own memory: both are donated to the step
        opt_state=optimizer.init(params),
        key=key,
        history=first_history(experiment.config.loss.times, experiment.schedule),
    )


def abstract_state(experiment: Experiment, mesh: Mesh) -> State:
    """The state's shapes, dtypes and layout on the mesh."""
    shapes = jax.eval_shape(partial(init_state, experiment))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def gradient(
    experiment: Experiment, params: PyTree, batch: tuple[Any, ...]
) -> tuple[Float[Array, ""], PyTree, Float[Array, " n"]]:
    """The mean loss, what to descend along, and each example's loss, of a batch (x_0, labels, times, keys, weights)."""
    x0, labels, t, keys, weights = batch
    if experiment.learns_schedule:  # whose times are uniform: the weights are 1
        return schedule.gradient(experiment.loss, params, x0, t, keys, labels)

    def mean(params: PyTree) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        losses = experiment.loss(params, x0, t, keys, labels)
        return jnp.mean(weights * losses), losses

    (loss, losses), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return loss, grads, losses


def update(experiment: Experiment, state: State, loss: Float[Array, ""], grads: PyTree) -> tuple[State, Metrics]:
    """One optimizer step and one step of the average, from a gradient."""
    config = experiment.config
    optimizer = make_optimizer(experiment)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
    metrics = Metrics(
        loss=loss,
        grad_norm=optax.tree.norm(grads),
        learning_rate=jnp.asarray(learning_rate(config.optimizer, config.train.steps)(state.step), jnp.float32),
    )
    return State(
        step=state.step + 1,
        params=params,
        ema=optax.incremental_update(params, state.ema, 1 - decay),
        opt_state=opt_state,
        key=state.key,
        history=state.history,
    ), metrics


def make_step(experiment: Experiment, mesh: Mesh, abstract: State, levels: int | None) -> StepFunction:
    """The compiled step: `(state, resident, batch) -> (state, metrics)`, which runs one step for each row of `batch`.

    `resident` is the data set, of which `batch` holds indices; where it is None, `batch` holds examples. Their leaves
    have the leading axes of steps and of examples. The state is donated. `levels` says how raw values are scaled to
    [−1, 1] (see `jaxdiff.data.normalize`).
    """
    micro = experiment.config.train.accumulate
    whole, split = NamedSharding(mesh, batch_spec()), NamedSharding(mesh, batch_spec(leading=1))
    everywhere = NamedSharding(mesh, P())

    def one_step(resident: Examples | None, state: State, chosen: Any) -> tuple[State, Metrics]:
        examples = chosen if resident is None else jax.tree.map(lambda leaf: leaf[chosen], resident)
        x0 = data.normalize(examples.x, levels)
        drawn = experiment.draw(jax.random.fold_in(state.key, state.step), len(x0), state.history)
        batch = jax.lax.with_sharding_constraint((x0, examples.labels, *drawn), whole)

        def finish(loss: Array, grads: PyTree, losses: Array) -> tuple[State, Metrics]:
            if state.history is None:
                return update(experiment, state, loss, grads)
            # Of all the batch, on every device: all of them draw from the same history.
            seen = jax.lax.with_sharding_constraint((drawn[0], losses), everywhere)
            return update(experiment, state._replace(history=state.history.update(*seen)), loss, grads)

        if micro == 1:
            return finish(*gradient(experiment, state.params, batch))

        # Example i goes to micro-batch i mod `micro`, so that each device keeps the examples that it has.
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, micro, *leaf.shape[1:]).swapaxes(0, 1), batch)
        parts = jax.lax.with_sharding_constraint(parts, split)

        def add(total: PyTree, part: tuple[Any, ...]) -> tuple[PyTree, Array]:
            *found, losses = gradient(experiment, state.params, part)
            return jax.tree.map(jnp.add, total, tuple(found)), losses

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        total, losses = _scan(add, zero, parts, unroll=jax.default_backend() == "cpu")
        loss, grads = jax.tree.map(lambda leaf: leaf / micro, total)
        return finish(loss, grads, losses.T.reshape(-1))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    @partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),
        compiler_options=xla.compiler_options(),
    )
    def steps(state: State, resident: Examples | None, batch: Batch) -> tuple[State, Metrics]:
        return _scan(partial(one_step, resident), state, batch, unroll=len(jax.tree.leaves(batch)[0]) == 1)

    return steps


def _scan(f: Callable[..., Any], carry: PyTree, xs: PyTree, *, unroll: bool) -> tuple[PyTree, PyTree]:
    """`lax.scan`, or the same without any loop in the program: what `lax.scan(unroll=True)` leaves is still one."""
    if not unroll:
        return jax.lax.scan(f, carry, xs)
    outputs = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, output = f(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
